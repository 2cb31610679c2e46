"""The facts of a report, read from the run folders alone.

They come from ``config.yaml``, ``manifest.json``, ``log.jsonl``, ``results.json``, ``samples.jsonl`` and
``shift.json``. Only the first is required; for the others the report names the command that makes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfaug.common.errors import ConfigError
from selfaug.report.about import Fact, origins, short
from selfaug.report.gains import POINT_UNITS, Gain, Measured, mean_gain, measured
from selfaug.report.gaps import Missing, missing_of, warnings_of
from selfaug.report.regressions import Worst, read_worst
from selfaug.report.shifts import Related, Shift, read_shift, related
from selfaug.report.training import Cost, Training, read_log, training_of
from selfaug.run.folder import RunFolder

__all__ = ["KEYS", "Report", "Run", "Side", "report_of", "run_of"]

KEYS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Letters of the runs of a report, short enough for a phone and for figures."""


@dataclass(frozen=True)
class Side:
    """Mean gains of the primary metrics of ``task`` or ``general``, one for each unit.

    Args:
        group: ``task`` or ``general``.
        gains: Mean gains with measured intervals; those in points come first.
        directions: Direction of each gain by its conservative interval: ``gain``, ``loss``, ``none`` or ``unclear``.
        names: Names of the metrics of each gain.
    """

    group: str
    gains: tuple[Gain, ...]
    directions: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Run:
    """The facts of one run.

    Args:
        key: Letter of the run.
        name: Name of the folder, with its parent's where two are equal.
        path: Path as given by the user.
        model: Name of the base model; of a local path the last part.
        method: Name of the method.
        alpha: Weight of the alignment.
        adapter: Whether an adapter was trained, not the whole model.
        finished: Whether the training has finished.
        config: All settings.
        origins: Origins of the numbers.
        training: Curves and cost; ``None`` without a log.
        metrics: All metrics of ``results.json``; empty without it.
        sides: Mean gains at the task and in general ability, as far as measured.
        left_out: Part, reason and number of items that were not measured.
        confidence: Confidence level of the intervals.
        worst: Regressions of each part.
        shift: Measured shift; ``None`` without one.
        missing: Measurements that are missing.
        warnings: Reasons to doubt a number.
    """

    key: str
    name: str
    path: str
    model: str
    method: str
    alpha: float
    adapter: bool
    finished: bool
    config: Mapping[str, Any]
    origins: tuple[Fact, ...]
    training: Training | None
    metrics: tuple[Measured, ...]
    sides: tuple[Side, ...]
    left_out: tuple[tuple[str, str, int], ...]
    confidence: float
    worst: tuple[Worst, ...]
    shift: Shift | None
    missing: tuple[Missing, ...]
    warnings: tuple[str, ...]

    @property
    def cost(self) -> Cost | None:
        """Cost of the training; ``None`` without a log."""
        return None if self.training is None else self.training.cost


@dataclass(frozen=True)
class Report:
    """Runs side by side; ``related`` (shift against forgetting) is ``None`` for a single run."""

    runs: tuple[Run, ...]
    related: Related | None
    version: str


def report_of(paths: Sequence[str], *, regressions: int = 5) -> Report:
    """Return the facts of some runs.

    Args:
        paths: Run folders, each once.
        regressions: Number of the worst answers that are shown of each part.

    Raises:
        ConfigError: If a folder is not a run, is named twice, or there are more runs than letters.
        DataError: If a file of a run is damaged.
    """
    from selfaug import __version__

    if len(paths) > len(KEYS):
        raise ConfigError(f"{len(paths)} runs are more than one page can show", f"name at most {len(KEYS)}.")
    folders = [RunFolder.open(path, finished=False) for path in paths]
    resolved = [folder.path.resolve() for folder in folders]
    for number, path in enumerate(resolved):
        if path in resolved[:number]:
            raise ConfigError(f"{paths[number]} is named twice", "name each run once.")
    names = _names(resolved)
    runs = tuple(
        run_of(folder, key=key, name=name, regressions=regressions)
        for folder, key, name in zip(folders, KEYS, names, strict=False)
    )
    relation = related(folders, [run.key for run in runs]) if len(runs) > 1 else None
    return Report(runs, relation, __version__)


def _names(paths: Sequence[Path]) -> list[str]:
    names = [path.name for path in paths]
    return [f"{path.parent.name}/{path.name}" if names.count(path.name) > 1 else path.name for path in paths]


def run_of(folder: RunFolder, *, key: str = "A", name: str | None = None, regressions: int = 5) -> Run:
    """Return the facts of one run.

    Raises:
        ConfigError: If its settings or manifest cannot be read.
        DataError: If another of its files is damaged.
    """
    from selfaug.evaluation.results import read_results

    config = folder.read_config()
    manifest = folder.read_manifest()
    results = read_results(folder.results) if folder.results.is_file() else None
    metrics = tuple(measured(results)) if results is not None else ()
    samples = folder.samples
    shift = read_shift(folder)
    events = read_log(folder.log) if folder.log.is_file() else []
    return Run(
        key=key,
        name=name or folder.path.resolve().name,
        path=str(folder.path),
        model=short(str(config.get("model_name_or_path", "unknown"))),
        method=str(config.get("method", "unknown")),
        alpha=float(config.get("alpha") or 0.0),
        adapter=bool(config.get("use_peft", True)),
        finished=folder.finished is not None,
        config=config,
        origins=tuple(origins(manifest, results)),
        training=training_of(events, resumed=bool(manifest.get("resumed"))) if events else None,
        metrics=metrics,
        sides=tuple(side for side in (_side(group, metrics) for group in ("task", "general")) if side is not None),
        left_out=_left_out(results),
        confidence=_confidence(metrics),
        worst=tuple(read_worst(samples, metrics, regressions)) if metrics and samples.is_file() else (),
        shift=shift,
        missing=tuple(missing_of(folder, events, metrics, samples.is_file(), shift)),
        warnings=tuple(warnings_of(manifest, results, shift)),
    )


def _side(group: str, metrics: Sequence[Measured]) -> Side | None:
    by_unit: dict[str, list[tuple[Measured, Gain, Gain]]] = {}
    for one in metrics:
        gain, conservative = one.gain, one.conservative
        if one.group == group and one.primary and gain is not None and conservative is not None:
            by_unit.setdefault(one.unit, []).append((one, gain, conservative))
    if not by_unit:
        return None
    ordered = sorted(by_unit, key=lambda unit: unit not in POINT_UNITS)
    return Side(
        group,
        tuple(mean_gain([gain for _, gain, _ in by_unit[unit]]) for unit in ordered),
        tuple(mean_gain([conservative for _, _, conservative in by_unit[unit]]).direction for unit in ordered),
        tuple(tuple(f"{one.part}:{one.metric}" for one, _, _ in by_unit[unit]) for unit in ordered),
    )


def _left_out(results: Mapping[str, Any] | None) -> tuple[tuple[str, str, int], ...]:
    parts = {} if results is None else results["parts"]
    return tuple((part, str(why), int(n)) for part, body in parts.items() for why, n in body["left_out"].items() if n)


def _confidence(metrics: Sequence[Measured]) -> float:
    levels = [one.entry["difference"].get("confidence") for one in metrics if one.entry["difference"]]
    return float(next(filter(None, levels), 0.95))
