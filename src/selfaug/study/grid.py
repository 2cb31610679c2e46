"""Which runs does a comparison have?

Every method gets the same number of settings: values of its own strength, or of the learning rate where it has none. A
setting is run with every seed. Settings that come to the same training (a grid's value that all runs have anyway) are
one run, so that comparisons in one folder share it. A grid over models or data sets makes worlds: each has a base and a
plain LoRA of its own, and settings are compared within theirs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfaug.common.errors import ConfigError
from selfaug.methods import get_method

__all__ = ["WORLD", "Pairs", "Run", "Setting", "Study", "strengths_of", "swept", "told"]

WORLD = ("model_name_or_path", "dataset_name")
"""Train options that change what a setting is measured against."""
Pairs = tuple[tuple[str, Any], ...]

RATIO = 4.0
"""Between neighbouring strengths that nobody chose."""
RATE_RATIO = 10**0.5
"""Between neighbouring learning rates of a method without a strength."""


@dataclass(frozen=True)
class Setting:
    """One point of a method's curve.

    Args:
        method: Its name.
        option: What is swept: the method's strength, or ``learning_rate``.
        value: Of that.
        also: Train options of a grid, by name.
    """

    method: str
    option: str
    value: float
    also: tuple[tuple[str, Any], ...] = ()

    @property
    def world(self) -> Pairs:
        """Those of the grid's options that it shares with what it is compared with."""
        return tuple((name, value) for name, value in self.also if name in WORLD)

    @property
    def label(self) -> str:
        """For tables."""
        return " ".join([self.curve, f"{self.option}={self.value:g}"])

    @property
    def curve(self) -> str:
        """The method, and what sets it apart from others of its name."""
        return " ".join([self.method, *told(self.also)])


@dataclass(frozen=True)
class Run:
    """One training and its measurement.

    Args:
        setting: The point that it belongs to.
        seed: Of the training.
        train: Words of `selfaug train`.
        apart: Those of the grid's options in ``setting.also`` that set it apart from the runs without a grid.
    """

    setting: Setting
    seed: int
    train: tuple[str, ...]
    apart: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """Of its folder."""
        label = dataclasses.replace(self.setting, also=self.apart).label
        text = f"{label} seed={self.seed}".replace(" ", "_")
        return "".join(c if c.isalnum() or c in "._=+-" else "-" for c in text)


@dataclass(frozen=True)
class Study:
    """What is compared.

    Args:
        methods: Names; ``sft`` is always among them, since it is what LoRA's 1 on the task's axis is.
        seeds: Of the trainings.
        settings: How many each method gets.
        train: Words of `selfaug train` that all runs share.
        evaluate: Words of `selfaug evaluate` that all runs share.
        shift: Words of `selfaug shift`, where that is measured too.
        strengths: Values of a method's strength, where they are chosen by hand.
        options: Further options of a method.
        task_metric: What the task's axis shows; ``None`` for the primary one.
        grid: Train options and their values; every method is run with all combinations, the yardstick in each world.
        learning_rate: That all runs share, for methods whose curve runs over it.
        shared: What the grid's options are where no grid sets them, as far as it is known.
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
        """All of them, a seed at a time: the first seed alone is a comparison already."""
        return [self._run(setting, seed) for seed in self.seeds for setting in self.points()]

    def points(self) -> list[Setting]:
        """Every setting, method by method."""
        found = []
        for method in dict.fromkeys(["sft", *self.methods]):
            option = swept(method)
            chosen = self.strengths.get(method) or strengths_of(method, self.settings, self.learning_rate)
            grid = _product(self.grid)
            if method == "sft":  # The plain one is the yardstick: it stays where it is, whatever else a grid varies.
                worlds = _product({name: values for name, values in self.grid.items() if name in WORLD})
                grid = list(dict.fromkeys([*worlds, *(grid if "sft" in self.methods else [])]))
            found += [Setting(method, option, float(value), also) for also in grid for value in chosen]
        return found

    def fingerprints(self, run: Run) -> dict[str, str]:
        """Of what a run's weights and its results are a function of, besides files and versions."""
        train = _options(run.train)
        parts: dict[str, Any] = {"train": train}
        for verb in ("evaluate", *(() if self.shift is None else ("shift",))):
            parts[verb] = [train, _options(self.measuring(run, verb))]
        return {name: hashlib.sha256(json.dumps(found).encode()).hexdigest() for name, found in parts.items()}

    def measuring(self, run: Run, verb: str) -> tuple[str, ...]:
        """Words of ``selfaug evaluate`` or ``shift``: on the same rows, whatever length the run was trained at."""
        words = self.evaluate if verb == "evaluate" else self.shift or ()
        if "max_length" not in dict(run.apart):
            return words
        return (*words, "--max_length", str(self.shared["max_length"]))

    def _run(self, setting: Setting, seed: int) -> Run:
        apart = tuple(
            (name, value) for name, value in setting.also if name not in self.shared or self.shared[name] != value
        )
        return Run(setting, seed, self._words(dataclasses.replace(setting, also=apart), seed), apart)

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


def _product(grid: Mapping[str, Sequence[Any]]) -> list[Pairs]:
    return list(itertools.product(*([(name, value) for value in values] for name, values in grid.items())))


def told(pairs: Pairs) -> list[str]:
    """Options and their values as they are typed, of a path its last two parts."""
    typed = [(name, str(value).lower() if isinstance(value, bool) else str(value)) for name, value in pairs]
    return [f"{name}={'/'.join(value.split('/')[-2:])}" for name, value in typed]


def _options(words: Sequence[str]) -> list[list[str]]:
    """What words of a command line mean, whatever order and spelling the options came in; the last of a name counts."""
    found: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            name = name.replace("-", "_")
            found[name] = [value] if equals else []
        elif found:
            found[name].append(word)
    return [[name, *values] for name, values in sorted(found.items())]


def swept(method: str) -> str:
    """The strength of a method, or of the first part of a combination that has one; else ``learning_rate``."""
    return next((part.strength for part in get_method(method).parts if part.strength), "learning_rate")


def strengths_of(method: str, count: int, learning_rate: float) -> list[float]:
    """So many strengths around the method's default, a factor of :data:`RATIO` apart where its range allows it.

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
    if default == 0:  # 0 stands for a rule, such as the median
        return [0.0, *(RATIO**place for place in range(count - 1))]
    if default == most:
        places = [place - max(places) for place in places]
    elif default == least:
        places = [place - min(places) for place in places]
    up = down = RATIO
    if most is not None and max(places) > 0:
        up = min(up, (most / default) ** (1 / max(places)))
    if least and min(places) < 0:  # short of the end: at `stm`'s least perplexity no token is left to learn
        down = min(down, (default / least) ** (1 / (1 - min(places))))
    return [float(f"{default * (up if place > 0 else down) ** place:.3g}") for place in places]


def _range(method: str, option: str) -> tuple[float, float | None, float | None]:
    parts = get_method(method).parts
    if option == "alpha":
        return next(float(str(part.defaults["alpha"])) for part in parts if part.defaults["alpha"]), None, None
    fields = [field for part in parts for field in dataclasses.fields(part.Options) if field.name == option]
    default: Any = fields[0].default
    return float(default), fields[0].metadata["least"], fields[0].metadata["most"]
