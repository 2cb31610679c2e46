"""Are adapters that hide the base refused by name, and do the checks leave the model as it was?"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from selfaug.common.errors import ConfigError
from selfaug.model.checks import check_head, probe_tokens
from selfaug.model.libraries import switchable_layers
from selfaug.model.parts import head_of
from selfaug.reference import make_reference
from selfaug.reference.adapter import BaseReference, InitialReference
from selfaug.reference.checks import check_peft, check_reference
from tests.integration import small
from tests.models import VOCAB, tiny, with_lora
from tests.unit.adapted import adapted, hidden, same, state

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
    "poly": (peft.PolyConfig(target_modules=["q_proj"]), "peft_type=POLY", "use LoRA"),
    "adalora": (peft.AdaLoraConfig(total_step=10), "update_and_allocate", "use LoRA"),
    "activated": (LoraConfig(alora_invocation_tokens=[5], task_type="CAUSAL_LM"), "from these tokens onwards", "leave"),
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
    with pytest.raises(ConfigError, match="already changes the model") as refused:
        check_reference(model, BaseReference())
    assert "init_lora_weights=False" in refused.value.message
    assert "init_lora_weights=True" in refused.value.hint
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


@pytest.mark.parametrize("kind", ["base", "initial"])
def test_autocast_does_not_hide_that_weights_moved(kind: str) -> None:
    """Autocast keeps its 16-bit copy of a trained weight: the perturbed adapter would look like the one before."""
    model, _ = adapted(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.is_autocast_cache_enabled()
        check_reference(model, make_reference(kind, model))
        assert torch.is_autocast_cache_enabled()


def test_an_adapter_without_effect_is_found() -> None:
    model, _ = adapted(perturb=True)
    for layer in switchable_layers(model):
        layer._disable_adapters = True
    with pytest.raises(ConfigError, match="do not change the model's output"):
        check_reference(model, BaseReference())


def test_full_fine_tuning_needs_a_path(tmp_path: Path) -> None:
    from selfaug.training.trainer import SelfAugTrainer
    from tests.integration.killed_run import config

    rows = Dataset.from_list(small.rows(8))
    for kind in ("base", "initial"):
        said = f"reference='{kind}' needs an adapter to switch off or copy, and full fine-tuning has none"
        with pytest.raises(ConfigError, match=said) as refused:
            SelfAugTrainer(
                small.model(), config(tmp_path, reference=kind), train_dataset=rows, processing_class=small.tokenizer()
            )
        assert "--reference PATH" in refused.value.hint


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


# ---- rounding -------------------------------------------------------------------------------------------------------


def fresh_kl(model: torch.nn.Module) -> float:
    """KL between the base and the model with its adapter on, from full logits, mean over tokens."""
    ids = probe_tokens(model)
    with torch.no_grad():
        tuned = model(input_ids=ids).logits.double().log_softmax(-1)
        with BaseReference().serving(model) as base:
            log_q = base(input_ids=ids).logits.double().log_softmax(-1)
    return float((log_q.exp() * (log_q - tuned)).sum(-1).mean())


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gemma2"])
def test_a_fresh_dora_passes_in_16_bits_although_it_rounds_anew(arch: str) -> None:
    # As PEFT makes it by default: magnitudes in float32 over weights in bfloat16.
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=True)
    model = peft.get_peft_model(tiny(arch, dtype=torch.bfloat16), config).get_base_model().eval()
    assert fresh_kl(model) > 1e-6, "nothing is rounded, and the tolerance of float32 would do"
    check_reference(model, BaseReference())


def test_more_than_rounding_is_found_in_16_bits() -> None:
    """An adapter that went on training has a product, and its magnitudes are not the weights' norms."""
    for settings in ({}, {"use_dora": True}):
        model, _ = adapted(dtype=torch.bfloat16, **settings)
        check_reference(model, BaseReference())
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.fill_(0.01)
        with pytest.raises(ConfigError, match="already changes the model"):
            check_reference(model, BaseReference())
    model, _ = adapted(dtype=torch.bfloat16, use_dora=True)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "magnitude" in name:
                p.mul_(1.2)
    with pytest.raises(ConfigError, match="already changes the model"):
        check_reference(model, BaseReference())


def test_trained_tokens_are_looked_at_where_they_are() -> None:
    """No token of the probe is trained, so that training would seem to change nothing."""
    base = tiny("llama", dtype=torch.float32)
    assert not {5, 6} & set(probe_tokens(base)[0].tolist())
    config = peft.TrainableTokensConfig(token_indices=[5, 6], task_type="CAUSAL_LM")
    check_peft(config, "base")
    check_reference(peft.get_peft_model(base, config).get_base_model(), BaseReference())


@pytest.mark.parametrize("given", ["quantised model", "settings"])
def test_quantised_weights_are_not_trained_themselves(given: str, tmp_path: Path) -> None:
    from transformers import BitsAndBytesConfig

    from selfaug.training.trainer import SelfAugTrainer
    from tests.integration.killed_run import config

    model, settings = small.model(), {}
    if given == "settings":
        settings = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True)}
    else:
        model.hf_quantizer = object()
    with pytest.raises(ConfigError, match="weights are quantised and there is no adapter") as refused:
        SelfAugTrainer(
            model,
            config(tmp_path, alpha=0.0),
            train_dataset=Dataset.from_list(small.rows(8)),
            processing_class=small.tokenizer(),
            **settings,
        )
    assert "--use_peft true" in refused.value.hint


def test_dora_over_8_bits_is_refused_on_a_cpu(tmp_path: Path) -> None:
    from transformers import BitsAndBytesConfig

    from selfaug.training.trainer import SelfAugTrainer
    from tests.integration.killed_run import config

    with pytest.raises(ConfigError, match="use_dora reads the values") as refused:
        SelfAugTrainer(
            "never loaded",
            config(tmp_path, alpha=0.0),
            train_dataset=Dataset.from_list(small.rows(8)),
            processing_class=small.tokenizer(),
            peft_config=small.lora(use_dora=True),
            quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        )
    assert "load_in_4bit" in refused.value.hint
