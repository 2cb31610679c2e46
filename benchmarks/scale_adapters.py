r"""What does `selfaug scale` keep of an adapter that forgot, and does its limit hold on items that it never saw?

    python benchmarks/scale_adapters.py RUN --max_drop text:general=0.1 --score task:answer_nll --items FILE \\
        --data test.jsonl --general_data general.jsonl

Every scale is measured once on all items (as `selfaug evaluate` measures; finished parts are kept in RUN/evaluation).
Then, for each of many seeds, half of the items of each part are drawn for the search of one factor for all modules,
which chooses on one half of them and confirms on the other, and the drop on the rest tells whether the limit was kept.
No model runs for that.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from measure import quiet, table

from selfaug.cli import evaluate as verb
from selfaug.cli.evaluate_parts import all_parts
from selfaug.cli.subject import opened
from selfaug.common.progress import counting
from selfaug.common.store import Store
from selfaug.evaluation.run import evaluate
from selfaug.report.gate import check, parse_rule
from selfaug.run.models import Sides, check_origin
from selfaug.scaling.items import Batches, Measured, drawn, pooled
from selfaug.scaling.scales import Scales, changed, modules_of
from selfaug.scaling.search import Bench, candidates, uniform

SCALES = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


@dataclass
class Stored:
    """Items of a part by their places, whose values are known at each scale."""

    name: str
    places: dict[str, list[int]]
    needs_model: bool = field(default=True)

    def items(self) -> dict[str, int]:
        """Number of items by subtask."""
        return {subtask: len(of) for subtask, of in self.places.items()}

    def only(self, places: Mapping[str, Sequence[int]]) -> Stored:
        """Some of them."""
        return Stored(self.name, {s: sorted(self.places[s][i] for i in of) for s, of in places.items()})


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """By scale and part: the entry, and each item's subtask and values."""
    names = ("run", "adapter", "model_name_or_path", "prompt", "data", "general", "general_data", "limit",
             "general_limit", "max_new_tokens", "max_gen_toks", "batch_size", "no_task")  # fmt: skip
    settings = verb.Settings(**{name: getattr(args, name) for name in names})
    folder = opened(settings)
    origin = check_origin(folder)
    parts = all_parts(settings, folder, origin)
    sides, store, modules = Sides(origin), Store(folder.evaluation), modules_of(origin.final)
    found: dict[str, Any] = {}
    for scale in args.scales:
        scales = Scales(f"{scale:g}", dict.fromkeys(modules, scale))
        with sides.changed(scales.weights_hash(origin.tuned_hash), partial(changed, scales=scales)):
            for name, entry, samples in evaluate(parts, sides, store, seed=0, bar=counting, say=print):
                kept = {label: {k: v for k, v in one.items() if k in ("unit", "higher_is_better", "primary")}
                        | {"difference": {}} for label, one in entry["metrics"].items()}  # fmt: skip
                found.setdefault(f"{scale:g}", {})[name] = {
                    "entry": {"group": entry["group"], "name": entry["name"], "metrics": kept,
                              "seconds": entry["seconds"]},
                    "samples": [{"subtask": s.get("subtask", name), **{side: {"values": s[side]["values"]}
                                 for side in ("base", "tuned")}} for s in samples],
                }  # fmt: skip
        args.items.write_text(json.dumps(found))
    return found


