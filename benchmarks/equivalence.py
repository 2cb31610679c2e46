"""Does aligning a part keep as much as aligning all? A test of equivalence on MCTest, SQuAD or the lab.

    python benchmarks/equivalence.py --shared DIR --seeds 5 --runs FILE
    python benchmarks/equivalence.py --shared DIR --data lab --learning_rate 1e-2 --seeds 5 --runs FILE

On MCTest and SQuAD model and training are those of `mctest_stories260k.py`, and the general texts are stories. In the
lab (`--data lab`) the model is `lab`, the task that of `selfaug lab task`, and the general texts are the right answers
to test items of its skills, which so short a training spoils at a high learning rate alone. Settings differ in the
drawn share f: all (1), an eighth of the sequences, an eighth of the tokens, and an eighth of the tokens of an eighth of
the sequences (1/64); plain LoRA stands beside them, to show what there was to lose. Of each, with d the general NLL
minus that of f = 1 in nats per token, runs of one seed and losses of one text as pairs:

    equivalent  where the 90 % interval of d lies inside ±0.02: both one-sided tests at 5 % reject a larger difference
    worse       where it lies above 0.02 (better: below -0.02)
    not shown   otherwise

The interval must do so both as a bootstrap (over seeds, then texts) and as Student's t over the seeds' differences:
a bootstrap of few seeds is too narrow, and t over seeds says nothing of other texts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measure import Demand, add_common_options, quiet, report, table
from paired import LOSSES, RESAMPLES, collect, difference, mean, middle, resampled
from scipy import stats
from small_runs import LORA, METHODS, PROMPT, SOURCES, TRAINING

PLAIN, ALL = "sft", "selfaug"
PARTS = ("selfaug 1/8", "selfaug 1/8 of tokens", "selfaug 1/64")
MARGIN = 0.02  # nats per token
LEVELS = (0.90, 0.95)


def over_seeds(differences: Sequence[float], level: float) -> tuple[float, float]:
    """Student's interval of the mean of the seeds' differences; infinitely wide for one seed."""
    if len(differences) < 2:
        return -np.inf, np.inf
    half = float(stats.t.ppf((1 + level) / 2, len(differences) - 1) * stats.sem(differences))
    return float(np.mean(differences)) - half, float(np.mean(differences)) + half


def verdict(intervals: Sequence[tuple[float, float]], margin: float = MARGIN) -> str:
    """What intervals of one difference say together."""
    low, high = min(low for low, _ in intervals), max(high for _, high in intervals)
    if -margin < low and high < margin:
        return "equivalent"
    if low > margin:
        return "worse"
    return "better" if high < -margin else "not shown"


def compare(base: dict[str, Any], runs: Mapping[str, list[dict[str, Any]]], what: str) -> dict[str, dict[str, Any]]:
    """Of each part: the seeds' differences from all, their mean, intervals by level and kind, and the verdict."""
    found = {}
    for part in PARTS:
        pair = {ALL: runs[ALL], part: runs[part]}
        each = [mean(ours[what]) - mean(whole[what]) for ours, whole in zip(runs[part], runs[ALL], strict=True)]
        values = resampled(pair, base, difference(part, ALL, what))
        bootstrap = {level: middle(values, level) for level in LEVELS}
        student = {level: over_seeds(each, level) for level in LEVELS}
        found[part] = {
            "differences": each,
            "mean": float(np.mean(each)),
            "bootstrap": bootstrap,
            "student": student,
            "verdict": verdict([bootstrap[LEVELS[0]], student[LEVELS[0]]]),
        }
    return found


def as_row(part: str, f: Mapping[str, Any]) -> list[str]:
    """One line of the table."""
    spread = [*(f["bootstrap"][level] for level in LEVELS), *(f["student"][level] for level in LEVELS)]
    each = f["differences"]
    line = [part, f"{f['mean']:+.4f}", f"{min(each):+.4f} .. {max(each):+.4f}"]
    return [*line, *(f"{low:+.4f} .. {high:+.4f}" for low, high in spread), f["verdict"]]


def main() -> int:
    """Run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="Folder with models/stories260k and data/.")
    parser.add_argument("--data", choices=list(SOURCES), default="mctest")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--learning_rate", type=float, default=TRAINING["learning_rate"])
    parser.add_argument("--runs", type=Path, help="JSON lines of finished runs; kept and added to.")
    add_common_options(parser)
    args = parser.parse_args()
    quiet()
    training = {**TRAINING, "learning_rate": args.learning_rate}
    data, base, runs = collect(args.shared, [PLAIN, ALL, *PARTS], args.seeds, args.runs, args.data, **training)
    whole = sum(data.prompts) * TRAINING["num_train_epochs"]
    lines = [["base", *(f"{mean(base[what]):.4f}" for what in LOSSES), "", ""]]
    for setting, found in runs.items():
        losses = [f"{mean([item for run in found for item in run[what]]):.4f}" for what in LOSSES]
        share = sum(run["reference_tokens"] for run in found) / whole / len(found)
        lines.append([setting, *losses, f"{share:.3f}", f"{sum(run['seconds'] for run in found) / 60:.1f}"])
    general, answers = (compare(base, runs, what) for what in LOSSES)
    kinds = [f"{level:.0%} {kind}" for kind in ("bootstrap", "t") for level in LEVELS]
    head = ["minus all, nats", "mean", "seeds", *kinds, f"±{MARGIN}"]
    text = [
        f"seeds 0 to {args.seeds - 1}; {len(data.train)} training pairs, {len(data.general)} general texts, "
        f"{len(data.answers)} answers; {RESAMPLES} resamples",
        "",
        table(["setting", "general NLL", "answer NLL", "reference share", "minutes"], lines),
        "",
        table([f"general: {head[0]}", *head[1:]], [as_row(part, f) for part, f in general.items()]),
        "",
        table([f"answers: {head[0]}", *head[1:]], [as_row(part, f) for part, f in answers.items()]),
    ]
    demands = [
        Demand(
            f"general NLL, {part} - all, furthest end of the 90 % intervals",
            max(abs(end) for kind in ("bootstrap", "student") for end in f[kind][LEVELS[0]]),
            MARGIN,
            False,
        )
        for part, f in general.items()
    ]
    figures = {
        "settings": {"training": training, "lora": LORA, "prompt": PROMPT, "methods": {m: METHODS[m] for m in runs}},
        "margin": MARGIN,
        "general": general,
        "answers": answers,
    }
    return report(text, demands, figures, args.json)


if __name__ == "__main__":
    sys.exit(main())
