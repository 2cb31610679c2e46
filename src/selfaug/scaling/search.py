"""The search for the scaled weights that keep every limit with the most of the task.

On one half of the items scales are compared, each by a test that stops at the first look that decides. On the other
half the best one, or if it fails one safer one, is confirmed at a single look. A confirmation errs with 2.5 % at most
(one side of a 95 % interval), so both together write an adapter that breaks a limit with 5 % at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from selfaug.common.errors import ConfigError, nearest
from selfaug.evaluation.parts import Part
from selfaug.report.gate import Check, Rule, Verdict, check, concerns, overall, parse_rule
from selfaug.scaling.groups import Group, Probe, graded, greedy, within
from selfaug.scaling.items import Batches, Measured, pooled
from selfaug.scaling.scales import Scales

__all__ = [
    "INTRUDERS", "Bench", "Measure", "Trial", "by_groups", "candidates", "check_rules", "uniform", "without_intruders",
]  # fmt: skip

INTRUDERS = 0.5
"""Factor on intruder directions that is tried."""

Measure = Callable[[Sequence[Part], Scales], Iterator[tuple[str, Measured]]]
"""A function that yields the name and the measurement of each part under scaled weights."""


@dataclass(frozen=True)
class Trial:
    """What was found of scaled weights on one half of the items.

    Args:
        scales: Factors.
        half: ``choosing`` or ``confirming``.
        looks: Number of looks at the parts that limits on general ability are about.
        verdict: ``pass`` if every limit is surely kept, ``fail`` if one surely is not.
        checks: Checks of the limits.
        score: Gain of the task by which weights are compared; ``None`` where the task was not measured.
        seconds: Time that the measurements took, also where they were taken from the store.
    """

    scales: Scales
    half: Literal["choosing", "confirming"]
    looks: int
    verdict: Verdict
    checks: tuple[Check, ...]
    score: float | None
    seconds: float

    @property
    def margin(self) -> float:
        """Smallest distance from a limit on a drop to the lower bound of what was measured, over the limits."""
        return min((c.gain.low or 0.0) - c.floor for c in self.checks if c.rule.kind == "max-drop")

    def as_json(self) -> dict[str, Any]:
        """Return the trial as JSON."""
        return {
            "label": self.scales.label,
            "scale": self.scales.uniform,
            "mean_scale": self.scales.mean,
            "intruders": self.scales.intruders,
            **({} if self.scales.uniform is not None else {"factors": dict(self.scales.factors)}),
            "half": self.half,
            "looks": self.looks,
            "verdict": self.verdict,
            "score": self.score,
            "seconds": round(self.seconds, 2),
            "checks": [one.as_json() for one in self.checks],
        }


def check_rules(rules: Sequence[Rule], score: str, parts: Mapping[str, tuple[str, str]]) -> None:
    """Check that each rule, and the score, is about something that will be measured.

    Args:
        rules: Rules.
        score: Name of the score.
        parts: Name and group of each part, by its key.

    Raises:
        ConfigError: If not, or no rule limits a drop, or one in points is about nothing but texts.
    """
    if not any(rule.kind == "max-drop" for rule in rules):
        raise ConfigError("no limit is given that a smaller update would keep", "pass --max-drop general=2pt, say.")
    known = ["task", "general", *parts, *(name for name, _ in parts.values())]
    for rule in (*rules, parse_rule("min-gain", f"{score}=0")):
        named = [part for part, about in parts.items() if concerns(rule, part, *about)]
        if named:
            if rule.scale == "pt" and all(part.startswith("text:") for part in named):
                raise ConfigError(
                    f"{rule}: {', '.join(named)} is measured in nats a token, and not in points",
                    f"give nats, such as {rule.name}=0.05, or name tasks with --general.",
                )
            continue
        said = str(rule) if rule in rules else f"--score {score}"
        if rule.name == "general":
            raise ConfigError(
                f"{said}: no general ability is measured", "name what with --general (quick, say) or --general_data."
            )
        raise ConfigError(
            f"{said}: nothing that is measured is called {rule.name!r}.{nearest(rule.name, known)}",
            f"name a group (task, general), or one of {', '.join(parts)}, alone or with :METRIC.",
        )


@dataclass
class Bench:
    """Scaled weights on trial.

    Args:
        measure: Function that measures parts.
        batches: Items of each part.
        rules: Limits.
        score: Name of the metric, part or group whose gain is wanted.
        looks: Number of batches for choosing.
        seed: Seed of the bootstraps.
        seen: Function that is called with each finished trial.
    """

    measure: Measure
    batches: Mapping[str, Batches]
    rules: Sequence[Rule]
    score: str
    looks: int
    seed: int
    seen: Callable[[Trial], None] = lambda trial: None
    trials: list[Trial] = field(default_factory=list)
    first: dict[str, Measured] = field(default_factory=dict)

    def __post_init__(self) -> None:
        about = {name: self._about(rule) for rule in self.rules for name in self._about(rule)}
        self._general = [name for name, one in self.batches.items() if one.group == "general" and name in about]
        self._task = [name for name, one in self.batches.items() if one.group == "task"]
        self._early = [rule for rule in self.rules if self._about(rule) <= set(self._general)]
        self._metrics = [rule.name.rpartition(":")[2] for rule in (*self.rules, self._rule)]

    @property
    def _rule(self) -> Rule:
        return parse_rule("min-gain", f"{self.score}=0")

    def _about(self, rule: Rule) -> set[str]:
        return {
            name
            for name, one in self.batches.items()
            if concerns(rule, name, name.partition(":")[2] or name, one.group)
        }

    def choose(self, scales: Scales) -> Trial:
        """Compare weights with the base on the choosing half, batch by batch, until the limits are decided.

        The parts of the task come last, and only where the limits on general ability are kept.
        """
        known = next((t for t in self.trials if t.scales == scales and t.half == "choosing"), None)
        if known is not None:
            return known
        found: dict[str, list[Measured]] = {name: [] for name in (*self._general, *self._task)}
        verdict: Verdict = "pass"
        checks: list[Check] = []
        looked = 0
        for stage, rules in ((self._general, self._early), (self._task, self.rules)):
            for look in range(self.looks if stage else 0):
                for name, measured in self.measure([self.batches[name].choosing[look] for name in stage], scales):
                    found[name].append(measured)
                    self.first.setdefault(name, measured)
                looked += stage is self._general
                checks = self._checked(rules, found, self.looks)
                verdict = overall(checks)
                # The task is measured on all of its items, since its mean decides between weights.
                if verdict == "fail" or (verdict == "pass" and stage is self._general):
                    break
            if verdict != "pass":
                break
        return self._done(scales, "choosing", looked, verdict, checks, found)

    def confirm(self, scales: Scales) -> Trial:
        """Compare weights with the base on the confirming half, at one look."""
        found: dict[str, list[Measured]] = {name: [] for name in (*self._general, *self._task)}
        for name, measured in self.measure([self.batches[name].confirming for name in found], scales):
            found[name].append(measured)
        checks = self._checked(self.rules, found, 1)
        return self._done(scales, "confirming", 1, overall(checks), checks, found)

    def _results(self, found: Mapping[str, Sequence[Measured]], looks: int) -> dict[str, Any]:
        return pooled(found, self._metrics, seed=self.seed, looks=looks)

    def _checked(self, rules: Sequence[Rule], found: Mapping[str, Sequence[Measured]], looks: int) -> list[Check]:
        results = self._results(found, looks)
        return [one for rule in rules for one in check(rule, results)[0]]

    def _done(
        self,
        scales: Scales,
        half: Literal["choosing", "confirming"],
        looks: int,
        verdict: Verdict,
        checks: Sequence[Check],
        found: Mapping[str, Sequence[Measured]],
    ) -> Trial:
        score = None
        if all(found[name] for name in self._task):
            gains = [one.gain.value for one in check(self._rule, self._results(found, 1))[0]]
            if len(gains) != 1:
                raise ConfigError(
                    f"--score {self.score} stands for {len(gains)} metrics, and the best weights are those with the "
                    "most of one",
                    "name one: --score task:answer_f1, say.",
                )
            score = gains[0]
        seconds = sum(one.entry["seconds"]["tuned"] for of in found.values() for one in of)
        trial = Trial(scales, half, looks, verdict, tuple(checks), score, seconds)
        self.trials.append(trial)
        self.seen(trial)
        return trial


def uniform(bench: Bench, modules: Sequence[str], grid: Sequence[float]) -> list[Trial]:
    """Return trials of one factor for all modules, found by halving the grid; the best may be any of them.

    The largest scale that keeps the limits is the best where drops and gains grow with the scale, which need not be:
    the next smaller scale is tried, too, and the trials decide.

    Args:
        bench: Bench.
        modules: Names of the modules.
        grid: Factors, descending.
    """

    def trial(place: int) -> Trial:
        return bench.choose(Scales(f"{grid[place]:g}", dict.fromkeys(modules, grid[place])))

    found = [trial(0)]
    broken, kept = (-1, 0) if found[0].verdict == "pass" else (0, len(grid))
    while kept - broken > 1:
        middle = (broken + kept) // 2
        found.append(trial(middle))
        broken, kept = (broken, middle) if found[-1].verdict == "pass" else (middle, kept)
    if kept + 1 < len(grid):
        found.append(trial(kept + 1))
    return list({one.scales.label: one for one in found}.values())


def candidates(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials to confirm, in order: the one with the most of the task, then the next best that is safer."""
    kept = sorted(
        (one for one in trials if one.verdict == "pass" and one.score is not None),
        key=lambda one: (one.score or 0.0, one.margin),
        reverse=True,
    )
    return kept[:1] + [one for one in kept[1:] if one.margin > kept[0].margin][:1]


