"""The ms-swift plugin: ``--external_plugins selfaug_swift.py``, whose one line is ``import selfaug.plugins.ms_swift``.

ms-swift takes no arguments of plugins. Settings are environment variables such as ``SELFAUG_ALPHA=2``, as its own
settings of models are: in the shell, under ``ENV`` in a YAML file, or in ``--model_kwargs '{"selfaug_alpha": 2}'``.

Written for ms-swift 4.6. Importing this module needs ms-swift, and replaces the trainer of `swift sft`.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from swift.loss_scale import get_loss_scale
from swift.template import Template
from swift.trainers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerFactory

from selfaug.attachment import attach
from selfaug.common.errors import ConfigError
from selfaug.plugins.settings import PREFIX, settings_of

__all__ = ["Arguments", "Trainer", "refused_task"]

# Environment variables of the package that are not settings of the loss.
_OTHERS = frozenset({"selfaug_cache", "selfaug_verbose"})
# Values that are right of the arguments that say how the loss is computed, and why others are not.
_RIGHT: dict[str, tuple[Any, str]] = {
    "sequence_parallel_size": (1, "it splits what the alignment compares"),
    "deepspeed_autotp_size": (None, "it splits what the alignment compares"),
    "use_ray": (False, "its workers would train without this plugin"),
    "enable_dft_loss": (False, "its loss would replace SelfAug's"),
    "enable_channel_loss": (False, "the loss of single tokens is not computed"),
    "loss_type": (None, "its loss would replace SelfAug's"),
    "router_aux_loss_coef": (0.0, "the load-balancing loss of experts is not computed"),
    "eval_metric": (None, "it needs logits, which never exist in full"),
    "use_swift_lora": (False, "its adapter cannot be switched off as PEFT's can"),
}
_TUNERS = ("lora", "vera", "boft", "fourierft", "bone", "full")


@dataclass
class Arguments(Seq2SeqTrainingArguments):
    """Training arguments of ms-swift, made before it loads a model; what cannot work is refused here."""

    sequence_parallel_size: int = 1
    deepspeed_autotp_size: int | None = None
    use_ray: bool = False
    use_swift_lora: bool = False
    loss_scale: str = "default"
    is_binary_loss_scale: bool | None = None

    def __post_init__(self) -> None:
        settings = _settings()
        for name, (right, why) in _RIGHT.items():
            if name == "eval_metric" and self.predict_with_generate:
                continue
            if getattr(self, name) not in (right, None):
                raise ConfigError(f"--{name} {getattr(self, name)} cannot work with SelfAug: {why}.", "leave it out.")
        if self.tuner_type not in (*_TUNERS, None):
            raise ConfigError(
                f"--tuner_type {self.tuner_type} cannot work with SelfAug: with its adapter off the model is not known "
                "to be the base.",
                f"choose one of: {', '.join(_TUNERS)}.",
            )
        if self.tuner_type == "full" and settings.get("reference", "base") in ("base", "initial"):
            raise ConfigError(
                "--tuner_type full trains all weights, and the base is gone after the first step.",
                f"use --tuner_type lora, or {PREFIX.upper()}REFERENCE with the path of the base.",
            )
        scale = get_loss_scale(self.loss_scale)
        if scale.base_strategy == "all":
            raise ConfigError(
                f"--loss_scale {self.loss_scale} (the default of `swift pt`) trains on prompts, so that no token is "
                "left to align.",
                "use `swift sft` with --loss_scale default or last_round.",
            )
        binary = self.is_binary_loss_scale
        if not (scale.is_binary_loss_scale if binary is None else binary):
            raise ConfigError(
                f"--loss_scale {self.loss_scale} weighs tokens, which SelfAug's loss does not.",
                "use --loss_scale default or last_round, or --is_binary_loss_scale true for weights of 0 and 1.",
            )
        super().__post_init__()


class Trainer(Seq2SeqTrainer):
    """The trainer of `swift sft`, with SelfAug."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.model_meta.is_multimodal:
            raise ConfigError(
                f"--model_type {self.model_meta.model_type} also reads images or sound, which ms-swift turns into "
                "embeddings before the model is called, where the reference pass cannot follow.",
                "choose a model of text alone.",
            )
        if type(self.template).compute_sft_loss is not Template.compute_sft_loss:
            raise ConfigError(
                f"--template {self.template.template_meta.template_type} computes a loss of its own.",
                "choose another model.",
            )
        # No logits exist in full, and an evaluation is planned by whole labels.
        self.args.use_logits_to_keep = False
        attach(self, **_settings())

    def _get_data_collator(self, args: Any, template: Any) -> Callable[[list[Any]], dict[str, Any]]:
        return functools.partial(_without_channel, super()._get_data_collator(args, template))

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        inputs.pop("compute_loss_func", None)  # always there; attach refuses one that is not None
        return inputs


def refused_task(task_type: str | None = None, rlhf_type: str | None = None) -> None:
    """Refuse what is not supervised fine-tuning; ms-swift calls this in place of its class of arguments."""
    raise ConfigError(
        f"{rlhf_type or task_type} training has another loss than supervised fine-tuning, which SelfAug's replaces.",
        "use `swift sft`, or leave SelfAug's file out of --external_plugins.",
    )


def _without_channel(collate: Callable[[list[Any]], dict[str, Any]], rows: list[Any]) -> dict[str, Any]:
    """Collate rows without the name of the group that ``--enable_channel_loss`` would log them under."""
    batch = collate(rows)
    batch.pop("channel", None)
    return batch


def _settings() -> dict[str, Any]:
    given = {name.lower(): _value(text) for name, text in os.environ.items() if name.upper() == name}
    return settings_of({name: value for name, value in given.items() if name not in _OTHERS})


def _value(text: str) -> Any:
    """Return the number or truth value that a text says, or the text."""
    try:
        return json.loads(text.lower())
    except ValueError:
        return text


def _register() -> None:
    if "swift.megatron" in sys.modules:
        raise ConfigError(
            "Megatron-SWIFT has trainers of its own, which this plugin does not reach.", "use `swift sft`."
        )
    for mapping, ours in ((TrainerFactory.TRAINER_MAPPING, Trainer), (TrainerFactory.TRAINING_ARGS_MAPPING, Arguments)):
        mapping.update(dict.fromkeys(mapping, f"{__name__}.{refused_task.__name__}"))
        mapping["causal_lm"] = f"{__name__}.{ours.__name__}"


_register()
