"""Does `selfaug shift` hold on a real model and real text: against dense logits, and when it is killed?"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from selfaug.cli.main import main

pytestmark = [pytest.mark.shared, pytest.mark.slow]

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def selfaug(*words: object) -> str:
    # In this process: only what is killed needs one of its own.
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(map(str, words)))
    assert code == 0, err.getvalue()
    return out.getvalue()


@pytest.fixture(scope="module")
def run(shared: Path, stories260k: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stories260k after four steps on MCTest, a checkpoint a step."""
    folder = tmp_path_factory.mktemp("real") / "run"
    selfaug(
        "train", "--model_name_or_path", stories260k, "--dataset_name", shared / "data" / "mctest" / "mc160.dev.tsv",
        "--output_dir", folder, "--max_steps", 4, "--save_steps", 1, "--learning_rate", "5e-3", "--alpha", 0,
        "--per_device_train_batch_size", 4, "--gradient_checkpointing", "false",
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def words(run: Path, shared: Path) -> list[object]:
    stories = shared / "data" / "tinystories" / "tinystories_1000.json"
    return ["shift", run, "--limit", 12, "--general_text", stories, "--general_limit", 12]


def shift_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "shift.json").read_text()))


@pytest.mark.nightly
def test_killed_after_a_checkpoint_it_goes_on_with_the_next(run: Path, words: list[object]) -> None:
    command = [sys.executable, "-m", "selfaug", *map(str, words), "--checkpoints", "all"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        deadline = time.monotonic() + 240
        while not (run / "shift.json").exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    found = shift_of(run)  # whole, though its writer was killed
    assert 1 <= len(found["checkpoints"]) < 5, "the process was too fast or too slow to be killed in between"
    done = [entry["name"] for entry in found["checkpoints"]]
    found["checkpoints"][0]["totals"]["prompt"]["base_to_tuned"]["value"] = 123.456
    (run / "shift.json").write_text(json.dumps(found))
    out = selfaug(*words, "--checkpoints", "all")
    after = {entry["name"]: entry for entry in shift_of(run)["checkpoints"]}
    assert [*after] == ["checkpoint-1", "checkpoint-2", "checkpoint-3", "checkpoint-4", "final"]
    assert after[done[0]]["totals"]["prompt"]["base_to_tuned"]["value"] == 123.456
    assert out.count("123.4560") == 1
    kl = [after[name]["totals"]["data"]["base_to_tuned"]["value"] for name in list(after)[:4]]
    assert kl[3] > kl[0] > 1e-4


def test_general_text_against_dense_logits(run: Path, words: list[object], shared: Path) -> None:
    """All texts of the file, cut in pieces, by PEFT's own logits."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    stories = json.loads((shared / "data" / "tinystories" / "tinystories_1000.json").read_text())[:6]
    file = run.parent / "few.json"
    file.write_text(json.dumps(stories))
    selfaug("shift", run, "--limit", 4, "--general_text", file, "--max_length", 300, "--dtype", "float32")
    entry = shift_of(run)["checkpoints"][-1]["regions"]["general_text"]
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    model = AutoPeftModelForCausalLM.from_pretrained(run / "adapter").eval()
    sums, tokens = torch.zeros(4, dtype=torch.float64), 0
    for story in stories:
        ids = tokenizer(story)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        for start in range(1, len(ids), 299):
            piece = torch.tensor([[ids[0], *ids[start : start + 299]]])
            with torch.no_grad():
                tuned = model(piece).logits[0, :-1].double().log_softmax(-1)
                with model.disable_adapter():
                    base = model(piece).logits[0, :-1].double().log_softmax(-1)
            after = piece[0, 1:, None]
            sums += torch.stack([
                (base.exp() * (base - tuned)).sum(), (tuned.exp() * (tuned - base)).sum(),
                -base.gather(-1, after).sum(), -tuned.gather(-1, after).sum(),
            ])  # fmt: skip
            tokens += len(after)
    assert entry["tokens"] == tokens > 600
    for name, value in zip(("base_to_tuned", "tuned_to_base", "base_nll", "tuned_nll"), sums / tokens, strict=True):
        assert entry[name]["value"] == pytest.approx(float(value), abs=1e-5)
    assert entry["base_to_tuned"]["value"] > 1e-3


def test_regions_of_real_rows(run: Path, shared: Path, words: list[object]) -> None:
    """Documents with titles, several to a question; every kind of region is there and no token is lost."""
    hotpot = next((shared / "data" / "hotpotqa-distractor").glob("*.jsonl"))
    selfaug("shift", run, "--dataset_name", hotpot, "--limit", 10, "--layers", "false")
    found = shift_of(run)
    (entry,) = found["checkpoints"][-1:]
    regions = entry["regions"]
    assert set(regions) == {"system", "documents", "question", "other", "boundary", "response"}
    assert regions["boundary"]["tokens"] == found["sources"]["data"]["measured"] == 10
    assert sum(part["tokens"] for part in regions.values()) == entry["totals"]["data"]["tokens"]
    assert regions["documents"]["tokens"] > 5 * regions["question"]["tokens"]
