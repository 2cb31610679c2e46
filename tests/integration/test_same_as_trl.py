"""With alpha 0, is a training the same as `trl sft`'s: rows, batches, losses, gradients, metrics?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, load_dataset
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTTrainer

from selfaug.training.trainer import SelfAugTrainer
from tests.integration import small
from tests.integration.beside_trl import STEPS, train

RELATIVE = 1e-5  # of the issue; both sides are float32 and differ in the order of their sums

pytestmark = pytest.mark.slow

LAYOUTS: dict[str, dict[str, Any]] = {
    "padding": {"max_length": 512},
    "packing": {"max_length": 512, "packing": True},
    "padding_free": {"max_length": None, "padding_free": True},
}


# ---- the data: real questions and answers about real stories ------------------------------------------------------


@pytest.fixture(scope="module")
def jsonl(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompt/completion rows of MCTest: the end of a story and a question, and the right answer."""
    folder = shared / "data" / "mctest"
    rows = []
    tables = zip(
        (folder / "mc160.train.tsv").read_text(encoding="utf-8").splitlines(),
        (folder / "mc160.train.ans").read_text(encoding="utf-8").splitlines(),
        strict=True,
    )
    for line, letters in tables:
        _, _, story, *cells = line.split("\t")
        sentences = story.replace("\\newline", " ").split(". ")
        for number, letter in enumerate(letters.split("\t")):
            question, *choices = cells[5 * number : 5 * number + 5]
            prompt = ". ".join(sentences[-3 - number :]) + "\n" + question.split(": ", 1)[1] + "\nAnswer:"
            rows.append({"prompt": prompt, "completion": " " + choices["ABCD".index(letter)]})
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:150]), encoding="utf-8")
    return path


def dataset(jsonl: Path) -> Dataset:
    return load_dataset("json", data_files=str(jsonl), split="train", cache_dir=str(jsonl.parent / "cache"))


# ---- comparing what both did ----------------------------------------------------------------------


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm()) if b.any() else float(a.norm())


