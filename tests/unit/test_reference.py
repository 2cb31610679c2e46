"""Does the reference stay where it is, give back what it borrows, and get refused where it is not what it claims?"""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from selfaug.errors import ConfigError
from selfaug.model_checks import check_head, probe_tokens
from selfaug.model_parts import body_of, head_of
from selfaug.reference import make_reference
from selfaug.reference.adapter import BaseReference, InitialReference, adapters_off, evaluating
from selfaug.reference.checks import check_peft, check_reference
from selfaug.trl_names import switchable_layers
from tests.integration import small
from tests.models import VOCAB, perturb_adapter, tiny, with_lora

INPUT_IDS = torch.arange(5, 17)[None]


def hidden(model: nn.Module) -> Tensor:
    return body_of(model)(input_ids=INPUT_IDS, use_cache=False).last_hidden_state.detach()


def adapted(
    arch: str = "llama", perturb: bool = False, dtype: torch.dtype = torch.float64, **settings: Any
) -> tuple[nn.Module, nn.Module]:
    """The causal LM inside the wrapper, and the wrapper."""
    config = LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        wrapped = get_peft_model(tiny(arch, dtype=dtype), config, autocast_adapter_dtype=False)
    if perturb:
        perturb_adapter(wrapped)
    return wrapped.get_base_model(), wrapped.eval()


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


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
    stored = {name: tensor.clone() for name, tensor in reference.tensors().items()}
    other_model, _ = adapted()
    other = InitialReference(other_model)
    assert other.digest(other_model) != reference.digest(model)
    other.load_tensors(stored)
    assert other.digest(other_model) == reference.digest(model)
    with pytest.raises(ConfigError, match="has shape"):
        InitialReference(adapted(r=6)[0]).load_tensors(stored)


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


# ---- refusals -------------------------------------------------------------------------------------------------------


_REWRITES = "rewrites the base weights"
_INITIAL = "reference='initial'"
REFUSED = {
    "pissa": (LoraConfig(init_lora_weights="pissa"), _REWRITES, _INITIAL),
    "pissa_niter_4": (LoraConfig(init_lora_weights="pissa_niter_4"), _REWRITES, _INITIAL),
    "olora": (LoraConfig(init_lora_weights="olora"), _REWRITES, _INITIAL),
    "bias all": (LoraConfig(bias="all"), "bias='all'", "bias='none'"),
    "bias lora_only": (LoraConfig(bias="lora_only"), "bias='lora_only'", "bias='none'"),
    "layer_replication": (LoraConfig(layer_replication=[(0, 2), (1, 2)]), "deeper", "layer_replication"),
    "lm_head": (LoraConfig(target_modules=["q_proj", "lm_head"]), "'lm_head'", "modules_to_save"),
    "lm_head alone": (LoraConfig(target_modules="lm_head"), "'lm_head'", "modules_to_save"),
    "prompt tuning": (
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), "PROMPT_TUNING", "use LoRA",
    ),
    "prefix tuning": (
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), "PREFIX_TUNING", "use LoRA",
    ),
    "p-tuning": (
        peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), "P_TUNING", "use LoRA",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_an_adapter_that_hides_the_base_is_refused_by_name(case: str) -> None:
    config, said, remedy = REFUSED[case]
    with pytest.raises(ConfigError) as refused:
        check_peft(config, "base")
    assert said in refused.value.message
    assert remedy in refused.value.hint
    if "reference='initial'" in refused.value.hint:
        check_peft(config, "initial")  # the remedy works


@pytest.mark.parametrize(
    "settings",
    [{}, {"init_lora_weights": "gaussian"}, {"init_lora_weights": "orthogonal"}, {"use_dora": True},
     {"use_rslora": True}, {"init_lora_weights": "mica"}, {"target_modules": r".*(?<!lm_head)_proj"}],
)  # fmt: skip
def test_adapters_that_keep_the_base_pass_every_check(settings: dict[str, Any]) -> None:
    config = LoraConfig(**{"target_modules": "all-linear", "task_type": "CAUSAL_LM", "r": 4, **settings})
    check_peft(config, "base")
    model, _ = adapted(dtype=torch.float32, **settings)
    for kind in ("base", "initial"):
        check_reference(model, make_reference(kind, model))


