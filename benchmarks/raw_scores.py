r"""What did each run of a comparison reach, in plain scores? A table and a picture of a study of `selfaug compare`.

    python benchmarks/raw_scores.py STUDY --metric exact_match --picture docs/images/lab-rates.svg

`compare` scales both axes by what LoRA gained and lost and reports half of the items; here stand the task's score and
the mean of the general parts of all items, shares in percent, a mark a setting (the mean of its seeds), a line a curve.
Every other setting with the seeds of the plain yardstick (or of the one that `--against` names) is held against it,
pair by pair: the same seeds and items; 95 % intervals by bootstrap over seeds, then items. `won back` is
(general - plain) / (base - plain).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from measure import table

from selfaug.common.statistics import Items, difference
from selfaug.evaluation.results import items_of, primary, read_results, read_samples

Point = tuple[float, float]


def score(results: dict[str, Any], metric: str, whose: str) -> Point:
    """Of one run: the task's metric, and the mean over the general parts of each one's own."""
    task = next(part["metrics"][metric] for part in results["parts"].values() if part["group"] == "task")
    general = [scale(entry) * entry[whose]["value"] for _, entry in primary(results, "general").values()]
    return scale(task) * task[whose]["value"], sum(general) / len(general)


def scale(entry: dict[str, Any]) -> float:
    """Shares are shown in percent, nats as they are."""
    return 100.0 if entry["unit"] == "fraction" else 1.0


def pairs(plain: list[Path], tuned: list[Path], metric: str | None) -> list[tuple[Items, Items]]:
    """(plain, other) of each seed, item by item: of the task's metric, or with ``None`` of all general items.

    Parts are pooled, each in its primary metric: a part weighs as much as it has items (or tokens).
    """
    return list(zip(*([_items(run, metric) for run in runs] for runs in (plain, tuned)), strict=True))


def _items(run: Path, metric: str | None) -> Items:
    results = read_results(run / "results.json")
    names = {part: metric or name for part, (name, _) in primary(results, "task" if metric else "general").items()}
    samples = sorted(read_samples(run / "samples.jsonl"), key=lambda s: (s["part"], str(s["id"])))
    each = [items_of([s for s in samples if s["part"] == part], name)[1] for part, name in sorted(names.items())]
    return Items(
        *(np.concatenate([getattr(items, side) for items in each]) for side in ("numerator_n", "denominator_n"))
    )


def against(
    runs: dict[str, list[Path]], one: str, plain: str, metric: str, scores: dict[str, Point], scales: Point
) -> list[list[str]]:
    """What each setting differs by from `one`, in points or nats, and how much of what the plain one lost it keeps."""
    lines = []
    for setting, folders in runs.items():
        if setting == one or setting.startswith("sft") or len(folders) != len(runs[one]):
            continue
        line = [setting]
        for of, by in zip((metric, None), scales, strict=True):
            found = difference(pairs(runs[one], folders, of), shared_items=True)
            assert found is not None
            low, high = found.interval or (float("nan"), float("nan"))
            digits = 1 if by == 100 else 4
            line.append(f"{by * found.value:+.{digits}f} [{by * low:+.{digits}f}, {by * high:+.{digits}f}]")
        lost = scores["base"][1] - scores[plain][1]
        lines.append([*line, f"{(scores[setting][1] - scores[plain][1]) / lost:.0%}"])
    return lines


def draw(curves: dict[str, list[tuple[float, Point]]], base: Point, metric: str, scales: Point, path: Path) -> None:
    """The same numbers give the same bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "selfaug", "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(6.8, 4.2), layout="constrained")
        axes = figure.add_subplot()
        axes.scatter(*base, facecolors="none", edgecolors="#777777")
        axes.annotate("base", base, textcoords="offset points", xytext=(6, 4), color="#777777")
        looks = zip(("#56B4E9", "#E69F00", "#D55E00", "#0072B2", "#009E73", "#CC79A7"), "os^DvP", strict=True)
        for (name, points), (colour, marker) in zip(curves.items(), looks, strict=False):
            xs, ys = zip(*(point for _, point in points), strict=True)
            axes.plot(xs, ys, color=colour, marker=marker, markersize=5, linewidth=1.2, label=name)
            for value, point in points:
                axes.annotate(f"{value:g}", point, textcoords="offset points", xytext=(6, -3), fontsize=7, color=colour)
        units = [", percent" if by == 100 else ", nats" for by in scales]
        axes.set_xlabel(f"task, {metric.replace('_', ' ')}{units[0]}")
        axes.set_ylabel(f"general, mean{units[1]}")
        if scales[1] == 100:
            axes.set_ylim(0, 102)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.legend(frameon=False, loc="lower left")
        figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else {})


def main() -> None:
    """Print the table and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="Folder of a finished comparison.")
    parser.add_argument("--name", default="comparison", help="Of its table.")
    parser.add_argument("--metric", default="exact_match", help="Of the task.")
    parser.add_argument("--against", metavar="SETTING", help="As the table names it (default: the plain yardstick).")
    parser.add_argument("--picture", type=Path, help="SVG or PNG.")
    args = parser.parse_args()
    comparison = json.loads((args.study / f"{args.name}.json").read_text("utf-8"))
    for world in comparison["worlds"]:
        show(world, [p for p in comparison["points"] if p["world"] == world["world"]], args)


def show(world: dict[str, Any], points: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """What has one base and one plain yardstick."""
    curves: dict[str, list[tuple[float, Point]]] = {}
    lines, scores, runs = [], {"base": (0.0, 0.0)}, {}
    for point in sorted(points, key=lambda p: (p["curve"], p["value"])):
        label = point["setting"]
        runs[label] = [args.study / "runs" / name for name in point["runs"]]
        found = [read_results(run / "results.json") for run in runs[label]]
        each = [score(results, args.metric, "tuned") for results in found]
        results = found[0]
        scores["base"] = score(results, args.metric, "base")
        scores[label] = (sum(task for task, _ in each) / len(each), sum(general for _, general in each) / len(each))
        curves.setdefault(point["curve"], []).append((point["value"], scores[label]))
        lines.append([label, str(len(found)), *map("{:.4g}".format, scores[label])])
    head = ["setting", "seeds", f"task, {args.metric}", "general"]
    if world["world"]:
        print(f"\n{world['world']}\n")
    print(table(head, [["base", "", *map("{:.4g}".format, scores["base"])], *lines]))
    plain = world["lora"]["setting"]
    part = next(part for part in results["parts"].values() if part["group"] == "task")
    scales = scale(part["metrics"][args.metric]), scale(next(iter(primary(results, "general").values()))[1])
    one = args.against or plain
    if one not in runs:
        raise SystemExit(f"error: --against: {one!r} is none of {', '.join(runs)}")
    if found_lines := against(runs, one, plain, args.metric, scores, scales):
        print("\n" + table([f"minus {one}", "task", "general", "won back"], found_lines))
    if args.picture:
        path = args.picture.with_stem("-".join([args.picture.stem, *world["world"].replace("/", "-").split()]))
        draw(curves, scores["base"], args.metric, scales, path)


if __name__ == "__main__":
    main()
