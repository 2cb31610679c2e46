"""Does a step that holds activations have the gradient of a loop over single sequences?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from selfaug.common.errors import ConfigError
from selfaug.objective.activation_terms import squared_difference
from selfaug.training.config import SelfAugConfig
from tests.integration.steps import SEQUENCES, TOLERANCE, run
from tests.models import tiny, with_lora
from tests.oracles.activations import activation_gradient
from tests.oracles.step import relative_distance

CHOSEN = SEQUENCES["single-turn"][:3] + SEQUENCES["multi-turn"][:1]
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MODULES = {
    "align-q": ("q_proj",),
    "align-k": ("k_proj",),
    "align-v": ("v_proj",),
    "align-o": ("o_proj",),
    "align-attention": ATTENTION,
    "align-ffn": ("mlp",),
    "align-layers": (*ATTENTION, "mlp"),
}
PACKED = {"packing": True, "max_length": 48, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 9}


def oracle(method: str, arch: str = "llama", **options: Any) -> Any:
    options = {"weight": 0.7, **options}
    return activation_gradient(tiny(arch), with_lora(tiny(arch)), CHOSEN, MODULES[method], **options)


@pytest.mark.parametrize("method", MODULES)
def test_a_step_has_the_methods_gradient(method: str, tmp_path: Path) -> None:
    ran = run(CHOSEN, tmp_path, method=method, method_options={"activation_weight": 0.7})
    loss, expected = oracle(method)
    assert relative_distance(oracle(method, weight=0.0)[1], expected) > 0.01
    assert relative_distance(ran.gradient, expected) < TOLERANCE[torch.float64]
    assert ran.losses == pytest.approx([loss], rel=1e-5)
    assert ran.trainer is not None
    logged = next(e for e in ran.trainer.state.log_history if "nll" in e)
    assert logged["loss"] == pytest.approx(logged["nll"] + 0.7 * logged["activation"], rel=1e-4)


@pytest.mark.nightly
@pytest.mark.parametrize("name", MODULES)
def test_one_method_with_a_choice_of_modules_is_each_of_the_older_names(name: str, tmp_path: Path) -> None:
    options = {"activation_weight": 0.7, "align_modules": name.removeprefix("align-")}
    ran = run(CHOSEN, tmp_path, method="align-activations", method_options=options)
    assert relative_distance(ran.gradient, oracle(name)[1]) < TOLERANCE[torch.float64]


def test_a_choice_of_modules_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"align_modules='attn' of method='align-activations' is not known"):
        SelfAugConfig(
            output_dir="unused", bf16=False, method="align-activations", method_options={"align_modules": "attn"}
        )


@pytest.mark.parametrize("arch", ["qwen2", "mixtral"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_rows_boundaries_and_checkpointing(arch: str, checkpointing: bool, tmp_path: Path) -> None:
    settings = {"align_boundary": True, "gradient_checkpointing": checkpointing, "router_aux_loss_coef": 0.0}
    ran = run(
        CHOSEN, tmp_path, arch=arch, method="align-layers", method_options="activation_weight=0.7", **settings, **PACKED
    )
    expected = oracle("align-layers", arch, boundary=True)[1]
    assert relative_distance(ran.gradient, expected) < TOLERANCE[torch.float64]


def test_drawn_sequences_are_held_with_their_share_taken_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = (0, 3)
    wanted = {tuple(CHOSEN[i][0]) for i in drawn}
    monkeypatch.setattr(
        "selfaug.planning.plan.draw", lambda seed, step, tokens, fraction: tuple(tokens.tolist()) in wanted
    )
    ran = run(CHOSEN, tmp_path, method="align-v", method_options="activation_weight=0.7", align_fraction=0.5)
    assert relative_distance(ran.gradient, oracle("align-v", fraction=0.5, drawn=drawn)[1]) < TOLERANCE[torch.float64]


def test_without_weight_a_step_is_the_base_lines(tmp_path: Path) -> None:
    ran = run(CHOSEN, tmp_path / "0", method="align-ffn", method_options="activation_weight=0")
    plain = run(CHOSEN, tmp_path / "sft", method="sft")
    assert all(torch.equal(ran.gradient[name], plain.gradient[name]) for name in plain.gradient)
    assert ran.trainer is not None
    assert ran.trainer.reference is None


def test_with_the_prompts_distribution_it_adds_up(tmp_path: Path) -> None:
    together = run(CHOSEN, tmp_path / "both", method="selfaug+align-v", alpha=1.5).gradient
    held = run(CHOSEN, tmp_path / "v", method="align-v").gradient
    aligned, plain = (run(CHOSEN, tmp_path / str(a), alpha=a).gradient for a in (1.5, 0.0))
    expected = {name: held[name] + aligned[name] - plain[name] for name in held}
    assert relative_distance(together, expected) < TOLERANCE[torch.float64]


def test_the_difference_is_a_mean_over_features_and_a_sum_over_positions() -> None:
    tuned, base = torch.tensor([[1.0, 3.0], [0.0, 2.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    assert squared_difference(tuned, base).item() == 5.0 + 2.0
    assert squared_difference(tuned.bfloat16(), base.bfloat16()).dtype == torch.float32


def test_what_cannot_be_held_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no module named 'q_proj'"):
        run(CHOSEN, tmp_path, arch="phi3", method="align-q")
    with pytest.raises(ConfigError, match="without a graph"):
        SelfAugConfig(
            output_dir="unused", bf16=False, method="align-q", gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": True},
        )  # fmt: skip
    with pytest.raises(ConfigError, match="decide which activations are aligned"):
        SelfAugConfig(output_dir="unused", bf16=False, method="align-q+align-k")
