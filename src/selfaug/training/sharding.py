"""Refusals of what FSDP and ZeRO cannot train here, by settings alone.

They are made before processes are started, and again by the trainer, for those who start it themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from selfaug.common.errors import ConfigError
from selfaug.methods import get_method

if TYPE_CHECKING:
    from selfaug.training.config import SelfAugConfig

__all__ = ["NAMES", "Sharding", "check_sharding", "sharding_of"]

NAMES = {
    "ddp": "DDP",
    "fsdp1": "FSDP version 1",
    "fsdp2": "FSDP2",
    "zero0": "DeepSpeed without ZeRO",
    "zero1": "ZeRO stage 1",
    "zero2": "ZeRO stage 2",
    "zero3": "ZeRO stage 3",
}
"""Ways of training in several processes, by their short names."""


@dataclass(frozen=True)
class Sharding:
    """The way in which processes share the work.

    Args:
        kind: Key of :data:`NAMES`; ``None`` for one process.
        own_checkpointing: Whether FSDP's own activation checkpointing is on.
    """

    kind: str | None
    own_checkpointing: bool = False


def sharding_of(trainer: Any) -> Sharding:
    """Return the way in which a trainer's processes share the work."""
    state = trainer.accelerator.state
    if trainer.is_deepspeed_enabled:
        stage = state.deepspeed_plugin.zero_stage
        return Sharding(f"zero{stage}")
    if trainer.is_fsdp_enabled:
        return Sharding(f"fsdp{state.fsdp_plugin.fsdp_version}", bool(state.fsdp_plugin.activation_checkpointing))
    return Sharding("ddp" if trainer.accelerator.num_processes > 1 else None)


def check_sharding(
    sharding: Sharding, args: SelfAugConfig, peft_config: Any, *, tied: bool, eight_bit: bool = False
) -> None:
    """Refuse what cannot be trained in this way, with the remedy.

    Args:
        sharding: The way in which processes share the work.
        args: Settings of the run.
        peft_config: Settings of the adapter; ``None`` without one.
        tied: Whether the model's head is its embedding.
        eight_bit: Whether the base's weights are quantised to 8 bits.

    Raises:
        ConfigError: If the settings cannot be trained in this way.
    """
    kind = sharding.kind
    if kind is None or kind == "ddp":
        return
    saved = list(getattr(peft_config, "modules_to_save", None) or ())
    if kind == "fsdp1" and args.compares:
        raise ConfigError(
            "FSDP version 1 hides the adapter from its own switch, so the reference pass would see it switched on.",
            "use FSDP2 (fsdp_version: 2 in the accelerate configuration).",
        )
    if args.probe is not None:
        raise ConfigError(
            f"probe={args.probe!r} runs the whole model between the steps, and FSDP and ZeRO split it up.",
            "train on one device or with DDP, or leave --probe out and measure checkpoints with `selfaug shift`.",
        )
    _check_method(kind, args)
    if sharding.own_checkpointing and peft_config is not None:
        raise ConfigError(
            "FSDP's own activation checkpointing gives the layers other names, under which PEFT finds no adapter to "
            "save: checkpoints and the finished adapter would be empty.",
            "set fsdp_activation_checkpointing: false in the accelerate configuration, and use "
            "--gradient_checkpointing true (the default).",
        )
    if eight_bit and kind == "fsdp2":
        raise ConfigError(
            f"load_in_8bit stores weights in a form of bitsandbytes that {NAMES[kind]} cannot split over ranks.",
            "use load_in_4bit, or DDP or ZeRO.",
        )
    if kind == "fsdp2" and tied and saved:
        raise ConfigError(
            f"modules_to_save={saved} copies a weight for training that this model's head and embedding share, and "
            "FSDP2 cannot split a weight that two of its groups see.",
            "leave modules_to_save out, or use DDP or ZeRO.",
        )
    if kind == "zero3" and saved and args.compares and args.reference == "initial":
        raise ConfigError(
            f"reference='initial' keeps what modules_to_save={saved} trains as training began, and ZeRO stage 3 splits "
            "it over ranks.",
            "leave modules_to_save out, or use ZeRO stage 2 or DDP.",
        )


def _check_method(kind: str, args: SelfAugConfig) -> None:
    changes, name = args.changes, f"method={args.method!r}"
    whole = {
        "penalises the trained weights themselves": bool(changes.parameter_terms),
        "copies the trained weights anew every few steps": changes.proximal is not None,
        "takes whole pretrained weights apart": (
            changes.start is not None or any(part.reads_weights for part in get_method(args.method).parts)
        ),
        "trains an adapter made of whole weights": changes.adapter is not None,
        "scores the data with the base's whole weights before training": changes.weigh is not None,
    }
    for does, holds in whole.items():
        if holds:
            raise ConfigError(
                f"{name} {does}, and FSDP and ZeRO split them up.",
                "train on one device or with DDP, or choose another method.",
            )
    if args.generation_url is None and (changes.generates or args.aligns_written):
        raise ConfigError(
            f"{f'align_data={args.align_data!r}' if args.aligns_written else name} lets the whole base model write "
            "before training, and FSDP and ZeRO split it up.",
            "serve the base model elsewhere (--generation_url), or train on one device or with DDP.",
        )
    if changes.rate is not None and kind.startswith("zero"):
        raise ConfigError(
            f"{name} sets the learning rate when a step's loss is known, and DeepSpeed takes the step before that.",
            "train with DDP or FSDP2, or choose another method.",
        )
