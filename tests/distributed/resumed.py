"""One rank of runs that may be killed: each trains to its end or goes on from its last whole checkpoint, and exports.

`resumed.py KIND RUNS.json MODEL`, with a list of [cell, folder, steps]: checkpoints every second step in `FOLDER/run`,
weights in `FOLDER/export`, which is written last. Each rank writes its process id into `FOLDER/pid<rank>`, and the
first one the number of each finished step into `FOLDER/step`, before the step's checkpoint is sealed.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from transformers import TrainerCallback

from selfaug.run.checkpoint import last_whole, step_of
from tests.distributed.cells import Cell, make_trainer
from tests.distributed.fsdp_on_cpu import assert_sharded, shard_on_cpu


class _Steps(TrainerCallback):
    def __init__(self, folder: Path) -> None:
        self._file = folder / "step"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._file.write_text(str(state.global_step))


def run(kind: str, cell: Cell, model: str, folder: Path, steps: int) -> Any:
    (folder / f"pid{os.environ['RANK']}").write_text(str(os.getpid()))
    trainer = make_trainer(cell, model, folder, max_steps=steps, save_strategy="steps", save_steps=2)
    trainer.add_callback(_Steps(folder))
    last = last_whole(folder / "run")
    if last is not None:
        print(f"{folder} goes on from step {step_of(last)}", flush=True)
    trainer.train(resume_from_checkpoint=last is not None or None)
    assert_sharded(trainer, kind)
    trainer.save_model(str(folder / "export"))
    trainer.accelerator.wait_for_everyone()
    return trainer


def main(kind: str, runs_file: Path, model: str) -> None:
    if kind == "fsdp2":
        shard_on_cpu()
    for cell, folder, steps in json.loads(runs_file.read_text()):
        trainer = run(kind, Cell(**cell), model, Path(folder), steps)
    trainer.end()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
