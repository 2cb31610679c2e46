"""The rehearsal: a trial of the settings on the model without its weights, so that libraries refuse bad ones at once.

transformers, trl and peft check most of their settings when the model is loaded, when the first step begins or when the
first evaluation ends, minutes later. Here the model is built on the meta device, where weights take no memory and no
time, and the libraries' own code runs on it as it will on the loaded model.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from selfaug.cli.refusal import plain, refused
from selfaug.common.errors import ConfigError, UserError, nearest
from selfaug.common.quiet import unwarned
from selfaug.common.redaction import is_secret

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from selfaug.cli.parsing import Settings

__all__ = ["adapter_settings", "rehearse"]

# Some operations fail on a device without storage, which says nothing about a setting.
_OF_META = re.compile(r"\bmeta\b|no data|FakeTensor")
_MEASURED = ("loss", "nll", "entropy", "mean_token_accuracy", "runtime", "samples_per_second", "steps_per_second")


class _NotTried(Exception):  # noqa: N818 - not an error: it skips the rest of the rehearsal
    pass


@dataclass(frozen=True)
class _Stage:
    """A context whose errors name the settings of one stage of the rehearsal, with their values.

    Args:
        values: Values of the data classes, by name.
    """

    values: Mapping[str, Any]

    @contextlib.contextmanager
    def __call__(self, *names: str) -> Iterator[None]:
        try:
            with unwarned():  # the real run gives the warnings
                yield
        except (UserError, _NotTried):
            raise
        except NotImplementedError:
            raise _NotTried from None
        except Exception as error:
            if _OF_META.search(str(error)):
                raise _NotTried from None
            raise refused(error, names, self.values) from error


def rehearse(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check, before any weight is read, that transformers, trl, peft and PyTorch will accept the settings.

    Args:
        settings: Settings of the run; not changed.
        tokenizer: Tokenizer with the tokens that the run will use.

    Raises:
        ConfigError: If not; with the setting, its value, and the library's message.
    """
    if settings.training.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        return  # DeepSpeed's own initialisation splits weights while a model is built
    values = {**vars(settings.training), **vars(settings.model)}
    stage = _Stage(values)
    logger = logging.getLogger()
    level = logger.manager.disable
    logging.disable(logging.WARNING)  # the real run gives the warnings
    state = torch.random.get_rng_state()
    try:
        _check_metric(settings.training)
        _check_checkpointing(settings.training)
        _check_hub(settings.training)
        _check_compilation(settings, stage)
        _check_kernels(settings, stage)
        bare = _bare_model(settings, stage)
        model = _adapted(bare, settings, stage)
        _set_up(model, settings, tokenizer, stage)
    except _NotTried:
        return
    finally:
        torch.random.set_rng_state(state)
        logging.disable(level)


def _check_metric(training: Any) -> None:
    """Check the name of the metric, which transformers does only when the first evaluation ends."""
    wanted = training.metric_for_best_model
    schedules = ("reduce_lr_on_plateau", "greedy")
    decides = training.load_best_model_at_end or plain(training.save_strategy) == "best"
    if wanted is None or not (decides or plain(training.lr_scheduler_type) in schedules):
        return
    changes = training.changes
    terms = [*(term.term.name for term in changes.terms), *(term.name for term in changes.parameter_terms)]
    activation = changes.activation_term
    known = dict.fromkeys([*_MEASURED, *terms, *([] if activation is None else [activation.name])])
    if training.aligns:
        known["alignment"] = None
    if str(wanted).removeprefix("eval_") not in known:
        raise ConfigError(
            f"metric_for_best_model={wanted!r} is not measured by an evaluation during training, and would be missed "
            f"at the end of the first one.{nearest(str(wanted), known)}",
            f"give one of {', '.join(known)}.",
        )


def _check_checkpointing(training: Any) -> None:
    from torch.utils.checkpoint import checkpoint

    # checkpoint() takes `preserve_rng_state` out of its keyword arguments; `selective` belongs to trl.
    known = {*inspect.signature(checkpoint).parameters, "preserve_rng_state", "selective"} - {
        "function",
        "args",
        "kwargs",
    }
    for name in training.gradient_checkpointing_kwargs or {} if training.gradient_checkpointing else {}:
        if name not in known:
            raise ConfigError(
                f"gradient_checkpointing_kwargs: {name!r} is no option of checkpointing.{nearest(name, known)}",
                f"the options are {', '.join(sorted(known))}.",
            )


