"""The correlation of shift and forgetting over runs, with intervals.

Forgetting is the rise of the NLL of general text from base to tuned model (from ``shift.json``), or the loss in a
metric of ``results.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from selfaug.common.errors import ConfigError, DataError, nearest
from selfaug.common.files import read_json
from selfaug.common.statistics import interval
from selfaug.shift.regions import REGIONS
from selfaug.shift.tally import TOTALS

if TYPE_CHECKING:
    from selfaug.run.folder import RunFolder

__all__ = ["DIRECTIONS", "GENERAL", "NLL", "PLACES", "Coefficient", "Point", "Relation", "points_of", "relate"]

PLACES = (*REGIONS, *TOTALS)
DIRECTIONS = ("base_to_tuned", "tuned_to_base")
GENERAL = "general"
"""Name of forgetting as the mean loss over all general parts."""
NLL = "nll"
"""Name of forgetting as tuned minus base NLL of general text, in nats per token; it needs no evaluation."""
_FEWEST = 3


@dataclass(frozen=True)
class Point:
    """One state of one run: its shift (nats per token), and its forgetting (more is worse).

    ``method`` and ``alpha`` are those of the training; ``state`` is a checkpoint's name or ``final``.
    """

    run: str
    state: str
    method: str
    alpha: float
    shift: float
    forgetting: float


@dataclass(frozen=True)
class Coefficient:
    """A coefficient in [-1, 1] with its interval (``None`` for none), and the name of the interval's method."""

    value: float
    low: float | None
    high: float | None
    how: str


@dataclass(frozen=True)
class Relation:
    """Pearson's (linear) and Spearman's (rank) coefficient of ``points`` points of ``runs`` runs."""

    pearson: Coefficient
    spearman: Coefficient
    runs: int
    points: int
    confidence: float
    resamples: int
    seed: int


def points_of(
    run: RunFolder, *, where: str, direction: str, forgetting: str = NLL, every: bool = False
) -> tuple[list[Point], dict[str, Any]]:
    """Return the points of a run, and the data and base it was measured on, which must be equal for compared runs.

    Args:
        run: Folder of a run with a ``shift.json``.
        where: Region or total of the shift, one of ``PLACES``; a run may lack it.
        direction: Direction of the KL, one of ``DIRECTIONS``.
        forgetting: Measure of forgetting: ``NLL``, ``GENERAL``, or a metric of ``results.json`` as ``part`` (its
            primary metric) or ``part:metric``.
        every: Whether each measured checkpoint is a point, not only the finished weights; ``results.json`` has only
            the finished ones.

    Raises:
        DataError: If a file is missing or damaged, or lacks a requested value.
        ConfigError: If ``where`` or ``direction`` is unknown.
    """
    for name, value, known in (("where", where, PLACES), ("direction", direction, DIRECTIONS)):
        if value not in known:
            raise ConfigError(f"--{name} {value!r} is not known.{nearest(value, known)}", f"one of {', '.join(known)}.")
    path = run.shift
    again = f"run `selfaug shift {run.path} --general_text FILE`."
    if not path.exists():
        raise DataError(f"{path} does not exist: the run's shift is not measured", again)
    shift = read_json(path, hint=again)
    try:
        about = {"sources": _what(shift["sources"]), "base": shift["base"]["weights"]}
        trained, entries = shift["run"], [e for e in shift["checkpoints"] if every or e["name"] == "final"]
        measured: list[tuple[str, Mapping[str, Any]]] = [(e["name"], {**e["regions"], **e["totals"]}) for e in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error!r}", again) from None
    points = []
    for name, means in measured:
        for needed in (where, *(("general_text",) if forgetting == NLL else ())):
            if needed not in means:
                raise DataError(f"{path} has no {needed!r} for {name}: it has {', '.join(means)}", again)
        lost = _lost_nll(means) if forgetting == NLL else _lost_metric(run, forgetting)
        method, alpha = str(trained.get("method")), float(trained.get("alpha") or 0.0)
        points.append(Point(run.path.name, name, method, alpha, float(means[where][direction]["value"]), lost))
        if forgetting != NLL and name != "final":
            raise ConfigError(
                f"--forgetting {forgetting} is measured for finished weights alone, and --points checkpoints asks for "
                "more", "leave --points out, or use the NLL of general text.",
            )  # fmt: skip
    return points, about


def _what(sources: Mapping[str, Any]) -> dict[str, Any]:
    """Return what identifies the measured data, without its paths."""
    data, general = sources["data"], sources["general_text"]
    hashes = [[file["hash"] for file in part["files"]] for part in (data, general) if part is not None]
    return {
        "data": hashes[0] or data["name"],
        "max_length": data["max_length"],
        "rows": data["measured"],
        "general_text": [*hashes[1], general["measured"]] if general is not None else None,
    }


def _lost_nll(means: Mapping[str, Any]) -> float:
    general = means["general_text"]
    return float(general["tuned_nll"]["value"]) - float(general["base_nll"]["value"])


