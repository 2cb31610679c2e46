"""Are new directions shrunk after training, and are strong ones kept by an adapter that trains all the others?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from selfaug.common.errors import ConfigError
from selfaug.model.libraries import lora_pairs, switchable_layers
from selfaug.model.switch import adapters_off
from tests.integration.small import lora, model
from tests.integration.test_starts import Before, logits, make
from tests.oracles import intruders as oracle

# float32 products and decompositions of matrices of up to 48 columns.
CLOSE: dict[str, Any] = {"rtol": 1e-3, "atol": 2e-4}


def test_new_directions_are_shrunk_when_training_is_over(tmp_path: Path) -> None:
    options = {"intruder_scale": 0.25, "intruder_top": 4, "intruder_cosine": 0.6}
    plain = make(tmp_path / "plain", method="sft", learning_rate=0.1)
    plain.train()
    trainer = make(tmp_path / "run", method="intruder", method_options=options, learning_rate=0.1)
    trainer.train()
    found, away = 0, 0.0
    for old, new in zip(lora_pairs(plain.base_model), lora_pairs(trainer.base_model), strict=True):
        assert old.W is not None
        W, D = (x.detach().double().numpy() for x in (old.W, old.scale * old.B @ old.A))
        expected, which = oracle.shrunk(W, D, 4, 4, 0.6, 0.25)
        update = (new.scale * new.B @ new.A).detach().double()
        torch.testing.assert_close(update, torch.from_numpy(expected), **CLOSE)
        found += len(which)
        away = max(away, float((update - torch.from_numpy(D)).abs().max()))
        # Planted: PEFT's own text of the factor, by which 0.25 would take a quarter away.
        other = oracle.shrunk(W, D, 4, 4, 0.6, 0.75)[0]
        assert not which or abs(other - expected).max() > 10 * CLOSE["atol"]
    assert found  # precondition: training made new directions
    assert away > 0.01
    # Nothing of PEFT's second adapter is left, and the export is a plain one.
    assert list(trainer.model.peft_config) == ["default"]
    assert trainer.model.active_adapter == "default"
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(model(), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(loaded), logits(trainer.model), **CLOSE)


def osf_layers(of: Any) -> list[Any]:
    return [layer for layer in switchable_layers(of) if hasattr(layer, "osf_svd_params")]


def test_osf_trains_what_remains_of_each_weight(tmp_path: Path) -> None:
    base = logits(model())
    trainer = make(tmp_path, method="osf", method_options={"osf_kept": 0.25})
    layers = osf_layers(trainer.base_model)
    assert len(layers) == 14
    for layer in layers:
        shape = layer.get_base_layer().weight.shape
        assert len(layer.osf_svd_params["default"]["S_low"]) == min(shape) - min(shape) // 4
    torch.testing.assert_close(logits(trainer.model), base, **CLOSE)
    before = Before()
    trainer.add_callback(before)
    trainer.train()
    tuned = logits(trainer.model)
    assert torch.equal(tuned, before.logits)
    assert (tuned - base).abs().max() > 0.05
    with adapters_off(trainer.base_model):
        assert torch.equal(logits(trainer.model), base)
    trainer.save_model(str(tmp_path / "adapter"))
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["peft_type"] == "OSF"
    loaded = PeftModel.from_pretrained(model(), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(loaded), tuned, **CLOSE)
    torch.testing.assert_close(logits(loaded.merge_and_unload()), tuned, **CLOSE)


def strong(layer: Any) -> tuple[Tensor, Tensor]:
    U, S, Vh = torch.linalg.svd(layer.get_base_layer().weight.detach().double(), full_matrices=False)
    k = len(S) // 4
    return U[:, :k], Vh[:k]


def test_osf_keeps_its_gradients_out_of_the_strong_directions(tmp_path: Path) -> None:
    """AdamW's division by each entry's own size then leads the steps back into them: PEFT projects gradients alone."""
    trainer = make(
        tmp_path, method="osf", method_options={"osf_kept": 0.25}, max_steps=1, optim="sgd", learning_rate=0.1
    )
    layers = osf_layers(trainer.base_model)
    start = [{n: p.detach().clone() for n, p in layer.osf_svd_params["default"].items()} for layer in layers]
    trainer.train()
    moved = 0.0
    for layer, first in zip(layers, start, strict=True):
        U, Vh = strong(layer)
        steps = {n: (p.detach() - first[n]).double() for n, p in layer.osf_svd_params["default"].items()}
        size = float(steps["U_low"].norm())
        moved = max(moved, size)
        assert float((U.T @ steps["U_low"]).norm()) <= 1e-4 * size
        assert float((steps["V_low"] @ Vh.T).norm()) <= 1e-4 * float(steps["V_low"].norm())
    assert moved > 1e-4


def test_osf_resumes_and_holds_the_prompt(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"method": "selfaug+osf", "lr_scheduler_type": "constant"}
    whole = make(tmp_path / "whole", **settings)
    whole.train()
    assert any("alignment" in entry for entry in whole.state.log_history)
    make(tmp_path / "two", max_steps=2, **settings).train()
    again = make(tmp_path / "two", **settings)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(logits(again.model), logits(whole.model))
    plain = make(tmp_path / "plain", method="osf", lr_scheduler_type="constant")
    plain.train()
    assert not torch.equal(logits(plain.model), logits(whole.model))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "osf", "peft_config": lora(use_dora=True)}, "use_dora"),
        ({"method": "osf", "peft_config": lora(exclude_modules=["q_proj"])}, "exclude_modules"),
        ({"method": "osf", "peft_config": lora(init_lora_weights="pissa")}, "init_lora_weights"),
        ({"method": "osf+l2"}, "trains OSF's"),
        ({"method": "osf+corda"}, "decide where the adapter starts"),
        ({"method": "intruder", "peft_config": lora(target_modules=["q_proj", "embed_tokens"])}, "another kind"),
        ({"method": "osf", "method_options": {"osf_kept": 1.0}}, "out of range"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        make(tmp_path, **changes)
    assert said in str(refused.value)