def steps_of(trainer: Any) -> list[dict[str, Any]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def compare(ours: Any, theirs: Any, gradient: dict[str, Tensor], their_gradient: dict[str, Tensor]) -> None:
    rows, their_rows = list(ours.train_dataset), list(theirs.train_dataset)
    assert len(rows) == len(their_rows) > 10
    for row, other in zip(rows, their_rows, strict=True):
        assert row["input_ids"] == other["input_ids"]
        assert row["labels"] == other["labels"]
        assert row.get("seq_lengths") == other.get("seq_lengths")
    # The last step of an epoch may have fewer micro-batches.
    assert STEPS * (ours.args.gradient_accumulation_steps - 1) < len(theirs.seen)
    assert theirs.seen[-1][0] == STEPS - 1
    for (step, batch), (other_step, other) in zip(ours.seen, theirs.seen, strict=True):
        assert step == other_step
        assert batch.keys() == other.keys()
        assert all(torch.equal(batch[name], other[name]) for name in batch)
    assert gradient.keys() == their_gradient.keys()
    moved = [name for name, g in their_gradient.items() if g.any()]
    assert moved, "no gradient: nothing was compared"
    worst = max(relative(gradient[name], their_gradient[name]) for name in gradient)
    log, their_log = steps_of(ours), steps_of(theirs)
    assert len(log) == len(their_log) == STEPS
    losses = [(e["loss"], o["loss"]) for e, o in zip(log, their_log, strict=True)]
    assert len({other for _, other in losses}) == STEPS, "the losses do not differ from step to step"
    off = max(abs(a - b) / abs(b) for a, b in losses)
    print(f"\nlargest relative difference: loss {off:.1e}, gradient {worst:.1e}")
    assert off <= RELATIVE
    assert worst <= RELATIVE
    assert [e["learning_rate"] for e in log] == [o["learning_rate"] for o in their_log]
    assert [e["num_tokens"] for e in log] == [o["num_tokens"] for o in their_log]


def compare_metrics(ours: Any, theirs: Any) -> None:
    """Ours are means over the step's tokens; TRL's over its micro-batches, so they are weighted by tokens here."""
    log = steps_of(ours)
    for step, entry in enumerate(log):
        part = [number for number, (at, _) in enumerate(theirs.seen) if at == step]
        tokens = [int((theirs.seen[number][1]["labels"][:, 1:] != -100).sum()) for number in part]
        assert entry["response_tokens"] == sum(tokens)
        for name in ("entropy", "mean_token_accuracy"):
            values = [theirs.by_batch[number][name] for number in part]
            mean = sum(v * n for v, n in zip(values, tokens, strict=True)) / sum(tokens)
            assert entry[name] == pytest.approx(mean, rel=1e-5, abs=1e-7), (name, step)
    assert any(entry["mean_token_accuracy"] > 0 for entry in log)


@pytest.mark.shared
@pytest.mark.parametrize("accumulation", [1, pytest.param(4, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_batches_losses_and_gradients(
    layout: str, accumulation: int, jsonl: Path, stories260k: Path, tmp_path: Path
) -> None:
    settings = {**LAYOUTS[layout], "gradient_accumulation_steps": accumulation}
    if layout == "packing":
        settings["per_device_train_batch_size"] = 1
    done = []
    for kind in (SelfAugTrainer, SFTTrainer):
        model = AutoModelForCausalLM.from_pretrained(stories260k, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(stories260k)
        done.append(train(kind, model, tokenizer, dataset(jsonl), tmp_path / kind.__name__, **settings))
    (ours, gradient), (theirs, their_gradient) = done
    compare(ours, theirs, gradient, their_gradient)
    compare_metrics(ours, theirs)


@pytest.mark.nightly
@pytest.mark.shared
def test_gradient_checkpointing(jsonl: Path, stories260k: Path, tmp_path: Path) -> None:
    done = []
    for kind in (SelfAugTrainer, SFTTrainer):
        model = AutoModelForCausalLM.from_pretrained(stories260k, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(stories260k)
        folder = tmp_path / kind.__name__
        done.append(train(kind, model, tokenizer, dataset(jsonl), folder, gradient_checkpointing=True, max_length=512))
        assert done[-1][0].model.is_gradient_checkpointing
    compare(done[0][0], done[1][0], done[0][1], done[1][1])


@pytest.mark.parametrize("arch", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("layout", ["padding", "packing"])
def test_a_mixture_of_experts_with_its_auxiliary_loss(arch: str, layout: str, tmp_path: Path) -> None:
    settings = {**LAYOUTS[layout], "max_length": 64, "gradient_accumulation_steps": 2, "router_aux_loss_coef": 0.1}
    done = []
    for kind in (SelfAugTrainer, SFTTrainer):
        rows = Dataset.from_list(small.rows(200))
        model = small.model(arch)
        done.append(train(kind, model, small.tokenizer(), rows, tmp_path / kind.__name__, **settings))
    (ours, gradient), (theirs, their_gradient) = done
    assert ours.aux_loss_enabled
    compare(ours, theirs, gradient, their_gradient)
    compare_metrics(ours, theirs)
    for entry, other in zip(steps_of(ours), steps_of(theirs), strict=True):
        assert entry["aux_loss"] > 0
        assert entry["aux_loss"] == pytest.approx(other["aux_loss"], rel=1e-5)
        assert abs(entry["loss"] - entry["nll"]) > 0.01, "the auxiliary loss is not in the loss"


# ---- the two command lines ----------------------------------------------------------------------------------------


@pytest.mark.nightly
@pytest.mark.shared
def test_the_two_command_lines(jsonl: Path, stories260k: Path, tmp_path: Path) -> None:
    flags = {
        "model_name_or_path": stories260k, "max_steps": STEPS, "learning_rate": 2e-5, "logging_steps": 1,
        "bf16": "false", "use_cpu": "true", "dtype": "float32", "report_to": "none", "use_peft": "true", "lora_r": 8,
        "lora_alpha": 16, "lora_dropout": 0.0, "lora_target_modules": "all-linear", "max_length": 512,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "gradient_checkpointing": "false",
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    # `trl sft` loads data sets by name or folder, not single files.
    folder = jsonl.parent / "folder"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(jsonl.read_bytes())
    theirs = ["sft", *words, "--dataset_name", str(folder), "--output_dir", str(tmp_path / "trl")]
    ours = ["train", *words, "--dataset_name", str(jsonl), "--output_dir", str(tmp_path / "run"), "--alpha", "0"]
    run(["-c", "from trl.cli import main; main()", *theirs], tmp_path)
    run(["-m", "selfaug", *ours], tmp_path)
    logs = [
        json.loads((folder / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["log_history"]
        for folder in (tmp_path / "run" / "checkpoints", tmp_path / "trl")
    ]
    ours_loss, their_loss = ([entry["loss"] for entry in log if "loss" in entry] for log in logs)
    assert len(their_loss) == STEPS
    off = max(abs(a - b) / abs(b) for a, b in zip(ours_loss, their_loss, strict=True))
    print(f"\nlargest relative difference of the losses of the two command lines: {off:.1e}")
    assert off <= RELATIVE
    adapter = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    other = load_file(tmp_path / "trl" / "adapter_model.safetensors")
    assert adapter.keys() == other.keys()
    assert any(other[name].any() for name in other if "lora_B" in name), "nothing was learnt"
    for name in other:
        # Adam divides by the gradient's size: where it is nearly 0 its sign decides, and the two may take steps apart.
        torch.testing.assert_close(adapter[name], other[name], rtol=0.0, atol=2e-5)
    configs = [
        json.loads((path / "adapter_config.json").read_text())
        for path in (tmp_path / "run" / "adapter", tmp_path / "trl")
    ]
    for name in ("r", "lora_alpha", "lora_dropout", "peft_type", "task_type", "bias"):
        assert configs[0][name] == configs[1][name]
    assert sorted(configs[0]["target_modules"]) == sorted(configs[1]["target_modules"])


def run(command: list[str], folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-4000:])
