"""Tests of the ms-swift plugin, with ms-swift's own launcher and entry point in an environment of its own.

Run with ``SELFAUG_MS_SWIFT=FOLDER``, an environment that `hosts/ms-swift/environment.sh` made:
``SELFAUG_MS_SWIFT=FOLDER bin/test -m nightly tests/hosts/test_ms_swift.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from tests.hosts.steps import (
    CHOSEN,
    MISTAKES,
    ROOT,
    TOLERANCE,
    Case,
    distance,
    documents_of,
    environment,
    messages,
    read_record,
    require_step,
    require_whole,
    run_inside,
)
from tests.models import EOS, lora_config, save_tiny

ENVIRONMENT = os.environ.get("SELFAUG_MS_SWIFT")
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(ENVIRONMENT is None, reason="SELFAUG_MS_SWIFT names no environment"),
]
PLUGIN = ROOT / "hosts" / "ms-swift" / "selfaug_swift.py"
# ms-swift ends each answer with the token that ends a text.
EXPECTED = tuple(([*ids, EOS], [*labels, EOS]) for ids, labels in CHOSEN)

PADDED = ["--per_device_train_batch_size", "10", "--gradient_accumulation_steps", "1"]
LAYOUTS = {
    "padding": PADDED,
    "padding on the left": [*PADDED, "--padding_side", "left"],
    "padding, accumulated": ["--per_device_train_batch_size", "3", "--gradient_accumulation_steps", "4"],
    "padding-free": [*PADDED, "--padding_free", "true", "--attn_impl", "sdpa"],
    "packing": ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1", "--packing", "true",
                "--max_length", "48", "--attn_impl", "sdpa"],
    "packing, accumulated": ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "4",
                             "--packing", "true", "--max_length", "48", "--attn_impl", "sdpa"],
}  # fmt: skip
PLANTED = {
    "divided again": "padding, accumulated",
    "adapter on in the reference pass": "packing, accumulated",
    "a row taken for one document": "packing",
    "padding taken for a document": "padding",
}
REFUSED = {
    "sequence parallelism": (["--sequence_parallel_size", "2"], {}, "splits what the alignment compares"),
    "another loss": (["--enable_dft_loss", "true"], {}, "its loss would replace SelfAug's"),
    "a loss of the user": (["--loss_type", "cross_entropy"], {}, "its loss would replace SelfAug's"),
    "losses of channels": (["--enable_channel_loss", "true"], {}, "the loss of single tokens is not computed"),
    "weights of tokens": (["--loss_scale", "react"], {}, "weighs tokens, which SelfAug's loss does not"),
    "trained prompts": (["--loss_scale", "all"], {}, "no token is left to align"),
    "another adapter": (["--tuner_type", "adalora"], {}, "--tuner_type adalora cannot work with SelfAug"),
    "no adapter": (["--tuner_type", "full"], {}, "trains all weights, and the base is gone"),
    "smoothing": (["--label_smoothing_factor", "0.1"], {}, "label_smoothing_factor is not supported"),
    "an unknown setting": ([], {"SELFAUG_ALFA": "2"}, "selfaug_alfa is not known. Did you mean 'selfaug_alpha'?"),
    "no number": ([], {"SELFAUG_ALPHA": "two"}, "selfaug_alpha='two' is of type str, where float is needed"),
    "no weight": ([], {"SELFAUG_ALPHA": "-1"}, "is not a weight"),
    "a setting in model_kwargs": (["--model_kwargs", '{"selfaug_align_fraction": 0}'], {}, "is not a share"),
}


def words(folder: Path, *more: str) -> list[str]:
    lora = lora_config("llama")
    settings = {
        "model": folder / "model", "model_type": "llama", "template": "dummy", "dataset": folder / "rows.jsonl",
        "tuner_type": "lora", "lora_rank": lora.r, "lora_alpha": lora.lora_alpha, "lora_dropout": 0,
        "target_modules": "all-linear", "torch_dtype": "float32", "bf16": "false", "max_steps": 1,
        "learning_rate": 1e-4, "max_grad_norm": 1e9, "split_dataset_ratio": 0, "output_dir": folder / "out",
        "report_to": "none", "save_strategy": "no", "check_model": "false", "load_from_cache_file": "false",
        "dataset_num_proc": 1, "gradient_checkpointing": "false", "logging_steps": 1,
    }  # fmt: skip
    return [*(word for name, value in settings.items() for word in (f"--{name}", str(value))), *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("swift")
    save_tiny(made / "model")
    rows = [{"messages": messages(ids, labels), "channel": "books"} for ids, labels in CHOSEN]
    (made / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def ran(folder: Path) -> dict[str, Case]:
    plugins = ["--external_plugins", str(PLUGIN), str(ROOT / "tests" / "hosts" / "pack_on_cpu.py")]
    cases = [Case(name, words(folder, *plugins, *layout)) for name, layout in LAYOUTS.items()]
    for mistake, layout in PLANTED.items():
        cases.append(Case(mistake, words(folder, *plugins, *LAYOUTS[layout]), planted=mistake))
    for name, (more, variables, _) in REFUSED.items():
        cases.append(Case(name, words(folder, *plugins, *PADDED, *more), variables=variables))
    run_inside("ms_swift", f"{ENVIRONMENT}/bin/python", cases, folder)
    return {case.name: case for case in cases}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_of_ms_swift_equals_the_oracle(layout: str, ran: dict[str, Case]) -> None:
    case = ran[layout]
    require_whole(case, EXPECTED, [ids for batch in case.batches for ids in documents_of(batch)])
    assert (len(case.batches) > 1) == ("accumulated" in layout)
    masked = [batch for batch in case.batches if "attention_mask" in batch]
    if layout.startswith("pad") and "free" not in layout:
        first = torch.cat([batch["attention_mask"][:, 0] for batch in masked])
        assert any(not batch["attention_mask"].all() for batch in masked), "something is padded"
        assert bool((first == 0).any()) == ("left" in layout)
    else:
        assert not masked, "positions alone tell documents"
        assert any(int((batch["position_ids"] == 0).sum()) > 1 for batch in case.batches), "documents share a row"
    require_step(case, EXPECTED)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_ms_swifts_step_is_caught(mistake: str, ran: dict[str, Case]) -> None:
    case = ran[mistake]
    if mistake == "adapter on in the reference pass":  # seen before the first step
        assert "the reference='base' moves when the trained weights do" in case.said
        return
    assert not case.said, case.said
    assert distance(case, EXPECTED) > 100 * TOLERANCE


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_in_ms_swift_is_refused(name: str, ran: dict[str, Case]) -> None:
    assert ran[name].said.startswith("ConfigError: ")
    assert REFUSED[name][2] in ran[name].said
    assert not ran[name].batches


def test_a_step_through_ms_swifts_launcher_equals_the_oracle(folder: Path, tmp_path: Path) -> None:
    recorder = ROOT / "tests" / "hosts" / "recorder.py"
    swift = [f"{ENVIRONMENT}/bin/swift", "sft", *words(folder, *PADDED, "--output_dir", str(tmp_path))]
    record = tmp_path / "record.pt"
    done = subprocess.run(
        [*swift, "--external_plugins", str(PLUGIN), str(recorder)],
        capture_output=True, text=True, env=environment(STEP_RECORD=str(record), SELFAUG_ALPHA="2"), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "'alignment': " in done.stdout + done.stderr
    case = Case("launcher", [])
    read_record(case, record)
    require_step(case, EXPECTED)
