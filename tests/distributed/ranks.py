"""One rank of a distributed run: trains each case with the real trainer and leaves its gradients and batches on disk.

Started by torchrun: `ranks.py CASES.json FOLDER`. Each rank writes `FOLDER/<case>/rank<r>.pt`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from datasets import Dataset
from transformers import TrainerCallback

# torchrun starts a file, and the tests that it imports are a package of the checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from selfaug import SelfAugTrainer
from selfaug.planning import plan
from selfaug.step.driver import StepDriver
from tests.integration.steps import SEQUENCES, run
from tests.models import lora_config, tiny


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


class Reductions(TrainerCallback):  # type: ignore[misc]
    """Counts the reductions over ranks from the end of the first step to the end of the third, by backend of the group.

    Those of gradients are none: DDP makes them without Python. Those of a log come after a step's end.
    """

    def __init__(self) -> None:
        self.found: list[str] = []
        self._open = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._open = 1 <= state.global_step < 3

    @contextmanager
    def counted(self) -> Iterator[None]:
        original = dist.all_reduce

        def all_reduce(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._open:
                group = kwargs.get("group")
                self.found.append("devices" if group is None or group is dist.group.WORLD else "hosts")
            return original(tensor, *args, **kwargs)

        dist.all_reduce = all_reduce
        try:
            yield
        finally:
            dist.all_reduce = original


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


def own_shift(driver: StepDriver) -> tuple[float, int]:
    """The planted error: a rank's own sum and count, without those of the other one."""
    with patch("selfaug.step.driver.begin_reduce", lambda values: lambda: values):
        return step_shift(driver)


step_shift = StepDriver.step_shift


def main(cases_file: Path, folder: Path) -> None:
    rank = int(os.environ["RANK"])
    right = plan.draw
    for name, case in json.loads(cases_file.read_text()).items():
        chosen = tuple(sequence for kind in case["kinds"] for sequence in SEQUENCES[kind])[: case["count"]]

        def by_rank(seed: int, step: int, tokens: torch.Tensor, align_fraction: float) -> bool:
            return right(seed + 1000 * rank, step, tokens, align_fraction)

        plan.draw = by_rank if case["planted"] is True else right
        StepDriver.step_shift = own_shift if case["planted"] == "shift" else step_shift  # type: ignore[method-assign]
        found: dict[str, float] = {}
        change = evaluating(case["evaluated"], found) if "evaluated" in case else None
        settings = dict(case["settings"])
        reductions = Reductions()
        if case.get("spare"):
            # An adapted layer that no pass uses.
            model = tiny("llama")
            model.model.spare = torch.nn.Linear(32, 32, bias=False, dtype=torch.float64)
            settings |= {"model": model, "peft_config": lora_config("llama")}

        def observed(trainer: SelfAugTrainer, change: Any = change, reductions: Reductions = reductions) -> None:
            trainer.add_callback(reductions)
            if change is not None:
                change(trainer)

        if case.get("cached"):
            settings["reference_cache"] = str(folder / name / "cache")
        if case.get("texts"):
            settings["align_data"] = str(folder / "texts.jsonl")
        with reductions.counted():
            ran = run(chosen, folder / name / "run", change=observed, ddp_backend="gloo", **settings)
        assert ran.trainer is not None
        wrapped = ran.trainer.model_wrapped
        assert isinstance(wrapped, torch.nn.parallel.DistributedDataParallel)
        steps = [[documents(batch) for batch in step] for step in ran.batches]
        response = [sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in step) for step in ran.batches]
        torch.save(
            {"gradients": ran.gradients, "documents": steps, "response": response, "losses": ran.losses}
            | {"alphas": [entry["alpha"] for entry in ran.trainer.state.log_history if "alpha" in entry]}
            | {"evaluation": found, "reductions": reductions.found, "searches": wrapped.find_unused_parameters},
            folder / name / f"rank{rank}.pt",
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