def _check_hub(training: Any) -> None:
    """Check the settings of the hub, where trl makes the repository only when the model is loaded."""
    if not training.push_to_hub:
        return
    from huggingface_hub import HfApi
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    if is_offline_mode():
        raise ConfigError(
            "push_to_hub uploads the model, and the hub is switched off (HF_HUB_OFFLINE)",
            "leave --push_to_hub out and upload the finished folder later, or unset HF_HUB_OFFLINE.",
        )
    try:
        if training.hub_model_id is not None:
            validate_repo_id(training.hub_model_id)
    except HFValidationError as error:
        raise ConfigError(f"hub_model_id={training.hub_model_id!r} is no name of a repository: {error}",
                          "give a name of the form owner/name.") from None  # fmt: skip
    try:
        HfApi().whoami(token=training.hub_token)
    except Exception as error:
        raise ConfigError(
            f"push_to_hub uploads the model, and the hub does not know who you are ({type(error).__name__})",
            "log in (`hf auth login`), set HF_TOKEN, or leave --push_to_hub out.",
        ) from None


def _check_kernels(settings: Settings, stage: _Stage) -> None:
    from transformers.integrations.liger import apply_liger_kernel
    from transformers.utils import is_liger_kernel_available

    # An installed liger-kernel is not tried, since it would change modules of transformers.
    if settings.training.use_liger_kernel and not is_liger_kernel_available():
        with stage("use_liger_kernel"):
            apply_liger_kernel(None, None)


def _check_compilation(settings: Settings, stage: _Stage) -> None:
    training = settings.training
    if training.torch_compile:
        with stage("torch_compile_backend", "torch_compile_mode"):
            torch.compile(torch.nn.Identity(), backend=training.torch_compile_backend, mode=training.torch_compile_mode)


def _bare_model(settings: Settings, stage: _Stage) -> nn.Module:
    """Return the model without weights, of the class that trl uses."""
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl import get_quantization_config

    training, chosen = settings.training, settings.model
    extra = dict(training.model_init_kwargs or {}) if isinstance(training.model_init_kwargs, dict) else {}
    implementation = extra.get("attn_implementation", chosen.attn_implementation)
    dtype = extra.get("dtype", chosen.dtype)
    try:
        config = AutoConfig.from_pretrained(
            str(chosen.model_name_or_path),
            revision=chosen.model_revision,
            trust_remote_code=training.trust_remote_code,
        )
    except Exception:
        raise _NotTried from None  # `check_model` has checked it
    _check_loading(extra, config)
    with stage("model_init_kwargs"):
        from transformers.integrations.accelerate import check_and_set_device_map

        check_and_set_device_map(extra.get("device_map"))
    with stage("load_in_4bit", "load_in_8bit"):
        quantization = get_quantization_config(chosen)
        if quantization is not None or getattr(config, "quantization_config", None) is not None:
            from transformers.quantizers.auto import get_hf_quantizer

            get_hf_quantizer(copy.deepcopy(config), quantization, None, True, {})
    model_class = getattr(transformers, (config.architectures or [""])[0], None)
    options = {} if implementation is None else {"attn_implementation": implementation}
    if isinstance(dtype, str) and dtype not in ("auto", ""):
        options["dtype"] = getattr(torch, dtype, None)
    if model_class is None and training.trust_remote_code:
        raise _NotTried  # a model's own code may not work without storage
    with stage("attn_implementation"), torch.device("meta"):
        model: nn.Module = (
            AutoModelForCausalLM.from_config(config, **options)
            if model_class is None
            else model_class._from_config(config, **options)
        )
    return model


def _check_loading(extra: Mapping[str, Any], config: Any) -> None:
    from selfaug.model.libraries import loading_options

    known = loading_options()
    for name in extra:
        if name not in known and not hasattr(config, name):
            raise ConfigError(
                f"model_init_kwargs: {name!r} is neither an option of from_pretrained nor a field of the model's "
                f"configuration.{nearest(name, [*known, *vars(config)])}",
                "correct or leave out the name.",
            )
        if is_secret(name):
            raise ConfigError(
                f"model_init_kwargs holds {name!r}, and settings are written into the run's files",
                "set HF_TOKEN in the environment instead.",
            )


def adapter_settings(chosen: Any) -> PeftConfig | None:
    """Return PEFT's settings of the adapter; ``None`` without one.

    trl turns a single word of ``lora_target_modules`` into a string, which PEFT reads as a regular expression over the
    modules' full names, so that ``q_proj`` alone would match none. Here a word without special characters is treated
    as in a list: it matches the end of names.

    Args:
        chosen: Settings of the model, a `trl.ModelConfig`.

    Raises:
        ConfigError: If PEFT refuses a value.
    """
    from trl import get_peft_config

    try:
        config = get_peft_config(chosen)
    except (ValueError, TypeError) as error:
        raise refused(error, ["lora_task_type"], vars(chosen)) from error
    word = None if config is None else config.target_modules
    if isinstance(word, str) and word != "all-linear" and re.fullmatch(r"[\w.-]+", word):
        config.target_modules = {word}
    return config


def _ends(name: str, last: str) -> bool:
    return name == last or name.endswith(f".{last}")


