"""Which words of other libraries reach the user?"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import selfaug
from selfaug.common.quiet import LET_THROUGH, matters, take_verbose

# As transformers, peft, accelerate, torch and datasets write them.
USELESS = [
    "`is_gradient_checkpointing` is deprecated and will be removed in v6.",
    "Token indices sequence length is longer than the specified maximum sequence length for this model (900 > 512).",
    "The following values were not passed to `accelerate launch` and had defaults used instead:",
    "`use_cache=True` is incompatible with gradient checkpointing. Setting `use_cache=False`.",
    "You are sending unauthenticated requests to the HF Hub. Set a HF_TOKEN to enable higher rate limits.",
    "'pin_memory' argument is set as true but no accelerator is found, then device pinned memory won't be used.",
    "The generation flags are not valid and may be handled otherwise: ['temperature', 'top_p'].",
    "torch.utils.checkpoint: the use_reentrant parameter should be passed explicitly.",
    "Could not find a config file in /models/base - will assume that the vocabulary was not modified.",
    "To copy construct from a tensor, it is recommended to use sourceTensor.detach().clone()",
]
OF_TOPIC = [
    ["Some weights of LlamaForCausalLM were newly initialized: ['lm_head.weight']",
     "LlamaForCausalLM LOAD REPORT\nlm_head.weight | MISSING",
     "Found missing adapter keys while loading the checkpoint: ['q_proj.lora_A']",
     "This checkpoint seem corrupted."],
    ["loss is nan, skipping", "Found inf in gradients", "Non-finite values in the output"],
    ["NVIDIA H900 with CUDA capability sm_130 is not compatible with the current PyTorch installation.",
     "CUDA initialization: The NVIDIA driver on your system is too old",
     "The installed version of bitsandbytes was compiled without GPU support."],
    ["The fast path is not available because one of `(causal_conv1d_fn)` is None.",
     "Flash attention 2 is not installed, falling back to sdpa."],
    ["Padding-free training without flash attention may lead to cross-contamination between batches."],
    ["target_modules=['q'] were set but no module was matched.",
     "The following rank_pattern keys did not match any targeted module and were ignored: ['x'].",
     "You have passed exclude_modules=['x'] but no modules were excluded."],
    ["Model with `tie_word_embeddings=True` and a tied layer is part of the adapter.",
     "Merge lora module to 4-bit linear may get different generations due to rounding errors."],
    ["You are resuming training from a checkpoint trained with 4.40 of Transformers."],
    ["Retrying in 2s [Retry 2/5].", "The read operation timed out"],
]  # fmt: skip


@pytest.mark.parametrize("message", USELESS)
def test_what_the_user_can_do_nothing_about_is_dropped(message: str) -> None:
    assert not matters(message)


@pytest.mark.parametrize("topic", range(len(LET_THROUGH)))
def test_what_matters_is_let_through_by_its_topic(topic: int) -> None:
    assert len(OF_TOPIC) == len(LET_THROUGH)
    for message in OF_TOPIC[topic]:
        assert re.search(LET_THROUGH[topic].pattern, message, re.IGNORECASE | re.DOTALL), message
        assert matters(message)


def test_every_topic_is_in_the_documentation() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "train.md").read_text(encoding="utf-8")
    for topic in LET_THROUGH:
        assert topic.why in page


CHILD = """
import logging, os, sys, warnings
from selfaug.common.quiet import quieten
quieten()
quieten()
for library in ("transformers.modeling", "accelerate", "peft"):
    logger = logging.getLogger(library)
    logger.addHandler(logging.StreamHandler())  # as libraries do when they are imported
    logger.propagate = False
    logger.warning("useless of %s", library)
    logger.warning("weights newly initialized, says %s", library)
    logger.error("an error of %s", library)
warnings.warn("useless by warnings")
warnings.warn("weights newly initialized, will be an error", FutureWarning)
warnings.warn("found missing adapter keys", UserWarning)
logging.getLogger("selfaug.step.forward").warning("our own word")
logging.getLogger("selfaug.step.forward").info("our own aside")
asked = logging.getLogger("datasets")
asked.setLevel(logging.INFO)
asked.addHandler(logging.StreamHandler())
asked.warning("useless, but asked for")
print(sorted(name for name in ("TQDM_DISABLE", "TORCH_CPP_LOG_LEVEL") if name in os.environ))
"""


def said(**environment: str) -> tuple[str, str]:
    # Not what this process inherited: a test before this one may have quietened it.
    clean = {k: v for k, v in os.environ.items() if k not in ("TQDM_DISABLE", "TORCH_CPP_LOG_LEVEL", "PYTHONWARNINGS")}
    clean["PYTHONPATH"] = str(Path(selfaug.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, env={**clean, **environment}, check=True
    )
    return done.stdout.strip(), done.stderr


def test_warnings_are_dropped_but_for_those_that_matter_and_errors_never() -> None:
    out, err = said()
    assert out == "['TORCH_CPP_LOG_LEVEL', 'TQDM_DISABLE']"
    assert err.splitlines() == [
        *(
            line
            for library in ("transformers.modeling", "accelerate", "peft")
            for line in (f"weights newly initialized, says {library}", f"an error of {library}")
        ),
        "warning: found missing adapter keys",
        "warning: our own word",
        "useless, but asked for",
    ]


def test_verbose_shows_all() -> None:
    out, err = said(SELFAUG_VERBOSE="1")
    assert out == "[]"
    for part in ("useless of transformers", "useless by warnings", "FutureWarning", "our own aside", "our own word"):
        assert part in err


def test_over_several_machines_the_native_log_stays() -> None:
    assert said(WORLD_SIZE="16", LOCAL_WORLD_SIZE="8")[0] == "['TQDM_DISABLE']"
    assert said(WORLD_SIZE="8", LOCAL_WORLD_SIZE="8")[0] == "['TORCH_CPP_LOG_LEVEL', 'TQDM_DISABLE']"


def test_verbose_is_taken_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SELFAUG_VERBOSE", raising=False)
    assert take_verbose(["train", "--alpha", "2"]) == ["train", "--alpha", "2"]
    assert "SELFAUG_VERBOSE" not in os.environ
    monkeypatch.setenv("SELFAUG_VERBOSE", "0")
    assert take_verbose(["train", "--verbose", "--alpha", "2"]) == ["train", "--alpha", "2"]
    assert os.environ["SELFAUG_VERBOSE"] == "1"


def test_filters_stand_in_one_place() -> None:
    source = Path(selfaug.__file__).parent
    found = [
        path.name
        for path in source.rglob("*.py")
        if re.search(r"filterwarnings|simplefilter|catch_warnings|showwarning|setLoggerClass", path.read_text("utf-8"))
    ]
    assert found == ["quiet.py"]
