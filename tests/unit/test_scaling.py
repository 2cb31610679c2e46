"""Scaled updates: are they what they say, is the search right about drawn items, and does its test keep its error?"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from selfaug.common.errors import ConfigError
from selfaug.common.statistics import LOOKS
from selfaug.evaluation.parts import Part
from selfaug.report.gate import check, parse_rule
from selfaug.scaling.groups import Group, Probe, graded, greedy, grouped, within
from selfaug.scaling.items import Batches, Measured, drawn, pooled
from selfaug.scaling.scales import Scales, changed, modules_of, write_adapter
from selfaug.scaling.search import Bench, Trial, candidates, check_rules, uniform
from tests.models import perturb_adapter, tiny

IDS = torch.tensor([[5, 9, 33, 21, 8, 60, 41, 2, 77]])
MODULES = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


# --- the weights -----------------------------------------------------------------------------------------------------


@dataclass
class Made:
    folder: Path
    peft: PeftModel


@pytest.fixture(params=["plain", "bias, rsLoRA, patterns, embedding"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"]}
    if request.param != "plain":
        settings |= {
            "lora_bias": True,
            "use_rslora": True,
            "alpha_pattern": {"up_proj": 9},
            "rank_pattern": {"q_proj": 2},
        }
    peft = get_peft_model(tiny("llama"), LoraConfig(task_type="CAUSAL_LM", **settings), autocast_adapter_dtype=False)
    perturb_adapter(peft, scale=0.3)
    peft.save_pretrained(str(tmp_path / "adapter"))
    return Made(tmp_path / "adapter", peft.eval())


def by_hand(made: Made, factors: Mapping[str, float]) -> torch.Tensor:
    """Logits of the base with ``factor · alpha / r · B A`` added to its weights, and the bias of B to the output's."""
    model = tiny("llama")
    config = json.loads((made.folder / "adapter_config.json").read_text())
    weights = load_file(made.folder / "adapter_model.safetensors")
    for name, factor in factors.items():
        layer = model.get_submodule(name)
        kind = name.rpartition(".")[2]
        rank = config["rank_pattern"].get(kind, config["r"])
        alpha = config["alpha_pattern"].get(kind, config["lora_alpha"])
        scaling = factor * alpha / (rank**0.5 if config["use_rslora"] else rank)
        A, B = (weights[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "AB")
        with torch.no_grad():
            layer.weight += scaling * B @ A
            bias = weights.get(f"base_model.model.{name}.lora_B.bias")
            if bias is not None:
                layer.bias = torch.nn.Parameter(scaling * bias.double())
    return logits(model)


def test_scaled_weights_are_the_base_plus_the_factor_times_the_update_in_memory_and_on_disk(
    made: Made, tmp_path: Path
) -> None:
    modules = modules_of(made.folder)
    assert len(modules) == 4
    factors = dict(zip(modules, (0.5, 0.3, 1.0, 0.0), strict=True))
    base, whole = logits(tiny("llama")), logits(made.peft)
    assert (whole - base).abs().max() > 0.1
    wanted = by_hand(made, factors)
    assert (wanted - whole).abs().max() > 0.05
    assert (wanted - base).abs().max() > 0.05
    out = tmp_path / "scaled"
    out.mkdir()
    with changed(made.peft, Scales("x", factors)):
        torch.testing.assert_close(logits(made.peft), wanted, rtol=0, atol=1e-6)
        write_adapter(made.peft, made.folder, Scales("x", factors), out)
    loaded = PeftModel.from_pretrained(tiny("llama"), str(out), autocast_adapter_dtype=False).eval()
    torch.testing.assert_close(logits(loaded), wanted, rtol=0, atol=1e-12)
    # All is as it was, to the bit; a factor that stays, or is applied twice, would show here and above.
    assert torch.equal(logits(made.peft), whole)
    assert (out / "adapter_config.json").read_bytes() == (made.folder / "adapter_config.json").read_bytes()


def test_a_change_that_fails_restores_every_value(made: Made) -> None:
    whole = logits(made.peft)
    scales = Scales("x", dict.fromkeys(modules_of(made.folder), 0.25), intruders=0.5)
    before = {name: value.clone() for name, value in made.peft.state_dict().items()}
    with contextlib.suppress(RuntimeError), changed(made.peft, scales):
        assert (logits(made.peft) - whole).abs().max() > 0.01
        raise RuntimeError("planted")
    assert torch.equal(logits(made.peft), whole)
    assert all(torch.equal(value, before[name]) for name, value in made.peft.state_dict().items())


def test_factors_below_one_are_not_rounded_to_the_files_format(made: Made, tmp_path: Path) -> None:
    peft = made.peft.to(torch.bfloat16)
    peft.save_pretrained(str(tmp_path / "narrow"))
    out = tmp_path / "out"
    out.mkdir()
    scales = Scales("0.3", dict.fromkeys(modules_of(tmp_path / "narrow"), 0.3))
    with changed(peft, scales):
        write_adapter(peft, tmp_path / "narrow", scales, out)
    narrow, wide = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "narrow", out))
    name = next(name for name in narrow if "lora_B.weight" in name)
    assert narrow[name].dtype == torch.bfloat16
    rounded = (narrow[name] * 0.3).float()
    assert (rounded - narrow[name].float() * 0.3).abs().max() > 0  # what is avoided
    assert torch.equal(wide[name], narrow[name].float() * 0.3)


