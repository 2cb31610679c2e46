"""One rank of a distributed run: trains each case with the real trainer and leaves its gradients and batches on disk.

Started by torchrun: `ranks.py CASES.json FOLDER`. Each rank writes `FOLDER/<case>/rank<r>.pt`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

# torchrun starts a file, and the tests that it imports are a package of the checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from selfaug import SelfAugTrainer
from selfaug.planning import plan
from tests.integration.steps import SEQUENCES, run


def documents(batch: dict[str, Any]) -> list[list[int]]:
    """Token ids of each document of a micro-batch, padding left out."""
    found: list[list[int]] = []
    ids_BT = batch["input_ids"].tolist()
    if "attention_mask" in batch:
        mask_BT = batch["attention_mask"].tolist()
        return [
            [i for i, real in zip(row, mask, strict=True) if real] for row, mask in zip(ids_BT, mask_BT, strict=True)
        ]
    for token, position in zip(ids_BT[0], batch["position_ids"][0].tolist(), strict=True):
        if position == 0:
            found.append([])
        found[-1].append(token)
    return found


def evaluating(kinds: list[str], found: dict[str, float]) -> Any:
    """What makes a trainer evaluate these sequences once it has trained."""
    rows = [{"input_ids": list(ids), "labels": list(labels)} for kind in kinds for ids, labels in SEQUENCES[kind]]

    def change(trainer: SelfAugTrainer) -> None:
        original = trainer.train

        def train(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            found.update(trainer.evaluate(Dataset.from_list(rows)))
            return result

        trainer.train = train  # type: ignore[method-assign]

    return change


def main(cases_file: Path, folder: Path) -> None:
    rank = int(os.environ["RANK"])
    right = plan.draw
    for name, case in json.loads(cases_file.read_text()).items():
        chosen = tuple(sequence for kind in case["kinds"] for sequence in SEQUENCES[kind])[: case["count"]]

        def by_rank(seed: int, step: int, tokens: torch.Tensor, align_fraction: float) -> bool:
            return right(seed + 1000 * rank, step, tokens, align_fraction)

        plan.draw = by_rank if case["planted"] else right
        found: dict[str, float] = {}
        change = evaluating(case["evaluated"], found) if "evaluated" in case else None
        settings = dict(case["settings"])
        if case.get("cached"):
            settings["reference_cache"] = str(folder / name / "cache")
        if case.get("texts"):
            settings["align_data"] = str(folder / "texts.jsonl")
        ran = run(chosen, folder / name / "run", change=change, ddp_backend="gloo", **settings)
        steps = [[documents(batch) for batch in step] for step in ran.batches]
        response = [sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in step) for step in ran.batches]
        torch.save(
            {"gradients": ran.gradients, "documents": steps, "response": response, "losses": ran.losses}
            | {"evaluation": found},
            folder / name / f"rank{rank}.pt",
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
