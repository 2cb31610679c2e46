"""Does SelfAug keep what a small story model knew, while it learns to answer from documents?

    python benchmarks/mctest_stories260k.py --shared DIR --seeds 3

`DIR/models/stories260k`, a language model of children's stories, is tuned with LoRA (r 16, all linear layers, learning
rate 2e-3, 2 epochs, batch 16, float32) on the questions of `DIR/data/mctest` (mc160 and mc500, training parts) whose
whole story fits its 512 tokens. Before and after: the NLL of 150 stories of `DIR/data/tinystories` (what it knew) and
of the answers of MCTest's dev and test parts (what it learns), in nats per token. Methods differ in nothing but their
settings below; a run takes under a minute on two cores, and with ``--runs FILE`` those already in the file are kept.

Retention is the share of plain fine-tuning's loss on stories that is won back: (sft - method) / (sft - base).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from measure import Demand, add_common_options, quiet, report, table
from paired import LOSSES, collect, difference, mean, middle, resampled
from small_runs import LORA, METHODS, PROMPT, TRAINING, Data


def reference_deviation(data: Data, tokens: float, fraction: float) -> float:
    """How many standard deviations the logged reference tokens lie from their expectation.

    A row of n reference tokens is drawn in each epoch by itself, so the mean is ``epochs · f · Σ n`` and the variance
    ``epochs · f (1 - f) · Σ n²``.
    """
    epochs, lengths = TRAINING["num_train_epochs"], np.array(data.prompts, dtype=float)
    variance = epochs * fraction * (1 - fraction) * float((lengths**2).sum())
    difference = tokens - epochs * fraction * float(lengths.sum())
    return float(difference / variance**0.5)


def retention(method: str) -> Any:
    """Share of plain fine-tuning's loss on stories that ``method`` wins back."""

    def of(means: Mapping[tuple[str, str], float]) -> float:
        lost = means["sft", "general"] - means["base", "general"]
        return (means["sft", "general"] - means[method, "general"]) / lost

    return of


def compare(data: Data, base: dict[str, Any], runs: dict[str, list[dict[str, Any]]]) -> tuple[list[str], list[Demand]]:
    """The table over seeds and what issue 2 asks; nothing where plain fine-tuning or alignment was not run."""
    if not {"sft", "selfaug"} <= runs.keys():
        return [], []
    means = {
        (name, what): mean([item for run in found for item in run[what]])
        for name, found in {**runs, "base": [base]}.items()
        for what in LOSSES
    }
    asked = [
        ("retention of selfaug", retention("selfaug"), 0.75, True),
        ("answer NLL, selfaug - sft, nats", difference("selfaug", "sft", "answers"), 0.02, False),
    ]
    if "selfaug 1/8" in runs:
        asked.append(("retention of selfaug 1/8", retention("selfaug 1/8"), 0.75, True))
        asked.append(
            ("story NLL, selfaug 1/8 - selfaug, nats", difference("selfaug 1/8", "selfaug", "general"), 0.02, False)
        )
    lines, demands = [], []
    for name, statistic, bound, at_least in asked:
        value = statistic(means)
        low, high = middle(resampled(runs, base, statistic))
        lines.append([name, f"{value:.4f}", f"{low:.4f} .. {high:.4f}"])
        demands.append(Demand(name, value, bound, at_least))
    text = ["", table(["over all seeds", "mean", "95 % interval"], lines)]
    if "selfaug 1/8" in runs:
        deviations = [reference_deviation(data, run["reference_tokens"], 0.125) for run in runs["selfaug 1/8"]]
        text.append("reference tokens against an eighth, σ: " + ", ".join(f"{d:+.2f}" for d in deviations))
        demands.append(Demand("reference tokens, largest |σ| from an eighth", max(map(abs, deviations)), 3.0, False))
    return text, demands


def main() -> int:
    """Run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="Folder with models/stories260k and data/.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=["sft", "selfaug", "selfaug 1/8"])
    parser.add_argument("--runs", type=Path, help="JSON lines of finished runs; kept and added to.")
    add_common_options(parser)
    args = parser.parse_args()
    quiet()
    data, base, runs = collect(args.shared, args.only, args.seeds, args.runs)
    whole = sum(data.prompts) * TRAINING["num_train_epochs"]
    lines = [["base", "", *(f"{mean(base[what]):.4f}" for what in LOSSES), "", ""]]
    for method, found in runs.items():
        for seed, run in enumerate(found):
            share = run["reference_tokens"] / whole
            losses = [f"{mean(run[what]):.4f}" for what in LOSSES]
            lines.append([method, str(seed), *losses, f"{share:.3f}", f"{run['seconds']:.0f}"])
    text = [
        f"{len(data.train)} training pairs, {len(data.answers)} held-out answers, {len(data.general)} stories",
        "",
        table(["method", "seed", "story NLL", "answer NLL", "reference share", "seconds"], lines),
    ]
    statistics_text, demands = compare(data, base, runs)
    figures = {
        "settings": {"training": TRAINING, "lora": LORA, "methods": METHODS, "prompt": PROMPT},
        "counts": {"train": len(data.train), "answers": len(data.answers), "stories": len(data.general)},
        "base": {what: mean(base[what]) for what in LOSSES},
        "runs": {
            method: [{k: mean(v) if k in LOSSES else v for k, v in run.items() if k != "key"} for run in found]
            for method, found in runs.items()
        },
        "median_seconds": {m: statistics.median(r["seconds"] for r in found) for m, found in runs.items()},
    }
    return report([*text, *statistics_text], demands, figures, args.json)


if __name__ == "__main__":
    sys.exit(main())