def test_the_hash_of_scaled_weights_depends_on_every_factor() -> None:
    ones = dict.fromkeys(MODULES, 1.0)
    assert Scales("1", ones).weights_hash("h") == "h"
    others = [Scales("", ones | {name: 0.5}) for name in MODULES] + [Scales("", ones, 0.5), Scales("", ones, 0.25)]
    assert len({one.weights_hash("h") for one in others} | {"h"}) == len(others) + 1


# --- groups ----------------------------------------------------------------------------------------------------------


def test_modules_are_grouped_by_parent_then_layer_then_neighbours() -> None:
    modules = [f"model.layers.{n}.{kind}" for n in range(12) for kind in ("attn.q", "attn.v", "mlp.up")]
    assert [one.name for one in grouped(modules, 24)][:2] == ["model.layers.0.attn", "model.layers.0.mlp"]
    assert [len(one.modules) for one in grouped(modules, 23)] == [3] * 12
    few = grouped(modules, 5)
    assert [one.name for one in few] == [
        "model.layers.0 to model.layers.2", "model.layers.3 to model.layers.5", "model.layers.6 to model.layers.8",
        "model.layers.9 to model.layers.11",
    ]  # fmt: skip
    assert sorted(m for one in few for m in one.modules) == sorted(modules)


def test_graded_factors_minimise_forgetting_for_their_gain() -> None:
    """Where groups act apart, no other factors with as much forgetting gain more."""
    forgetting, gain = np.array([0.9, 0.05, 0.3]), np.array([0.2, 0.5, 0.1])
    groups = [Group(str(n), (MODULES[n],), float(forgetting[n]), float(gain[n])) for n in range(3)]
    rng = np.random.default_rng(0)
    for strength in (0.05, 0.2, 1.0):
        own = np.array(list(graded(groups, 1.0, strength).values()))
        budget = float((forgetting * own**2).sum())
        others = rng.uniform(0, 1, (20_000, 3))
        allowed = others[(others**2 @ forgetting) <= budget]
        assert len(allowed) > 20
        assert (allowed @ gain).max() <= own @ gain + 1e-12
    none = graded([Group("a", ("x",), 0.5, -0.1), Group("b", ("y",), -0.1, 0.1)], 1.0, 1.0)
    assert none == {"x": 0.0, "y": 1.0}
    worst_first = greedy([Group("a", ("x",), 0.1, 0.5), Group("b", ("y",), 0.4, 0.1)], 0.7, 0.5)
    assert worst_first == {"x": 0.7, "y": 0.0}


def test_the_strongest_weights_within_a_budget_are_found() -> None:
    probe = lambda scales: Probe(scales.factors["x"] ** 2, 1 - scales.factors["x"])  # noqa: E731
    found = within(lambda t: {"x": t}, 0.0, 1.0, 0.36, "x", probe)
    assert found is not None
    assert 0.6 - 1 / 16 < found[0].factors["x"] <= 0.6
    assert within(lambda t: {"x": t}, 0.5, 1.0, 0.01, "x", probe) is None


# --- items and the search --------------------------------------------------------------------------------------------


@dataclass
class Drawn:
    """A part whose items are right or wrong by a table of probabilities: what the search needs, without a model."""

    name: str
    places: list[int]
    needs_model: bool = True

    def items(self) -> dict[str, int]:
        return {self.name: len(self.places)}

    def only(self, places: Mapping[str, Sequence[int]]) -> Drawn:
        return Drawn(self.name, sorted(self.places[i] for i in places[self.name]))


