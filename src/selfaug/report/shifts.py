"""The shift of runs from `shift.json`, and its relation to forgetting over runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from selfaug.common.errors import ConfigError, DataError
from selfaug.common.files import read_json
from selfaug.run.folder import RunFolder

if TYPE_CHECKING:
    from selfaug.shift.relate import Point, Relation

__all__ = ["Layer", "Region", "Related", "Shift", "read_shift", "related"]

WHERE, DIRECTION = "prompt", "base_to_tuned"
"""Region and direction of the shift where the report shows a single number: those that training aligns."""


@dataclass(frozen=True)
class Region:
    """Means over a region's tokens in nats; each KL has its standard error over texts (``None`` for one text)."""

    name: str
    tokens: int
    base_to_tuned: tuple[float, float | None]
    tuned_to_base: tuple[float, float | None]
    base_nll: float
    tuned_nll: float


@dataclass(frozen=True)
class Layer:
    """Mean change of hidden states after a layer (numbered from 1): cosine to the base's, relative change of norm."""

    number: int
    cosine: float
    norm_change: float


@dataclass(frozen=True)
class Shift:
    """The shift of the finished weights, and of checkpoints.

    Args:
        regions: Measured regions by name, with ``general_text`` and the sums ``prompt`` and ``data`` of others.
        layers: Changes of hidden states by layer; empty where they were not compared.
        layers_of: Texts of ``layers``: ``data`` or ``general_text``.
        course: Step and shift of the prompt (or of general text) of each checkpoint, if several were measured.
        weights: Hash of the measured weights.
        texts: Numbers of measured rows and of pieces of general text.
    """

    regions: Mapping[str, Region]
    layers: tuple[Layer, ...]
    layers_of: str
    course: tuple[tuple[int, float], ...]
    weights: str | None
    texts: tuple[int, int]


@dataclass(frozen=True)
class Related:
    """Shift against forgetting over runs: points, coefficients (from three runs on), or the reason for none."""

    points: tuple[Point, ...]
    relation: Relation | None
    because: str | None


def read_shift(run: RunFolder) -> Shift | None:
    """Return the measured shift; ``None`` where there is no file.

    Raises:
        DataError: If the file is damaged.
    """
    path = run.shift
    if not path.exists():
        return None
    again = f"run `selfaug shift {run.path}` again."
    whole = read_json(path, hint=again)
    try:
        entries = whole["checkpoints"]
        last = next((entry for entry in entries if entry["name"] == "final"), None)
        if last is None:
            return None
        means = {**last["regions"], **last["totals"]}
        regions = {name: _region(name, entry) for name, entry in means.items()}
        layers_of = "data" if "data" in means else "general_text"
        sources = whole["sources"]
        general = sources.get("general_text") or {}
        return Shift(
            regions=regions,
            layers=tuple(_layer(entry, layers_of) for entry in last["layers"]),
            layers_of=layers_of,
            course=_course(entries),
            weights=last.get("weights"),
            texts=(int(sources["data"]["measured"]), int(general.get("measured", 0))),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read: {error!r}", again) from None


def _region(name: str, entry: Mapping[str, Any]) -> Region:
    kls = [(float(entry[kind]["value"]), entry[kind].get("stderr")) for kind in ("base_to_tuned", "tuned_to_base")]
    nlls = [float(entry[kind]["value"]) for kind in ("base_nll", "tuned_nll")]
    return Region(name, int(entry["tokens"]), kls[0], kls[1], *nlls)


def _layer(entry: Mapping[str, Any], place: str) -> Layer:
    of = entry["regions"][place]
    return Layer(int(entry["layer"]), float(of["cosine"]["value"]), float(of["norm_change"]["value"]))


def _course(entries: Sequence[Mapping[str, Any]]) -> tuple[tuple[int, float], ...]:
    by_step = {}
    for entry in entries:
        means = {**entry["regions"], **entry["totals"]}
        place = means.get(WHERE) or means.get("general_text")
        if place and entry.get("step") is not None:
            by_step[int(entry["step"])] = float(place[DIRECTION]["value"])
    return tuple(sorted(by_step.items())) if len(by_step) > 1 else ()


def related(runs: Sequence[RunFolder], labels: Sequence[str]) -> Related:
    """Relate the shift on prompts to the rise of the NLL of general text, over runs measured on the same texts."""
    from selfaug.shift.relate import Point, points_of, relate

    points: list[Point] = []
    first: Any = None
    for run, label in zip(runs, labels, strict=True):
        try:
            own, about = points_of(run, where=WHERE, direction=DIRECTION)
        except (DataError, ConfigError) as error:
            return Related((), None, f"{error.message}.")
        if first is not None and about != first:
            return Related((), None, f"The shift of run {label} was measured on other texts than that of {labels[0]}.")
        first = first or about
        points += [Point(**{**asdict(point), "run": label}) for point in own]
    if len(points) < 3:
        return Related(tuple(points), None, "A coefficient needs three runs or more.")
    try:
        return Related(tuple(points), relate(points), None)
    except DataError as error:
        return Related(tuple(points), None, f"There is no coefficient: {error.message}.")
