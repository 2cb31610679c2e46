"""The grid of a study: its methods, settings, seeds and runs.

Every method gets the same number of settings: values of its strength, or of the learning rate if it has none. Each
setting is run with every seed. Settings that amount to the same training (a value of the grid that all runs share
anyway) are one run, so that studies in one folder share it. A grid over models or data sets makes worlds: each has its
own base and plain LoRA, and settings are compared within their world.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfaug.common.errors import ConfigError
from selfaug.methods import get_method

__all__ = ["WORLD", "Pairs", "Run", "Setting", "Study", "as_typed", "fingerprint", "further", "strengths_of", "swept"]

WORLD = ("model_name_or_path", "dataset_name")
"""Training options that change the base or the task, and so what a setting is compared with."""
Pairs = tuple[tuple[str, Any], ...]

RATIO = 4.0
"""Ratio of neighbouring strengths by default."""
RATE_RATIO = 10**0.5
"""Ratio of neighbouring learning rates of a method without a strength."""


@dataclass(frozen=True)
class Setting:
    """One point of a method's curve.

    Args:
        method: Name of the method.
        option: Name of the swept option: the method's strength, or ``learning_rate``.
        value: Value of the swept option.
        also: Training options of the grid and their values.
    """

    method: str
    option: str
    value: float
    also: tuple[tuple[str, Any], ...] = ()

    @property
    def world(self) -> Pairs:
        """Options of the grid that choose the world."""
        return tuple((name, value) for name, value in self.also if name in WORLD)

    @property
    def label(self) -> str:
        """Label of the setting in tables."""
        return " ".join([self.curve, f"{self.option}={self.value:g}"])

    @property
    def curve(self) -> str:
        """Label of the curve: the method, and the options of the grid."""
        return " ".join([self.method, *as_typed(self.also)])


@dataclass(frozen=True)
class Run:
    """One training and its measurements.

    Args:
        setting: Setting of the run.
        seed: Seed of the training.
        train: Arguments of `selfaug train`.
        distinct: Options in ``setting.also`` whose values differ from those of runs without a grid.
    """

    setting: Setting
    seed: int
    train: tuple[str, ...]
    distinct: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        label = dataclasses.replace(self.setting, also=self.distinct).label
        text = f"{label} seed={self.seed}".replace(" ", "_")
        return "".join(c if c.isalnum() or c in "._=+-" else "-" for c in text)


@dataclass(frozen=True)
class Study:
    """The settings of a study.

    Args:
        methods: Names of methods; ``sft`` is always added, since plain LoRA sets the scale of both axes.
        seeds: Seeds of the trainings.
        settings: Number of settings of each method.
        train: Arguments of `selfaug train` that all runs share.
        evaluate: Arguments of `selfaug evaluate` that all runs share.
        learning_rate: Learning rate that all runs share, the centre for methods that sweep it.
        shift: Arguments of `selfaug shift`; ``None`` if the shift is not measured.
        task_metric: Metric of the task's axis; ``None`` for the primary one.
        strengths: Values of a method's strength, where they are chosen by hand.
        options: Further options of a method.
        grid: Training options and their values; every method is run with all combinations, plain LoRA in each world.
        shared: Values of the grid's options in runs without a grid, as far as known.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: int
    train: tuple[str, ...]
    evaluate: tuple[str, ...]
    learning_rate: float
    shift: tuple[str, ...] | None = None
    task_metric: str | None = None
    strengths: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    shared: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def runs(self) -> list[Run]:
        """Return all runs, seed by seed, so that the first seed alone is a comparison already."""
        return [self._run(setting, seed) for seed in self.seeds for setting in self.points()]

    def points(self) -> list[Setting]:
        """Return every setting, method by method."""
        settings = []
        for method in dict.fromkeys(["sft", *self.methods]):
            option = swept(method)
            grid = _product(self.grid)
            if method == "sft":  # plain LoRA is the reference of each world, whatever else the grid varies
                worlds = _product({name: values for name, values in self.grid.items() if name in WORLD})
                grid = list(dict.fromkeys([*worlds, *(grid if "sft" in self.methods else [])]))
            settings += [Setting(method, option, value, also) for also in grid for value in self.values(method)]
        return settings

    def values(self, method: str) -> list[float]:
        """Return the values of a method's strength."""
        return [float(v) for v in self.strengths.get(method) or strengths_of(method, self.settings, self.learning_rate)]

    def widened(self, edges: Mapping[str, str]) -> Study:
        """Return the study with one further strength of each method beyond the end where its best one lies.

        Args:
            edges: ``lowest`` or ``highest`` by method.
        """
        strengths = dict(self.strengths)
        for method, end in edges.items():
            values = self.values(method)
            last = max(values) if end == "highest" else min(v for v in values if v > 0)
            value = further(method, last, up=end == "highest")
            strengths[method] = [*values, *([] if value is None else [value])]
        return dataclasses.replace(self, strengths=strengths)

    def fingerprints(self, run: Run) -> dict[str, str]:
        """Return hashes of the arguments that a run's weights and each of its results depend on."""
        train = _options(run.train)
        found = {"train": fingerprint(run.train)}
        for verb in ("evaluate", *(() if self.shift is None else ("shift",))):
            found[verb] = _hash([train, _options(self.measuring(run, verb))])
        return found

    def measuring(self, run: Run, verb: str) -> tuple[str, ...]:
        """Return arguments of ``evaluate`` or ``shift`` that measure on the same rows whatever the run's max_length."""
        words = self.evaluate if verb == "evaluate" else self.shift or ()
        if "max_length" not in dict(run.distinct):
            return words
        return (*words, "--max_length", str(self.shared["max_length"]))

    def _run(self, setting: Setting, seed: int) -> Run:
        distinct = tuple(
            (name, value) for name, value in setting.also if name not in self.shared or self.shared[name] != value
        )
        return Run(setting, seed, self._words(dataclasses.replace(setting, also=distinct), seed), distinct)

    def _words(self, setting: Setting, seed: int) -> tuple[str, ...]:
        words = [*self.train, "--method", setting.method, "--seed", str(seed)]
        options = dict(self.options.get(setting.method, {}))
        if setting.option in ("alpha", "learning_rate"):
            words += [f"--{setting.option}", repr(setting.value)]
        else:
            options[setting.option] = setting.value
        if options:
            words += ["--method_options", json.dumps(options)]
        for name, value in setting.also:
            words += [f"--{name}", str(value)]
        return tuple(words)