class World:
    """Items whose base and tuned answers are drawn once: a share of the right ones is lost as the scale grows."""

    def __init__(self, lost: Any, gained: Any, general: int = 800, task: int = 400, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.luck = {"general:g": rng.uniform(size=general), "task": rng.uniform(size=task)}
        self.base = {"general:g": rng.uniform(size=general) < 0.8, "task": rng.uniform(size=task) < 0.1}
        self.lost, self.gained = lost, gained
        self.measured: list[tuple[str, float, int]] = []

    def value(self, part: str, item: int, scale: float) -> tuple[float, float]:
        base = float(self.base[part][item])
        if part == "task":
            return base, 1.0 if self.luck[part][item] < self.gained(scale) else base
        return base, 0.0 if self.luck[part][item] < self.lost(scale) / 0.8 else base

    def parts(self) -> list[Any]:
        return [Drawn(name, list(range(len(luck)))) for name, luck in self.luck.items()]

    def measure(self, parts: Sequence[Part], scales: Scales) -> Iterator[tuple[str, Measured]]:
        for part in parts:
            assert isinstance(part, Drawn)
            scale = scales.uniform or 0.0
            self.measured.append((part.name, scale, len(part.places)))
            samples = []
            for place in part.places:
                base, tuned = self.value(part.name, place, scale)
                samples.append({"base": {"values": {"acc": base}}, "tuned": {"values": {"acc": tuned}}})
            entry = {"unit": "fraction", "higher_is_better": True, "primary": True, "difference": {}}
            group, _, name = part.name.partition(":")
            body = {"group": group, "name": name or group, "metrics": {"acc": entry}}
            yield part.name, Measured({**body, "seconds": {"base": 1.0, "tuned": 1.0}}, samples)


GRID = [1.0, 0.75, 0.5, 0.25, 0.1]


def bench_of(world: World, rules: Sequence[str], seed: int = 0, looks: int = 4) -> Bench:
    found, looks = drawn(world.parts(), looks, seed)
    batches = {name: Batches("task" if name == "task" else "general", one.choosing, one.confirming, one.counts)
               for name, one in found.items()}  # fmt: skip
    parsed = [parse_rule("max-drop" if "general" in rule else "min-gain", rule) for rule in rules]
    return Bench(world.measure, batches, parsed, "task", looks, seed)


def searched(world: World, *rules: str, seed: int = 0) -> tuple[Bench, Trial | None]:
    bench = bench_of(world, rules, seed)
    uniform(bench, MODULES, GRID)
    confirmed = (bench.confirm(one.scales) for one in candidates(bench.trials))
    return bench, next((one for one in confirmed if one.verdict == "pass"), None)


def test_items_are_drawn_into_two_halves_that_share_none_and_leave_none_out() -> None:
    world = World(lambda s: 0.1, lambda s: 0.1, general=101)
    found, looks = drawn(world.parts(), 4, seed=3)
    assert looks == 4
    one = found["general:g"]
    assert one.counts == (50, 51)
    places = [place for part in (*one.choosing, one.confirming) for place in part.places]  # type: ignore[attr-defined]
    assert sorted(places) == list(range(101))
    assert found["general:g"] != drawn(world.parts(), 4, seed=4)[0]["general:g"]
    few, looks = drawn([Drawn("general:g", list(range(5)))], 4, seed=0)  # type: ignore[list-item]
    assert (looks, few["general:g"].counts) == (2, (2, 3))
    with pytest.raises(ConfigError, match="has 1 item"):
        drawn([Drawn("general:g", [0])], 4, seed=0)  # type: ignore[list-item]


def test_the_largest_scale_that_keeps_the_limit_is_found_and_confirmed_on_other_items() -> None:
    world = World(lambda s: 0.4 * s**2, lambda s: 0.1 + 0.7 * s)  # drops of 40, 22.5, 10, 2.5 and 0.4 points
    bench, found = searched(world, "general=8pt", "task=0")
    assert found is not None
    assert (found.scales.label, found.half) == ("0.25", "confirming")
    tried = {one.scales.label: one for one in bench.trials if one.half == "choosing"}
    assert (tried["1"].verdict, tried["1"].looks) == ("fail", 1)  # 40 points show at once
    assert tried["1"].score is None  # and cost no generation
    assert tried["0.25"].score == pytest.approx(0.9 * 0.275, abs=0.05)
    assert found.checks[0].gain.n == 400


def test_a_search_that_no_scale_satisfies_says_so() -> None:
    bench, found = searched(World(lambda s: 0.3, lambda s: 0.5), "general=2pt")
    assert found is None
    assert {one.verdict for one in bench.trials} == {"fail"}
    assert min(one.scales.mean for one in bench.trials) == pytest.approx(0.1)  # the smallest was tried


def test_a_scale_that_keeps_the_limit_but_gains_too_little_is_not_taken() -> None:
    bench, found = searched(World(lambda s: 0.0, lambda s: 0.0), "general=5pt", "task=10pt")
    assert found is None
    assert all(one.checks[0].verdict == "pass" for one in bench.trials)
    assert all(one.verdict != "pass" for one in bench.trials)


def test_the_search_does_not_rely_on_a_gain_that_grows_with_the_scale() -> None:
    bench, found = searched(World(lambda s: 0.0, lambda s: 0.1 + (0.7 if s < 0.8 else 0.2)), "general=5pt")
    assert {one.scales.label for one in bench.trials if one.half == "choosing"} == {"1", "0.75"}
    assert found is not None
    assert found.scales.label == "0.75"


def test_limits_that_name_nothing_are_refused() -> None:
    parts = {"task": ("task", "task"), "text:news": ("news", "general"), "general:quick": ("quick", "general")}
    rule = parse_rule("max-drop", "general=2pt")
    check_rules([rule, parse_rule("max-drop", "text:news=0.1"), parse_rule("min-gain", "task:f1=0")], "task:f1", parts)
    with pytest.raises(ConfigError, match="no limit"):
        check_rules([parse_rule("min-gain", "task=0")], "task", parts)
    with pytest.raises(ConfigError, match=r"Did you mean 'text:news'"):
        check_rules([parse_rule("max-drop", "text:nesw=0.1")], "task", parts)
    with pytest.raises(ConfigError, match="no general ability is measured"):
        check_rules([rule], "task", {"task": ("task", "task")})
    with pytest.raises(ConfigError, match="--score taks:f1: nothing"):
        check_rules([rule], "taks:f1", parts)
    with pytest.raises(ConfigError, match=r"general=2pt: text:news is measured in nats a token, and not in points"):
        check_rules([rule], "task", {name: parts[name] for name in ("task", "text:news")})


# --- the error of the test that stops early --------------------------------------------------------------------------


def ever_beyond(levels: Sequence[float], looks: int, worlds: int = 200_000) -> float:
    """Share of worlds at the limit in which a lower bound lies above it at one look or more."""
    from scipy.stats import norm

    rng = np.random.default_rng(1)
    sums_wk = rng.standard_normal((worlds, looks)).cumsum(axis=1) / np.sqrt(np.arange(1, looks + 1))
    return float((sums_wk > norm.ppf((1 + np.array(levels)) / 2)).any(axis=1).mean())


@pytest.mark.parametrize("looks", sorted(LOOKS))
def test_looking_again_does_not_raise_the_error(looks: int) -> None:
    assert ever_beyond([LOOKS[looks]] * looks, looks) == pytest.approx(0.025, abs=0.0015)  # four standard errors
    if looks > 1:
        assert ever_beyond([0.95] * looks, looks) > 0.035  # what looking again with plain intervals costs


@pytest.mark.nightly
def test_a_trial_at_the_limit_passes_seldom_however_often_it_looks() -> None:
    """Right or wrong items at a true drop of exactly the limit, through the package's own intervals."""
    passed, early = 0, 0
    worlds = 200
    for seed in range(worlds):
        world = World(lambda s: 0.1, lambda s: 0.5, general=480, task=8, seed=seed)
        trial = bench_of(world, ("general=10pt",), seed).choose(Scales("1", dict.fromkeys(MODULES, 1.0)))
        passed += trial.verdict == "pass"
        early += trial.looks < 4
    assert passed <= 12  # Binomial(200, 0.025) exceeds 12 once in 500 times
    assert early <= 25


def test_few_lost_items_do_not_pass_a_limit_that_is_the_truth() -> None:
    """The exact chance that the first of four looks, at 60 items, passes a true drop of the limit."""
    from scipy.stats import binom

    passing = []
    for lost in range(7):
        right = [float(i >= lost) for i in range(60)]
        values = [{"base": {"values": {"acc": 1.0}}, "tuned": {"values": {"acc": one}}} for one in right]
        entry = {"unit": "fraction", "higher_is_better": True, "primary": True, "difference": {}}
        part = Measured({"group": "general", "name": "g", "metrics": {"acc": entry}}, values)
        results = pooled({"general:g": [part]}, [], seed=0, looks=4)
        plain = (lost + 2.361 * (lost * (1 - lost / 60)) ** 0.5) / 60
        verdict = check(parse_rule("max-drop", "general=10pt"), results)[0][0].verdict
        passing.append((verdict == "pass", plain <= 0.1))
    chance = [sum(binom.pmf(n, 60, 0.1) for n, both in enumerate(passing) if both[i]) for i in (0, 1)]
    assert chance[0] <= 0.0091
    assert chance[1] > 0.05  # what the variance of the items themselves would do