def _lost_metric(run: RunFolder, name: str) -> float:
    from selfaug.evaluation.results import primary, read_results

    results = read_results(run.results)
    known = list(results["parts"])
    if name == GENERAL:
        entries = [entry for _, entry in primary(results, GENERAL).values()]
        if len({entry["unit"] for entry in entries}) != 1:
            raise ConfigError(
                f"--forgetting {GENERAL}: the general parts of {run.path} have different units, or there are none, and "
                "their mean would be of nothing", f"name one: {', '.join([NLL, *known])}.",
            )  # fmt: skip
        return sum(map(_lost, entries)) / len(entries)
    part, metric = (name, "") if name in known else name.rpartition(":")[::2]  # names of parts may contain colons
    if part not in known:
        part = name if name.count(":") < 2 else part
        raise ConfigError(
            f"--forgetting {name!r}: {run.path} has no part {part!r}.{nearest(part, known)}",
            f"one of {', '.join([NLL, GENERAL, *known])}.",
        )
    metrics = results["parts"][part]["metrics"]
    chosen = metric or primary(results).get(part, ("", {}))[0]
    if chosen not in metrics:
        raise ConfigError(
            f"--forgetting {name!r}: the part has no metric {chosen!r}.{nearest(chosen, metrics)}",
            f"write {part}:METRIC with one of {', '.join(metrics)}.",
        )
    return _lost(metrics[chosen])


def _lost(entry: Mapping[str, Any]) -> float:
    rise = float(entry["tuned"]["value"]) - float(entry["base"]["value"])
    return -rise if entry["higher_is_better"] else rise


def relate(points: Sequence[Point], *, resamples: int = 10_000, confidence: float = 0.95, seed: int = 0) -> Relation:
    """Return Pearson's and Spearman's coefficient of shift and forgetting, with bootstrap intervals over runs.

    A run is drawn with all its points, since checkpoints of one training are not independent. The interval is
    bias-corrected and accelerated (BCa). Where BCa is undefined (all resamples give the same value, or some have no
    coefficient), it is the percentile interval of the resamples that have a coefficient.

    Raises:
        DataError: If there are fewer than three runs, or all have the same shift or the same forgetting.
    """
    runs = list(dict.fromkeys(point.run for point in points))
    if len(runs) < _FEWEST:
        raise DataError(
            f"{len(runs)} runs cannot show how two things go together",
            f"give {_FEWEST} or more; below 10 the interval is wide.",
        )
    run_of = np.array([runs.index(point.run) for point in points])
    shift = np.array([point.shift for point in points])
    lost = np.array([point.forgetting for point in points])
    for name, values in (("shift", shift), ("forgetting", lost)):
        if np.ptp(values) == 0:
            raise DataError(f"all runs have the same {name}, {values[0]:.6g}", "give runs that differ.")

    def pearson(weights: NDArray[np.int64]) -> NDArray[np.float64]:
        return _correlation(shift, lost, weights)

    def spearman(weights: NDArray[np.int64]) -> NDArray[np.float64]:
        return _correlation(_ranks(shift, weights), _ranks(lost, weights), weights)

    coefficients = []
    for statistic in (pearson, spearman):

        def of_runs(drawn: NDArray[np.int64], axis: int = -1, statistic: Any = statistic) -> NDArray[np.float64]:
            rows = drawn.reshape(-1, drawn.shape[-1])
            offsets = len(runs) * np.arange(len(rows))[:, None]
            times = np.bincount((rows + offsets).ravel(), minlength=len(rows) * len(runs)).reshape(len(rows), -1)
            return np.asarray(statistic(times[:, run_of]).reshape(drawn.shape[:-1]))

        coefficients.append(_bootstrapped(of_runs, len(runs), resamples, confidence, seed))
    return Relation(coefficients[0], coefficients[1], len(runs), len(points), confidence, resamples, seed)


def _ranks(values: NDArray[np.float64], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """The average rank of each of the P values where value j stands weights[r, j] times: [R, P]."""
    before = (values[:, None] > values) + 0.5 * (values[:, None] == values)
    return np.asarray(weights @ before.T + 0.5)


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """Pearson's coefficient of x and y ([P] or [R, P]) with weights [R, P], NaN where one of them is constant: [R]."""

    def centred(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values - np.average(np.broadcast_to(values, weights.shape), axis=-1, weights=weights)[:, None]

    def varies(values: NDArray[np.float64]) -> NDArray[np.bool_]:
        least, most = np.where(weights > 0, values, np.inf).min(-1), np.where(weights > 0, values, -np.inf).max(-1)
        return np.asarray(least < most)

    a, b = centred(x), centred(y)
    scale = np.sqrt((weights * a**2).sum(-1) * (weights * b**2).sum(-1))
    found = np.full(len(weights), np.nan)
    np.divide((weights * a * b).sum(-1), scale, out=found, where=varies(x) & varies(y) & (scale > 0))
    return found


def _bootstrapped(statistic: Any, runs: int, resamples: int, confidence: float, seed: int) -> Coefficient:
    from scipy.stats import bootstrap  # type: ignore[import-untyped,unused-ignore]

    options: dict[str, Any] = {"vectorized": True, "n_resamples": resamples, "confidence_level": confidence}
    made = bootstrap((np.arange(runs),), statistic, method="BCa", rng=np.random.default_rng(seed), **options)
    low, high, how = float(made.confidence_interval.low), float(made.confidence_interval.high), "BCa"
    value = float(statistic(np.arange(runs)))
    if not (np.isfinite([low, high]).all() and np.isfinite(made.bootstrap_distribution).all()):
        kept = made.bootstrap_distribution[np.isfinite(made.bootstrap_distribution)]
        percentiles = interval(kept, (1 - confidence) / 2)
        assert percentiles is not None  # all kept values are finite
        (low, high), how = percentiles, "percentile"
    return Coefficient(value, low, high, f"{how} bootstrap over runs")