def fingerprint(words: Sequence[str]) -> str:
    """Return a hash of arguments, whatever their order and spelling."""
    return _hash(_options(words))


def _hash(part: Any) -> str:
    return hashlib.sha256(json.dumps(part).encode()).hexdigest()


def _product(grid: Mapping[str, Sequence[Any]]) -> list[Pairs]:
    return list(itertools.product(*([(name, value) for value in values] for name, values in grid.items())))


def as_typed(pairs: Pairs) -> list[str]:
    """Return options as on a command line, with the last two parts of a path."""
    typed = [(name, str(value).lower() if isinstance(value, bool) else str(value)) for name, value in pairs]
    return [f"{name}={'/'.join(value.split('/')[-2:])}" for name, value in typed]


def _options(words: Sequence[str]) -> list[list[str]]:
    """Parse arguments into sorted options, in one spelling; the last of a name counts."""
    options: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            name = name.replace("-", "_")
            options[name] = [value] if equals else []
        elif options:
            options[name].append(word)
    return [[name, *values] for name, values in sorted(options.items())]


def swept(method: str) -> str:
    """Return a method's strength, or that of the first part of a combination with one; else ``learning_rate``."""
    return next((part.strength for part in get_method(method).parts if part.strength), "learning_rate")


def strengths_of(method: str, count: int, learning_rate: float) -> list[float]:
    """Return ``count`` strengths around the method's default, with a ratio of :data:`RATIO` where its range allows it.

    Raises:
        ConfigError: If ``count`` is below 1.
    """
    if count < 1:
        raise ConfigError(f"settings={count} leaves no point of a curve.", "give 1 or more.")
    option = swept(method)
    places = [place - (count - 1) // 2 for place in range(count)]
    if option == "learning_rate":
        return [float(f"{learning_rate * RATE_RATIO**place:.3g}") for place in places]
    default, least, most = _range(method, option)
    if default == 0:  # 0 selects a rule, such as the median
        return [0.0, *(RATIO**place for place in range(count - 1))]
    if default == most:
        places = [place - max(places) for place in places]
    elif default == least:
        places = [place - min(places) for place in places]
    up = down = RATIO
    if most is not None and max(places) > 0:
        up = min(up, (most / default) ** (1 / max(places)))
    if least and min(places) < 0:  # not to the end: at `stm`'s least perplexity no token is trained
        down = min(down, (default / least) ** (1 / (1 - min(places))))
    return [float(f"{default * (up if place > 0 else down) ** place:.3g}") for place in places]


def further(method: str, value: float, *, up: bool) -> float | None:
    """Return the strength one ratio beyond a value, inside the range; ``None`` where the range ends.

    A lower end above 0 is approached and never reached: there `stm` has no token left to train.
    """
    option = swept(method)
    ratio = RATE_RATIO if option == "learning_rate" else RATIO
    _, least, most = (0.0, None, None) if option == "learning_rate" else _range(method, option)
    beyond = value * ratio if up else value / ratio
    if up and most is not None:
        beyond = min(beyond, most)
    if not up and least and beyond <= least:
        beyond = math.sqrt(value * least)
    beyond = float(f"{beyond:.3g}")
    return beyond if (beyond > value if up else beyond < value) else None


def _range(method: str, option: str) -> tuple[float, float | None, float | None]:
    parts = get_method(method).parts
    if option == "alpha":
        return next(float(str(part.defaults["alpha"])) for part in parts if part.defaults["alpha"]), None, None
    fields = [field for part in parts for field in dataclasses.fields(part.Options) if field.name == option]
    default: Any = fields[0].default
    return float(default), fields[0].metadata["least"], fields[0].metadata["most"]