def by_groups(
    bench: Bench, probes: Callable[[Scales], Probe], groups: Sequence[Group], kept: Trial, grid: Sequence[float]
) -> list[Trial]:
    """Return trials of weights that forget no more than the best uniform ones, or little more, by the probes.

    Of two paths the one with the smaller loss on the task is tried: factors graded by what a group gains for what it
    forgets, and the worst groups switched off one after the other. Where the first trial keeps the limits, so may one
    with a larger budget.

    Args:
        bench: Bench.
        probes: Probes.
        groups: Groups, weighed among the factors of ``kept``.
        kept: Trial of the best uniform scale.
        grid: Uniform scales, descending.
    """
    scale = kept.scales.uniform or 0.0
    above = min((one for one in grid if one > scale), default=scale)
    ratios = [grid[0] * one.forgetting / one.gain for one in groups if one.gain > 0 and one.forgetting > 0]
    modules = list(kept.scales.factors)
    low = probes(kept.scales).forgetting
    high = probes(Scales("", dict.fromkeys(modules, above))).forgetting
    found = []
    for budget in (low, (low + high) / 2):
        paths = [
            within(
                partial(greedy, groups, above),
                1.0,
                0.0,
                budget,
                f"worst groups of {above:g} off, {budget:.2g} nats",
                probes,
            )
        ]
        if ratios:
            path = partial(graded, groups, grid[0])
            paths.append(within(path, 0.0, max(ratios), budget, f"graded by group, {budget:.2g} nats", probes))
        best = min((one for one in paths if one is not None), key=lambda one: one[1].loss, default=None)
        if best is None or high <= low:
            break
        found.append(bench.choose(best[0]))
        if found[-1].verdict != "pass":
            break
    return found


def without_intruders(bench: Bench, kept: Trial, grid: Sequence[float]) -> list[Trial]:
    """Return trials with the intruder directions shrunk, at the scale above the best uniform one and at the largest."""
    scale = kept.scales.uniform or 0.0
    above = {min((one for one in grid if one > scale), default=scale), grid[0]}
    return [
        bench.choose(
            Scales(f"{factor:g}, intruders at {INTRUDERS:g}", dict.fromkeys(kept.scales.factors, factor), INTRUDERS)
        )
        for factor in sorted(above)
    ]
