"""What does a run cost until it is good enough? Time and memory to a given task score, and what is kept by then.

    python benchmarks/run.py --shared DIR --seeds 3

Model, data and training are those of `mctest_stories260k.py`. Every few steps the clock stands still, and the NLL of
answers and stories is measured on held-out items. With LoRA at the end of its training as the yardstick of each seed:

    target     answer NLL = base - share (base - LoRA)           the first measurement at or below it
    retention  (LoRA - method) / (LoRA - base) of story NLL      at that measurement

Each run has a process of its own, so that its memory is its own; methods take turns within a seed. Seconds are this
process's own work (all threads), without measuring. A method that never reaches the target says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from measure import add_common_options, peak_bytes, quiet, report, table
from paired import mean
from small_runs import METHODS, base_model, load, nll, trainer_of

VARIANTS: dict[str, dict[str, Any]] = {
    **{name: METHODS[name] for name in ("sft", "selfaug", "selfaug 1/8", "selfaug 1/64")},
    "kl-response": {"method": "kl-response"},
    "low-lr": {"method": "low-lr"},
    "l2": {"method": "l2"},
    "stm": {"method": "stm"},
}
ANSWERS, STORIES = 120, 40


def one(shared: Path, variant: str, seed: int, every: int) -> dict[str, Any]:
    """A training measured on its way: seconds, answer NLL and story NLL of each look, and the peak of memory."""
    from transformers import TrainerCallback

    data = load(shared)
    looks: list[dict[str, float]] = []
    spent = 0.0

    def look(model: Any, step: int) -> None:
        nonlocal spent
        began = time.process_time()
        answers, stories = mean(nll(model, data.answers[:ANSWERS])), mean(nll(model, data.general[:STORIES]))
        looks.append({"step": step, "seconds": began - start - spent, "answers": answers, "stories": stories})
        model.train()
        spent += time.process_time() - began

    class Looking(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step % every == 0:
                look(model, state.global_step)

    start = time.process_time()
    look(base_model(data), 0)
    with trainer_of(data, VARIANTS[variant], seed) as trainer:
        trainer.add_callback(Looking())
        trainer.train()
    return {"looks": looks, "bytes": peak_bytes()}


def reached(looks: list[dict[str, float]], target: float) -> dict[str, float] | None:
    """The first look whose answers are as good as asked for."""
    return next((look for look in looks if look["answers"] <= target), None)


def main() -> int:
    """All runs in turn, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="Folder with models/stories260k and data/.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--share", type=float, nargs="+", default=[0.8, 0.9, 0.95], help="Of LoRA's answer gain.")
    parser.add_argument("--every", type=int, default=5, help="Steps between looks.")
    parser.add_argument("--runs", type=Path, help="JSON lines of finished runs; kept and added to.")
    parser.add_argument("--one", nargs=2, metavar=("VARIANT", "SEED"), help=argparse.SUPPRESS)
    add_common_options(parser)
    args = parser.parse_args()
    quiet()
    if args.one:
        print(json.dumps(one(args.shared, args.one[0], int(args.one[1]), args.every)))
        return 0
    known: dict[str, Any] = {}
    if args.runs and args.runs.exists():
        known = {line["key"]: line for line in map(json.loads, args.runs.read_text().splitlines())}
    variants = list(dict.fromkeys(["sft", *args.only]))
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    for seed in range(args.seeds):
        for variant in variants:
            key = json.dumps([variant, seed, args.every, VARIANTS[variant]])
            if key not in known:
                command = [sys.executable, __file__, "--shared", str(args.shared), "--every", str(args.every)]
                done = subprocess.run(
                    [*command, "--one", variant, str(seed)], stdout=subprocess.PIPE, text=True, check=True
                )
                known[key] = {"key": key, **json.loads(done.stdout.splitlines()[-1])}
                if args.runs:
                    with args.runs.open("a") as lines:
                        lines.write(json.dumps(known[key]) + "\n")
            runs[variant].append(known[key])
    text = [line for share in args.share for line in ("", *lines_of(runs, share))]
    return report([f"seeds 0 to {args.seeds - 1}", *text], [], {"runs": runs}, args.json)


def lines_of(runs: dict[str, list[dict[str, Any]]], share: float) -> list[str]:
    """Medians over seeds of the ratios to LoRA of the same seed."""
    rows = []
    for variant, found in runs.items():
        times, steps, kept, memory = [], [], [], []
        for run, plain in zip(found, runs["sft"], strict=True):
            base, lora = plain["looks"][0], plain["looks"][-1]
            target = base["answers"] - share * (base["answers"] - lora["answers"])
            ours, theirs = reached(run["looks"], target), reached(plain["looks"], target)
            memory.append(run["bytes"] / plain["bytes"])
            if ours and theirs:
                times.append(ours["seconds"] / theirs["seconds"])
                steps.append(ours["step"])
                kept.append((lora["stories"] - ours["stories"]) / (lora["stories"] - base["stories"]))
        cells = ["-"] * 3
        if times:
            cells = [f"{statistics.median(steps):g}", *(f"{statistics.median(each):.2f}" for each in (times, kept))]
        rows.append([variant, f"{len(times)} of {len(found)}", *cells, f"{statistics.median(memory):.2f}"])
    head = ["method", "reached", "steps", "time / LoRA's", "retention there", "peak memory / LoRA's"]
    return [f"to {share:.0%} of LoRA's gain in answers", "", table(head, rows)]


if __name__ == "__main__":
    sys.exit(main())