def draw(found: Mapping[str, Any], seed: int) -> tuple[list[Stored], list[Stored]]:
    """Half of the items of each subtask for the search, and the rest."""
    rng = random.Random(seed)
    halves: tuple[list[Stored], list[Stored]] = ([], [])
    for name, body in next(iter(found.values())).items():
        by_subtask: dict[str, list[int]] = {}
        for place, sample in enumerate(body["samples"]):
            by_subtask.setdefault(sample["subtask"], []).append(place)
        for of in by_subtask.values():
            rng.shuffle(of)
        halves[0].append(Stored(name, {s: sorted(of[: len(of) // 2]) for s, of in by_subtask.items()}))
        halves[1].append(Stored(name, {s: sorted(of[len(of) // 2 :]) for s, of in by_subtask.items()}))
    return halves


def of_items(found: Mapping[str, Any], parts: Sequence[Any], scales: Scales) -> Iterator[tuple[str, Measured]]:
    """The stored values of some items at a scale."""
    for part in parts:
        body = found[scales.label][part.name]
        samples = [body["samples"][place] for of in part.places.values() for place in of]
        yield part.name, Measured(body["entry"], samples)


def gains(found: Mapping[str, Any], parts: Sequence[Any], scale: str, names: Sequence[str]) -> list[float]:
    """Gains of a scale on some items, in the order of the names."""
    kept = {name: [one] for name, one in of_items(found, parts, Scales(scale, {}))}
    results = pooled(kept, [name.rpartition(":")[2] for name in names], seed=0)
    return [check(parse_rule("min-gain", f"{name}=0"), results)[0][0].gain.value for name in names]


def subject(description: str | None) -> argparse.ArgumentParser:
    """A parser with the adapter that is scaled, and the file of what was measured of it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="A run of `selfaug train`; or these three of another adapter:")
    parser.add_argument("--adapter")
    parser.add_argument("--model_name_or_path")
    parser.add_argument("--prompt")
    parser.add_argument("--items", type=Path, required=True, help="JSON of all items' values; kept.")
    return parser


def main() -> None:
    """Measure what is missing, draw, and print both tables."""
    parser = subject(__doc__)
    parser.add_argument("--max_drop", required=True)
    parser.add_argument("--score", default="task")
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--general", nargs="+", default=[])
    parser.add_argument("--general_data", nargs="+", default=[])
    parser.add_argument("--limit", type=int)
    parser.add_argument("--general_limit", type=int)
    parser.add_argument("--max_new_tokens", type=int, default=16)
    parser.add_argument("--max_gen_toks", type=int)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--scales", type=float, nargs="+", default=list(SCALES))
    parser.add_argument("--seeds", type=int, default=20)
    parser.set_defaults(no_task=False)
    args = parser.parse_args()
    quiet()
    found = json.loads(args.items.read_text()) if args.items.exists() else {}
    if list(found) != [f"{scale:g}" for scale in args.scales]:
        found = measured(args)
    rule = parse_rule("max-drop", args.max_drop)
    everything = [Stored(one.name, {s: [*of, *rest.places[s]] for s, of in one.places.items()})
                  for one, rest in zip(*draw(found, 0), strict=True)]  # fmt: skip
    names = [rule.name, args.score]
    whole = {scale: gains(found, everything, scale, names) for scale in found}
    print(table(["scale", f"gain of {rule.name}", f"gain of {args.score}"],
                [[scale, f"{one[0]:+.4f}", f"{one[1]:+.4f}"] for scale, one in whole.items()]))  # fmt: skip

    lines, kept, written, chosen = [], 0, 0, []
    for seed in range(args.seeds):
        given, rest = draw(found, seed)
        halves, looks = drawn(given, 4, seed)  # type: ignore[arg-type]
        batches = {name: Batches("task" if name.partition(":")[0] == "task" else "general", one.choosing,
                                 one.confirming, one.counts) for name, one in halves.items()}  # fmt: skip
        bench = Bench(lambda parts, scales: of_items(found, parts, scales), batches, [rule], args.score, looks, seed)
        uniform(bench, ["all"], args.scales)
        confirmed = (bench.confirm(one.scales) for one in candidates(bench.trials))
        best = next((one.scales.label for one in confirmed if one.verdict == "pass"), None)
        if best is None:
            lines.append([str(seed), "none", "", "", "", str(len(bench.trials))])
            continue
        general, task = gains(found, rest, best, names)
        floor = -float(rule.limit) / (100 if rule.scale == "pt" else 1)
        written += 1
        kept += general >= floor
        chosen.append((float(best), general, task))
        early = sum(one.looks < looks for one in bench.trials if one.half == "choosing")
        lines.append([str(seed), best, f"{general:+.4f}", "yes" if general >= floor else "no", f"{task:+.4f}",
                      f"{len(bench.trials)}, {early} early"])  # fmt: skip
    print(table(["seed", "written", "held-out general", "kept", "held-out task", "trials"], lines))
    print(f"{args.max_drop}: written in {written} of {args.seeds} draws, kept on held-out items in {kept} of {written}")
    if chosen:
        means = [statistics.fmean(column) for column in zip(*chosen, strict=True)]
        print(f"means: scale {means[0]:.3f}, general {means[1]:+.4f}, task {means[2]:+.4f}")


if __name__ == "__main__":
    main()
