"""What tests of hosts share: rows of words, launches in a host's environment, and the step that they should take."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from tests.models import tiny, with_lora
from tests.oracles import planted
from tests.oracles.planted import Step
from tests.oracles.sequences import SINGLE_TURN, sequences
from tests.oracles.step import IGNORED, Gradients, Sequence_, relative_distance

ROOT = Path(__file__).parents[2]
CHOSEN = sequences((*SINGLE_TURN, (7, 3), (4, 6), (11, 4), (2, 5)))
TOLERANCE = 1e-5  # hosts train in float32
MISTAKES = (
    "divided again",
    "adapter on in the reference pass",
    "a row taken for one document",
    "padding taken for a document",
)


@dataclass
class Case:
    """A training: words of the host's command line, and what it left behind."""

    name: str
    words: list[str]
    planted: str | None = None
    variables: dict[str, str] = field(default_factory=dict)
    said: str = ""
    gradient: Gradients = field(default_factory=dict)
    batches: list[dict[str, torch.Tensor]] = field(default_factory=list)


def messages(ids: list[int], labels: list[int]) -> list[dict[str, str]]:
    """A sequence as turns of words of the tiny tokenizer, from where its labels change."""
    turns: list[dict[str, str]] = []
    for token, label in zip(ids, labels, strict=True):
        role = "user" if label == IGNORED else "assistant"
        if not turns or turns[-1]["role"] != role:
            turns.append({"role": role, "content": f"w{token}"})
        else:
            turns[-1]["content"] += f" w{token}"
    return turns


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SELFAUG_")}
    return {
        **kept, "PYTHONPATH": f"{ROOT}/src:{ROOT}", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **variables,
    }  # fmt: skip


def run_inside(host: str, python: str, cases: list[Case], folder: Path) -> None:
    """Run the cases in the host's environment, and fill in what each left behind."""
    files = [folder / f"record-{number}.pt" for number in range(len(cases))]
    given = [
        {"words": case.words, "planted": case.planted, "variables": case.variables, "record": str(file)}
        for case, file in zip(cases, files, strict=True)
    ]
    done = subprocess.run(
        [python, str(ROOT / "tests" / "hosts" / "inside.py"), host],
        input=json.dumps(given), capture_output=True, text=True, env=environment(), cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    for case, file, said in zip(cases, files, json.loads(done.stdout.splitlines()[-1]), strict=True):
        case.said = said
        read_record(case, file)


def read_record(case: Case, file: Path) -> None:
    if file.is_file():
        found = torch.load(file, weights_only=True)
        case.gradient, case.batches = found["gradient"], found["batches"]


def require_whole(case: Case, expected: tuple[Sequence_, ...], documents: list[list[int]]) -> None:
    """Require that these documents of the recorded batches are the expected sequences, each once."""
    assert not case.said, case.said
    assert sorted(documents) == sorted(ids for ids, _ in expected)


def require_step(case: Case, expected: tuple[Sequence_, ...]) -> None:
    """Require the oracle's gradient, and that it differs from that of every mistake."""
    step = Step(lambda: tiny("llama"), with_lora(tiny("llama")), expected)
    _, gradient = step.gradient()
    assert relative_distance(case.gradient, gradient) < TOLERANCE
    ids, labels = ([token for sequence in expected for token in sequence[part]] for part in (0, 1))
    mistakes = {
        "padding aligned": planted.padding_aligned(step),
        "documents of a row see each other": replace(step, sequences=((ids, labels),)).gradient()[1],
        "adapter on in the reference pass": planted.adapter_in_reference(step),
        "divided by the accumulation again": {name: g / 4 for name, g in gradient.items()},
    }
    for name, wrong in mistakes.items():
        assert relative_distance(case.gradient, wrong) > 100 * TOLERANCE, name


def distance(case: Case, expected: tuple[Sequence_, ...]) -> float:
    step = Step(lambda: tiny("llama"), with_lora(tiny("llama")), expected)
    return relative_distance(case.gradient, step.gradient()[1])


def documents_of(batch: dict[str, Any]) -> list[list[int]]:
    """The documents of a batch: rows under its mask, or cut where positions begin anew."""
    found: list[list[int]] = []
    for row, ids in enumerate(batch["input_ids"].tolist()):
        mask = batch.get("attention_mask")
        if mask is not None and mask.dim() == 2:
            found.append([token for token, real in zip(ids, mask[row].tolist(), strict=True) if real])
            continue
        for place, token in zip(batch["position_ids"][row].tolist(), ids, strict=True):
            if place == 0:
                found.append([])
            found[-1].append(token)
    return [ids for ids in found if any(ids)]  # token 0 pads
