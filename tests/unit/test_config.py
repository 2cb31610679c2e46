"""Which settings does a training take, which values do presets and methods fill in, and what is refused?"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trl import SFTConfig

from selfaug.common.errors import ConfigError
from selfaug.methods import available
from selfaug.objective import ALIGNMENT_TERMS
from selfaug.training.config import PRESETS, SelfAugConfig

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
SLOWLY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def config(**given: Any) -> SelfAugConfig:
    return SelfAugConfig(**{"output_dir": "unused", "bf16": False, "report_to": "none", **given})


def chosen(**given: Any) -> tuple[Any, Any, Any]:
    made = config(**given)
    return made.alpha, made.align_direction, made.align_boundary


# ---- what is filled in ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (2.0, "base_to_tuned", False)),
        ({"preset": "default"}, (2.0, "base_to_tuned", False)),
        ({"preset": "paper"}, (0.5, "tuned_to_base", True)),
        ({"preset": "release"}, (0.5, "base_to_tuned", True)),
        ({"preset": "paper", "alpha": 1.5}, (1.5, "tuned_to_base", True)),
        ({"preset": "paper", "alpha": 0.0}, (0.0, "tuned_to_base", True)),
        ({"preset": "paper", "align_boundary": False}, (0.5, "tuned_to_base", False)),
        ({"preset": "release", "align_direction": "jsd"}, (0.5, "jsd", True)),
        ({"method": "sft"}, (0.0, "base_to_tuned", False)),
        ({"method": "sft", "preset": "paper"}, (0.0, "base_to_tuned", False)),
        ({"method": "sft", "alpha": 0.0}, (0.0, "base_to_tuned", False)),
    ],
)
def test_a_setting_wins_over_the_preset_and_that_over_the_method(
    given: dict[str, Any], expected: tuple[float, str, bool]
) -> None:
    assert chosen(**given) == expected


def test_a_target_takes_the_place_of_alpha() -> None:
    made = config(align_target=0.05, preset="release")
    assert (made.alpha, made.aligns, made.compares) == (None, True, True)
    assert made.alignment_weight == pytest.approx((0.27 / 0.05) ** 1.5)
    assert config(method="selfaug+dft", align_target=0.05).aligns
    again = config(align_target=made.align_target, alpha=made.alpha)  # as a resolved configuration is read again
    assert again.alpha is None


def test_only_an_alpha_above_zero_aligns() -> None:
    assert config().aligns
    assert config(alpha=1e-9).aligns
    assert not config(alpha=0.0).aligns
    assert not config(method="sft").aligns


def test_it_is_an_sft_config_with_the_same_defaults() -> None:
    ours = config()
    theirs = SFTConfig(output_dir="unused", bf16=False, report_to="none", use_cpu=ours.use_cpu)
    moving = {"run_name", "logging_dir"}
    for field in dataclasses.fields(SFTConfig):
        if field.init and field.name not in moving:
            assert getattr(ours, field.name) == getattr(theirs, field.name), field.name


def test_every_setting_of_ours_explains_itself() -> None:
    own = {f.name for f in dataclasses.fields(SelfAugConfig)} - {f.name for f in dataclasses.fields(SFTConfig)}
    assert {"method", "preset", "alpha", "align_direction", "align_boundary", "align_fraction", "reference"} <= own
    for field in dataclasses.fields(SelfAugConfig):
        if field.name in own:
            text = field.metadata["help"]
            assert text[0].isupper(), field.name
            assert text.endswith("."), field.name
            assert len(text) > 20, field.name


def test_a_config_survives_a_round_trip(tmp_path: Path) -> None:
    made = config(preset="paper", alpha=0.25, align_fraction=0.5, output_dir=str(tmp_path))
    again = SelfAugConfig(**{f.name: getattr(made, f.name) for f in dataclasses.fields(SelfAugConfig) if f.init})
    assert (again.alpha, again.align_direction, again.align_boundary) == (0.25, "tuned_to_base", True)
    assert again.align_fraction == 0.5


# ---- ranges ---------------------------------------------------------------------------------------------------------


@SLOWLY
@given(st.one_of(st.floats(max_value=-1e-12), st.sampled_from([math.nan, math.inf, -math.inf])))
def test_an_alpha_that_is_no_weight_is_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match="alpha=") as refused:
        config(alpha=alpha)
    assert refused.value.hint


@SLOWLY
@given(st.one_of(st.floats(max_value=0.0), st.floats(min_value=1.0, exclude_min=True), st.just(math.nan)))
def test_a_fraction_outside_its_range_is_refused(fraction: float) -> None:
    for name in ("align_fraction", "align_token_fraction"):
        with pytest.raises(ConfigError, match=f"{name}=") as refused:
            config(**{name: fraction})
        assert "alpha" in refused.value.hint


@SLOWLY
@given(st.floats(0, 1e6), st.floats(0.0, 1.0, exclude_min=True))
def test_every_value_inside_the_ranges_is_taken(alpha: float, fraction: float) -> None:
    made = config(alpha=alpha, align_fraction=fraction)
    assert (made.alpha, made.align_fraction) == (alpha, fraction)


def test_the_names_that_are_offered_are_taken() -> None:
    offered = {field.name: field.metadata.get("choices") for field in dataclasses.fields(SelfAugConfig)}
    assert offered["align_direction"] == list(ALIGNMENT_TERMS)
    assert offered["preset"] == list(PRESETS)
    for direction in ALIGNMENT_TERMS:
        assert config(align_direction=direction).align_direction == direction
    for preset in PRESETS:
        config(preset=preset)
    for method in available():
        reference = "a model that is tuned already" if method == "anchored" else "base"
        options = "replay_ratio=0" if method == "replay" else None
        config(method=method, method_options=options, reference=reference)
    for objective in ("sweep", "plain"):
        config(objective=objective)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"method": "selfaugg"}, "Did you mean 'selfaug'?"),
    "preset": ({"preset": "papper"}, "Did you mean 'paper'?"),
    "align_direction": ({"align_direction": "base_to_tunned"}, "Did you mean 'base_to_tuned'?"),
    "objective": ({"objective": "fast"}, "objective='fast'"),
    "objective_memory_mb": ({"objective_memory_mb": 0}, "objective_memory_mb=0"),
    "reference_slice": ({"reference_slice": -1}, "reference_slice=-1"),
    "cache and responses": ({"method": "kl-response", "reference_cache": "x"}, "method='kl-response' compares more"),
    "cache and activations": ({"method": "align-v", "reference_cache": "x"}, "method='align-v' compares more"),
    "label smoothing": ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1"),
    "dft": ({"loss_type": "dft"}, "loss_type='dft'"),
    "wrapped packing": ({"packing": True, "packing_strategy": "wrapped"}, "packing_strategy='wrapped'"),
    "tokens of ranks": ({"average_tokens_across_devices": False}, "average_tokens_across_devices=False"),
    "sft with alpha": ({"method": "sft", "alpha": 0.5}, "alpha=0.5 has no effect"),
    "sft with a target": ({"method": "sft", "align_target": 0.05}, "align_target=0.05 has no effect"),
    "target and alpha": ({"alpha": 2.0, "align_target": 0.05}, "alpha=2.0 fixes the weight"),
    "target and alpha 0": ({"alpha": 0.0, "align_target": 0.05}, "alpha=0.0 fixes the weight"),
    "target of 0": ({"align_target": 0.0}, "align_target=0.0 is not a shift"),
    "target of another divergence": ({"preset": "paper", "align_target": 0.05}, "trains another divergence"),
    "target and the best loss": (
        {"align_target": 0.05, "load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"},
        "eval_loss of one moment",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_with_a_remedy(case: str) -> None:
    given, said = REFUSED[case]
    with pytest.raises(ConfigError) as refused:
        config(**given)
    assert said in refused.value.message
    assert refused.value.hint.endswith(".")


@pytest.mark.parametrize("case", ["wrapped packing", "tokens of ranks"])
def test_what_only_alignment_forbids_is_taken_without_it(case: str) -> None:
    config(**REFUSED[case][0], alpha=0.0)


def test_kernels_in_triton_are_refused_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfaug.training.config.is_liger_kernel_available", lambda: True)
    with pytest.raises(ConfigError, match="use_liger_kernel=True needs an accelerator"):
        SelfAugConfig(str(tmp_path), bf16=False, use_cpu=True, use_liger_kernel=True)
