r"""Does a model forget more, the further a task lies from what it was trained on? The lab's task at several distances.

    python benchmarks/lab_distance.py --work FOLDER --picture docs/images/lab-distance.svg

`lab` is tuned on the lab's RAG task in each way of ``TASKS``, from one bare document answered in a sentence, nearly
what its own training asked, to twelve documents with unanswerable and outdated ones answered in a word; with LoRA and
with SelfAug, all else alike. Each is one `selfaug train`, one `selfaug evaluate` and one `selfaug shift`. Distance is
what the base pays for the task's right answers before any training, in nats per token; forgetting is the fall of the
mean of all general skills, in points; shift is KL(base ‖ tuned) at the prompt positions, in nats per token. Runs that
lie finished in FOLDER are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import quiet, table
from scipy import stats

from selfaug.cli.main import main as selfaug
from selfaug.common.statistics import difference
from selfaug.evaluation.results import items_of, read_results, read_samples
from selfaug.lab.task import Distance, rows
from selfaug.lab.world import World

NEAR = {"documents": 1, "sentences": 0, "known": 0.0, "terse": False, "unanswerable": 0.0, "outdated": 0.0}
TASKS: dict[str, dict[str, Any]] = {
    "1 document, in a sentence": NEAR,
    "1 document, terse": {**NEAR, "terse": True},
    "4 documents, in a sentence": {**NEAR, "documents": 4, "sentences": 1},
    "4 documents, terse": {**NEAR, "documents": 4, "sentences": 1, "terse": True},
    "4 documents, terse, 15 % unanswerable, 10 % outdated": {},
    "4 documents, terse, 50 % unanswerable": {"unanswerable": 0.5},
    "4 documents of 6 more sentences, terse": {"sentences": 6},
    "12 documents, terse": {"documents": 12},
}
METHODS = ("sft", "selfaug")
TRAIN_ROWS, TEST_ROWS, SKILL_ITEMS, SHIFT_ROWS = 800, 200, 60, 60


def verb(*words: object) -> None:
    """What a user would type, in this process."""
    text = [str(word) for word in words]
    if code := selfaug(text):
        raise SystemExit(f"selfaug {' '.join(text)} ended with {code}")


def measured(work: Path, place: int, method: str, rate: float, epochs: int) -> dict[str, Any]:
    """One training and what came of it; what is there already is kept."""
    distance = Distance(**list(TASKS.values())[place])
    files = {part: work / f"{place}-{part}.jsonl" for part in ("train", "test")}
    for part, count in (("train", TRAIN_ROWS), ("test", TEST_ROWS)):
        made = rows(part, count, World.make(), distance)  # type: ignore[arg-type]
        files[part].write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    run = work / f"{place}-{method}"
    start = time.perf_counter()
    if not (run / "adapter").is_dir():
        verb(
            "train", "--method", method, "--model_name_or_path", "lab", "--dataset_name", files["train"],
            "--output_dir", run, "--overwrite_output_dir", "true", "--learning_rate", rate,
            "--num_train_epochs", epochs, "--per_device_train_batch_size", 16,
            "--lora_dropout", 0, "--logging_steps", 10, "--report_to", "none", "--use_cpu", "true",
            "--save_strategy", "no",
        )  # fmt: skip
    if not (run / "results.json").exists():
        verb("evaluate", run, "--data", files["test"], "--general", "lab", "--general_limit", SKILL_ITEMS,
             "--batch_size", 100, "--max_new_tokens", 24, "--store", work / "measured")  # fmt: skip
    if not (run / "shift.json").exists():
        verb("shift", run, "--dataset_name", files["test"], "--limit", SHIFT_ROWS, "--layers", "false")
    print(f"{run.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return found(run)


def found(run: Path) -> dict[str, Any]:
    """What a finished run says, read from its own files."""
    metrics = read_results(run / "results.json")["parts"]["task"]["metrics"]
    shift = json.loads((run / "shift.json").read_text())["checkpoints"][-1]
    general = [s for s in read_samples(run / "samples.jsonl") if s["part"].startswith("general:")]
    base, tuned = items_of(general, "acc")
    fall = difference([(tuned, base)], shared_items=True)
    assert fall is not None
    return {
        "distance": metrics["answer_nll"]["base"]["value"],
        "base": 100 * metrics["exact_match"]["base"]["value"],
        "task": 100 * metrics["exact_match"]["tuned"]["value"],
        "shift": shift["totals"]["prompt"]["base_to_tuned"]["value"],
        "forgetting": 100 * fall.value,
        "interval": [100 * end for end in fall.interval or (float("nan"), float("nan"))],
    }


def draw(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Shift and forgetting against distance, a mark a run; the same runs give the same bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    looks = {"sft": ("#D55E00", "o", "LoRA"), "selfaug": ("#0072B2", "s", "SelfAug")}
    with mpl.rc_context({"svg.hashsalt": "selfaug", "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(8.8, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        for method, points in runs.items():
            colour, marker, label = looks[method]
            x = [point["distance"] for point in points]
            left.plot(x, [p["shift"] for p in points], marker, color=colour, label=label)
            y = [p["forgetting"] for p in points]
            spread = [[v - p["interval"][0] for v, p in zip(y, points, strict=True)],
                      [p["interval"][1] - v for v, p in zip(y, points, strict=True)]]  # fmt: skip
            right.errorbar(x, y, spread, fmt=marker, color=colour, label=label, capsize=2, elinewidth=1)
        left.set_ylabel("shift on prompts, nats per token")
        right.set_ylabel("forgetting, points of the general mean")
        for axes in (left, right):
            axes.set_xlabel("distance, nats per token of the answers")
            axes.grid(alpha=0.25, linewidth=0.6)
        right.axhline(0, color="0.6", linewidth=0.8)
        left.legend(frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else {})


def coefficient(points: Sequence[dict[str, Any]], what: str) -> str:
    """Spearman's of distance and ``what``, with its p value: of so few runs, no more is claimed."""
    result = stats.spearmanr([p["distance"] for p in points], [p[what] for p in points])
    return f"{what} {result.statistic:.2f} (p {result.pvalue:.3f})"


def main() -> int:
    """Run what is missing, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="Folder of the runs; finished ones are kept.")
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--picture", type=Path, help="SVG or PNG.")
    args = parser.parse_args()
    quiet()
    args.work.mkdir(parents=True, exist_ok=True)
    runs = {
        method: [measured(args.work, place, method, args.learning_rate, args.epochs) for place in range(len(TASKS))]
        for method in METHODS
    }
    lines = []
    for place in sorted(range(len(TASKS)), key=lambda i: runs["sft"][i]["distance"]):
        plain = runs["sft"][place]
        line = [list(TASKS)[place], f"{plain['distance']:.2f}", f"{plain['base']:.0f}"]
        for method in METHODS:
            run = runs[method][place]
            low, high = run["interval"]
            cells = [f"{run['task']:.0f}", f"{run['shift']:.3f}", f"{run['forgetting']:.1f} [{low:.0f}, {high:.0f}]"]
            line += cells
        lines.append(line)
    each = [f"{name}: {what}" for name in ("LoRA", "SelfAug") for what in ("task EM", "shift", "forgetting")]
    print(table(["task", "distance", "base EM", *each], lines))
    for method, points in runs.items():
        print(
            f"{method}, Spearman of distance and: {', '.join(coefficient(points, w) for w in ('shift', 'forgetting'))}"
        )
    if args.picture:
        draw(runs, args.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