@pytest.mark.parametrize("start", ["pissa", "olora", False])
def test_the_trial_itself_finds_out(start: Any) -> None:
    # What `check_peft` refuses by name, the check with a perturbed adapter must find by itself.
    base = tiny("llama", dtype=torch.float32)
    model, _ = adapted(init_lora_weights=start, dtype=torch.float32)
    if start is not False:
        assert hidden(model).allclose(hidden(base), atol=1e-3)
        with BaseReference().serving(model) as served:
            assert not hidden(served).allclose(hidden(base), atol=0.1), "the base weights were not rewritten"
    with pytest.raises(ConfigError, match="already changes the model"):
        check_reference(model, BaseReference())
    check_reference(model, InitialReference(model))


def test_an_existing_adapter_is_refused_for_base_and_taken_for_initial() -> None:
    model, _ = adapted(perturb=True)
    with pytest.raises(ConfigError, match="already changes the model") as refused:
        check_reference(model, BaseReference())
    assert "reference='initial'" in refused.value.hint
    check_reference(model, InitialReference(model))


def test_a_weight_trained_outside_the_adapter_is_found() -> None:
    model, _ = adapted()
    model.get_submodule("model.norm").weight.requires_grad_(True)
    with pytest.raises(ConfigError, match="moves when the trained weights do"):
        check_reference(model, BaseReference())
    check_reference(model, InitialReference(model))


def test_an_adapter_without_effect_is_found() -> None:
    model, _ = adapted(perturb=True)
    for layer in switchable_layers(model):
        layer._disable_adapters = True
    with pytest.raises(ConfigError, match="do not change the model's output"):
        check_reference(model, BaseReference())


def test_full_fine_tuning_needs_a_path(tmp_path: Path) -> None:
    from selfaug.trainer import SelfAugTrainer
    from tests.integration.killed_run import config

    rows = Dataset.from_list(small.rows(8))
    for kind in ("base", "initial"):
        with pytest.raises(ConfigError, match="full fine-tuning has none") as refused:
            SelfAugTrainer(
                small.model(), config(tmp_path, reference=kind), train_dataset=rows, processing_class=small.tokenizer()
            )
        assert "--reference PATH" in refused.value.hint


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


# ---- the checks leave no trace --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["base", "initial"])
@pytest.mark.parametrize("training", [True, False])
def test_the_checks_leave_weights_modes_and_random_state_as_they_were(kind: str, training: bool) -> None:
    model, _ = adapted(lora_dropout=0.3)
    model.train(training)
    torch.manual_seed(11)
    weights, random_state = state(model), torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    check_head(model)
    check_reference(model, make_reference(kind, model))
    assert same(state(model), weights)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())


def test_a_failed_check_leaves_the_weights_too() -> None:
    model, _ = adapted(perturb=True)
    weights = state(model)
    with pytest.raises(ConfigError):
        check_reference(model, BaseReference())
    assert same(state(model), weights)


@pytest.mark.parametrize("arch", ["llama", "gemma2", "cohere", "granite", "falcon_h1"])
def test_a_head_that_we_know_passes(arch: str) -> None:
    check_head(tiny(arch))


@pytest.mark.parametrize("change", ["scale", "cap", "shift"])
def test_a_head_that_we_do_not_know_is_refused(change: str) -> None:
    model = tiny("llama")
    original = model.forward
    transforms = {"scale": lambda z: 1.01 * z, "cap": lambda z: 5 * torch.tanh(z / 5), "shift": lambda z: z.roll(1, -1)}

    def forward(*args: Any, **kwargs: Any) -> Any:
        outputs = copy.copy(original(*args, **kwargs))
        outputs.logits = transforms[change](outputs.logits)
        return outputs

    model.forward = forward
    with pytest.raises(ConfigError, match="does something to its logits that selfaug does not know"):
        check_head(model)


def test_an_adapter_on_the_head_is_refused_where_the_head_is_read() -> None:
    model, _ = adapted(target_modules=["q_proj", "lm_head"])
    with pytest.raises(ConfigError, match="the output projection") as refused:
        head_of(model)
    assert "lm_head" in refused.value.hint


def test_probe_tokens_are_in_the_vocabulary_and_differ() -> None:
    tokens = probe_tokens(with_lora(tiny("llama")).get_base_model())
    assert tokens.shape == (1, 8)
    assert len(set(tokens[0].tolist())) == 8
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < VOCAB
