"""Does the reference stay where it is, and give back what it borrows?"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from selfaug.common.errors import ConfigError
from selfaug.model.checks import check_head
from selfaug.model.libraries import switchable_layers
from selfaug.model.parts import body_of, head_of
from selfaug.model.switch import adapters_off, evaluating
from selfaug.reference import make_reference
from selfaug.reference.adapter import BaseReference, InitialReference
from selfaug.reference.checks import check_peft, check_reference
from tests.models import VOCAB, perturb_adapter, tiny
from tests.unit.adapted import INPUT_IDS, adapted, hidden, same, state

# ---- switching ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "qwen2", "mixtral"])
def test_off_is_the_base_and_on_is_the_tuned(arch: str) -> None:
    base, (model, _) = tiny(arch), adapted(arch, perturb=True)
    tuned = hidden(model)
    assert (tuned - hidden(base)).abs().max() > 1e-3, "the adapter changes nothing: the comparison would be empty"
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert any(flags.values())
    with adapters_off(model):
        assert torch.equal(hidden(model), hidden(base))
        assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert torch.equal(hidden(model), tuned)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


def test_a_layer_that_was_off_stays_off() -> None:
    model, _ = adapted(perturb=True)
    first, *rest = switchable_layers(model)
    assert len(rest) > 5
    first._disable_adapters = True
    with contextlib.suppress(RuntimeError), adapters_off(model):
        assert all(layer._disable_adapters for layer in rest)
        raise RuntimeError
    assert first._disable_adapters
    assert not any(layer._disable_adapters for layer in rest), "an error left the adapter off"


def test_evaluating_gives_each_module_its_own_mode_back() -> None:
    model, _ = adapted()
    model.train()
    model.get_submodule("model.layers.1").eval()
    before = {name: module.training for name, module in model.named_modules()}
    assert len(set(before.values())) == 2
    with contextlib.suppress(RuntimeError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError
    assert {name: module.training for name, module in model.named_modules()} == before


def test_the_reference_pass_has_no_dropout_and_no_graph() -> None:
    model, _ = adapted(perturb=True, lora_dropout=0.5)
    model.train()
    assert not torch.equal(hidden(model), hidden(model)), "no dropout is active"
    for kind in ("base", "initial"):
        reference = make_reference(kind, model)
        with reference.serving(model) as served:
            one = body_of(served)(input_ids=INPUT_IDS, use_cache=False).last_hidden_state
            assert not one.requires_grad
            assert torch.equal(one, hidden(served))
        assert model.training


# ---- base and initial -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["base", "initial"])
def test_training_moves_the_tuned_model_and_not_the_reference(kind: str) -> None:
    model, _ = adapted(perturb=True)
    reference = make_reference(kind, model)
    with reference.serving(model) as served:
        before = hidden(served)
    tuned = hidden(model)
    assert torch.equal(before, tuned) == (kind == "initial")
    perturb_adapter(model, seed=9)
    assert not torch.equal(hidden(model), tuned)
    with reference.serving(model) as served:
        assert torch.equal(hidden(served), before)


def test_initial_gives_the_trained_weights_back_to_the_bit() -> None:
    model, _ = adapted(perturb=True)
    reference = InitialReference(model)
    perturb_adapter(model, seed=9)
    trained, identities = state(model), {name: id(p) for name, p in model.named_parameters()}
    with contextlib.suppress(RuntimeError), reference.serving(model):
        assert not same(state(model), trained)
        raise RuntimeError
    assert same(state(model), trained)
    assert {name: id(p) for name, p in model.named_parameters()} == identities, "an optimizer would lose its weights"


def test_initial_is_neither_exported_nor_a_second_adapter() -> None:
    model, wrapped = adapted(perturb=True)
    names = set(wrapped.state_dict())
    InitialReference(model)
    assert set(wrapped.state_dict()) == names
    assert list(wrapped.peft_config) == ["default"]


def test_initial_travels_through_a_checkpoint() -> None:
    model, _ = adapted(perturb=True)
    reference = InitialReference(model)
    stored = {name: tensor.clone() for name, tensor in reference.tensors(model).items()}
    other_model, _ = adapted()
    other = InitialReference(other_model)
    assert other.digest(other_model) != reference.digest(model)
    other.load_tensors(stored, other_model)
    assert other.digest(other_model) == reference.digest(model)
    with pytest.raises(ConfigError, match="has shape"):
        InitialReference(third := adapted(r=6)[0]).load_tensors(stored, third)


def test_initial_needs_an_adapter() -> None:
    with pytest.raises(ConfigError, match="full fine-tuning has none") as refused:
        InitialReference(tiny("llama"))
    assert "--reference PATH" in refused.value.hint


def test_a_digest_tells_bases_apart_and_not_adapters() -> None:
    model, _ = adapted()
    reference = BaseReference()
    digest = reference.digest(model)
    perturb_adapter(model, seed=4)
    assert reference.digest(model) == digest
    frozen = next(p for name, p in model.named_parameters() if "q_proj.base_layer" in name)
    with torch.no_grad():
        frozen.view(-1)[0] += 1e-9
    assert reference.digest(model) != digest


# ---- the head -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["base", "initial"])
def test_a_trained_head_has_the_untrained_one_as_reference(kind: str) -> None:
    model, _ = adapted(modules_to_save=["lm_head"])
    reference = make_reference(kind, model)
    check_peft(LoraConfig(modules_to_save=["lm_head"]), kind)
    check_head(model)
    check_reference(model, reference)
    with torch.no_grad():
        head_of(model).weight_VH.add_(0.1)
    own = reference.head(model)
    assert own is not None
    assert torch.equal(own.weight_VH, tiny("llama").lm_head.weight)
    assert not torch.equal(head_of(model).weight_VH, own.weight_VH)


def test_a_frozen_head_is_shared() -> None:
    model, _ = adapted()
    assert BaseReference().head(model) is None
    assert InitialReference(model).head(model) is None


@pytest.mark.parametrize("modules", [["norm"], ["lm_head"], ["embed_tokens"]])
def test_saved_modules_work_with_base(modules: list[str]) -> None:
    model, _ = adapted(modules_to_save=modules)
    base = hidden(tiny("llama"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1)
    reference = BaseReference()
    with reference.serving(model) as served:
        assert torch.equal(hidden(served), base)
    assert head_of(model).logits(hidden(model)).allclose(model(INPUT_IDS).logits[0])


def test_a_path_is_a_frozen_copy_with_the_same_vocabulary(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path / "base")
    model = tiny("llama")
    reference = make_reference(str(tmp_path / "base"), model)
    before = hidden(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    assert not torch.equal(hidden(model), before)
    with reference.serving(model) as served:
        assert torch.equal(hidden(served), before)
        assert not any(p.requires_grad for p in served.parameters())
    own = reference.head(model)
    assert own is not None
    assert torch.equal(own.weight_VH, tiny("llama").lm_head.weight)
    with pytest.raises(ConfigError, match=f"vocabulary of {VOCAB} tokens, the trained model one of {VOCAB + 2}"):
        make_reference(str(tmp_path / "base"), tiny("llama", vocab=VOCAB + 2))