def _adapted(bare: Any, settings: Settings, stage: _Stage) -> Any:
    from selfaug.model.libraries import spare_refused_modules

    names = [name for name, _ in bare.named_modules() if name]
    config = adapter_settings(settings.model)
    if config is None:
        return bare
    _check_targets(config.target_modules, names, bare)
    _check_names("lora_modules_to_save", settings.model.lora_modules_to_save, names)
    parameters = [name for name, _ in bare.named_parameters()]
    _check_names("lora_target_parameters", settings.model.lora_target_parameters, parameters)
    from peft import get_peft_model

    with stage("lora_r", "lora_target_modules", "lora_modules_to_save", "lora_target_parameters", "lora_dropout"):
        spare_refused_modules(config, str(bare.config.model_type))
        return get_peft_model(bare, config)


def _check_targets(targets: Any, names: list[str], bare: Any) -> None:
    if targets is None or targets == "all-linear":
        return
    from transformers.pytorch_utils import Conv1D

    head = bare.get_output_embeddings() if hasattr(bare, "get_output_embeddings") else None
    linear = [
        name
        for name, module in bare.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head
    ]
    last = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in linear))
    hint = f"name some of {', '.join(last)}, or all-linear alone for every linear layer but the head."
    if isinstance(targets, str):
        try:
            matches = any(re.fullmatch(targets, name) for name in names)
        except re.error as error:
            raise ConfigError(
                f"lora_target_modules={targets!r} is no regular expression ({error}), which PEFT takes one word for",
                hint,
            ) from None
        if not matches:
            raise ConfigError(
                f"lora_target_modules={targets!r} is the end of no module's name, and as a pattern over full names "
                f"(such as {linear[0] if linear else 'none'}) it matches none either."
                f"{nearest(targets, [*last, 'all-linear'])}",
                hint,
            )
        return
    if "all-linear" in targets:
        raise ConfigError(
            "lora_target_modules names all-linear beside other modules, and PEFT would take it for a module's name",
            hint,
        )
    _check_names("lora_target_modules", sorted(targets), names, last, hint)


def _check_names(
    setting: str, wanted: Any, names: list[str], near: list[str] | None = None, hint: str | None = None
) -> None:
    lost = [one for one in wanted or () if not any(_ends(name, str(one)) for name in names)]
    if not lost:
        return
    known = near if near is not None else list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))
    shown = ", ".join([name for name in known if not name.isdigit()][:12])
    close = " ".join(filter(None, (nearest(str(one), known).strip() for one in lost)))
    raise ConfigError(
        f"{setting}: nothing in the model is called {' or '.join(repr(str(one)) for one in lost)}, so it would "
        f"silently have no part in the training.{' ' if close else ''}{close}",
        hint or f"leave the name out, or give one that the model has, such as {shown}.",
    )


def _set_up(model: nn.Module, settings: Settings, tokenizer: PreTrainedTokenizerBase, stage: _Stage) -> None:
    """Make trl's trainer around the model, with its optimizer, schedule and data loader."""
    from transformers.integrations import get_reporting_integration_callbacks
    from trl import SFTTrainer

    class Rehearsal(SFTTrainer):
        def _move_model_to_device(self, model: Any, device: Any) -> None:
            """Do nothing: there are no weights to move."""

    with tempfile.TemporaryDirectory() as folder:
        training = _harmless(settings.training, folder)
        with stage("report_to"):
            for callback in get_reporting_integration_callbacks(training.report_to):
                callback()
        training.report_to = []
        with stage():
            trainer = Rehearsal(
                model=model,
                args=training,
                train_dataset=_rows(tokenizer),
                eval_dataset=_rows(tokenizer) if str(plain(training.eval_strategy)) != "no" else None,
                processing_class=copy.deepcopy(tokenizer),
            )
        with stage("optim", "optim_args", "optim_target_modules", "learning_rate"):
            trainer.create_optimizer()
        with stage("lr_scheduler_type", "lr_scheduler_kwargs"):
            trainer.create_scheduler(num_training_steps=10, optimizer=trainer.optimizer)
        with stage("dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_persistent_workers"):
            trainer.get_train_dataloader()


def _rows(tokenizer: PreTrainedTokenizerBase) -> Any:
    from datasets import Dataset

    return Dataset.from_list([{"input_ids": [0, 1, 0, 1], "labels": [-100, -100, 0, 1]}] * 2)


def _harmless(training: Any, folder: str) -> Any:
    """Return a copy of the settings that writes nothing, uploads nothing and needs no other process."""
    kept = copy.copy(training)
    for name in ("model_init_kwargs", "gradient_checkpointing_kwargs", "dataset_kwargs", "lr_scheduler_kwargs"):
        setattr(kept, name, copy.deepcopy(getattr(training, name)))
    kept.output_dir, kept.push_to_hub, kept.chat_template_path = folder, False, None
    kept.model_init_kwargs, kept.dataset_num_proc = None, None
    # These settings depend on rows, which have not been read yet.
    kept.assistant_only_loss, kept.resume_from_checkpoint = False, None
    kept.activation_offloading = False
    if kept.padding_free and not kept.packing:
        kept.max_length = None  # as in our trainer: rows are fitted before TRL sees them
    return kept
