"""`selfaug relate`: correlates forgetting with the shift over several runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfaug.cli.config import Call, Command
from selfaug.cli.outputs import check_writable
from selfaug.common.errors import ConfigError, DataError
from selfaug.common.options import REQUIRED, option
from selfaug.common.terminal import emit, say

if TYPE_CHECKING:
    from selfaug.shift.relate import Point

__all__ = ["COMMAND", "run"]

_SHIFTS = {"base_to_tuned": "KL(base ‖ tuned)", "tuned_to_base": "KL(tuned ‖ base)"}
_PLACES = {
    "prompt": "at prompt positions",
    "data": "at all positions of the task",
    "documents": "in documents",
    "question": "in questions",
    "system": "in system texts",
    "other": "in template marks",
    "boundary": "at the boundary",
    "response": "in responses",
    "general_text": "in general text",
}


@dataclass
class Settings:
    """Settings of `selfaug relate`."""

    runs: list[str] = option(
        REQUIRED, "Folders of runs whose shift is measured.", group="Runs", metavar="RUN", positional=True
    )
    points: Literal["runs", "checkpoints"] = option(
        "runs", "'runs' for finished weights alone, 'checkpoints' for every measured checkpoint too."
    )
    where: str = option(
        "prompt", "Region whose shift is taken, or 'prompt' or 'data'.", group="What is related", metavar="PLACE"
    )
    direction: str = option("base_to_tuned", "Direction of the KL: 'base_to_tuned' or 'tuned_to_base'.", metavar="NAME")
    forgetting: str = option(
        "nll",
        "'nll' for the rise of the NLL of general text; or from results.json 'general' for the mean loss over all "
        "general parts, PART or PART:METRIC.",
        metavar="WHAT",
    )
    output: str | None = option(None, "File of the figure, .svg or .png.", group="Interval and output", metavar="FILE")
    resamples: int = option(10_000, "Number of resamples of the bootstrap over runs.")
    seed: int = option(0, "Seed of the bootstrap.")
    json: bool = option(False, "Print JSON instead of the table.")


COMMAND = Command(
    "relate",
    Settings,
    __doc__ or "",
    (
        "selfaug relate runs/* --output relation.svg",
        "selfaug relate studies/mine/runs/* --forgetting general --where documents",
    ),
)


def run(call: Call[Settings]) -> int:
    """Read the runs, print points and coefficients, draw the figure, and return the exit code."""
    from selfaug.shift.picture import ENDINGS, draw, headline
    from selfaug.shift.relate import relate

    settings = call.settings
    if settings.resamples < 100:
        raise ConfigError(f"--resamples is {settings.resamples}: too few for an interval", "give 100 or more.")
    if settings.seed < 0:
        raise ConfigError(f"--seed is {settings.seed}, and the bootstrap takes none below 0", "give 0 or more.")
    output = None if settings.output is None else Path(settings.output).expanduser()
    if output is not None and output.suffix.lower() not in ENDINGS:
        raise ConfigError(
            f"--output {settings.output} has the ending {output.suffix!r}", f"end it with {' or '.join(ENDINGS)}."
        )
    if output is not None:
        check_writable(output.parent, "the folder of --output")
    points = _points(settings)
    relation = relate(points, resamples=settings.resamples, seed=settings.seed)
    if settings.json:
        about = {name: getattr(settings, name) for name in ("where", "direction", "forgetting")}
        whole = {**about, **asdict(relation), "of": [asdict(point) for point in points]}
        emit(json.dumps(whole, indent=2, ensure_ascii=False))
    else:
        emit(f"{_table(points)}\n\n{headline(relation)}\n{relation.pearson.how}, {relation.confidence:.0%}")
    if output is not None:
        lost = "NLL of general text, tuned − base (nats per token)"
        draw(
            points,
            relation,
            output,
            shift_label=f"{_SHIFTS[settings.direction]} {_PLACES[settings.where]} (nats per token)",
            forgetting_label=lost if settings.forgetting == "nll" else f"forgetting: {settings.forgetting}",
        )
        say(f"written to {output}")
    return 0


def _points(settings: Settings) -> list[Point]:
    from selfaug.run.folder import RunFolder
    from selfaug.shift.relate import points_of

    points: list[Point] = []
    first: tuple[Path, dict[str, Any]] | None = None
    seen: set[Path] = set()
    for name in settings.runs:
        folder = RunFolder.open(name)
        if folder.path.resolve() in seen:
            raise ConfigError(f"{folder.path} is named twice, and would count twice", "name each run once.")
        seen.add(folder.path.resolve())
        run_points, about = points_of(
            folder,
            where=settings.where,
            direction=settings.direction,
            forgetting=settings.forgetting,
            every=settings.points == "checkpoints",
        )
        if first is not None and about != first[1]:
            differing = [name for name in about["sources"] if about["sources"][name] != first[1]["sources"][name]]
            what = ", ".join([*differing, *(["base"] if about["base"] != first[1]["base"] else [])])
            raise DataError(
                f"the shift of {folder.path} was measured on something else than that of {first[0]} ({what}), so the "
                "two cannot be compared",
                "run `selfaug shift` on all of them with the same --dataset_name, --general_text and --max_length.",
            )
        first = first or (folder.path, about)
        # Folders of two runs may have the same name.
        unique = folder.path.name if all(p.run != folder.path.name for p in points) else str(folder.path)
        points += [type(point)(**{**asdict(point), "run": unique}) for point in run_points]
    return points


def _table(points: Sequence[Point]) -> str:
    from selfaug.shift.table import columns

    head = ("run", "state", "method", "alpha", "shift", "forgetting")
    rows = [[p.run, p.state, p.method, f"{p.alpha:g}", f"{p.shift:.4f}", f"{p.forgetting:+z.4f}"] for p in points]
    return columns(head, rows, 3)
