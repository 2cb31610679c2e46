"""The LLaMA-Factory command: ``selfaug-llamafactory train x.yaml``, with ``selfaug_alpha: 2`` in the file.

It is `llamafactory-cli` with SelfAug in the trainer of its stage ``sft``, which has no hook: the name of the trainer's
class is bound anew before the host looks it up. Written for LLaMA-Factory 0.9.5; importing this module needs it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

from llamafactory import launcher
from llamafactory.extras.misc import is_env_enabled
from llamafactory.hparams import read_args
from llamafactory.train import tuner
from llamafactory.train.sft import workflow
from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer

from selfaug.attachment import attach
from selfaug.common.errors import ConfigError, UserError
from selfaug.plugins.settings import PREFIX, settings_of

__all__ = ["Trainer", "main", "train"]

# The host's own, before names are bound anew.
_run_exp, _get_train_args = tuner.run_exp, tuner.get_train_args
# Values that are right of the arguments that say how the loss is computed, and why others are not.
_RIGHT: dict[str, tuple[Any, str]] = {
    "stage": ("sft", "its loss is not that of supervised fine-tuning, which SelfAug's replaces"),
    "train_on_prompt": (False, "it trains on prompts, so that no token is left to align"),
    "use_dft_loss": (False, "its loss would replace SelfAug's"),
    "use_eaft_loss": (False, "its loss would replace SelfAug's"),
    "use_asft_loss": (False, "its loss would replace SelfAug's"),
    "compute_accuracy": (False, "it needs logits, which never exist in full"),
    "moe_aux_loss_coef": (None, "the load-balancing loss of experts is not computed"),
    "shift_attn": (False, "it changes attention in training alone, and so not in the reference pass"),
    "mixture_of_depths": (None, "it drops tokens in training that the reference pass sees"),
    "use_mca": (False, "its trainer is another, which this command does not reach"),
    "use_hyper_parallel": (False, "its trainer is another, which this command does not reach"),
    "use_kt": (False, "its models are not those of transformers"),
}


class Trainer(CustomSeq2SeqTrainer):
    """The trainer of LLaMA-Factory's stage ``sft``, with SelfAug.

    Args:
        settings: Keyword arguments of :func:`selfaug.attach`.
        args: Arguments of the host's trainer.
        kwargs: The same.
    """

    def __init__(self, settings: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.do_train:
            attach(self, **settings)


def main(words: Sequence[str] | None = None) -> int:
    """Run LLaMA-Factory's launcher with SelfAug.

    Args:
        words: Words of the command line; ``None`` for those of the process.

    Returns:
        Exit code: 0, or 2 for an error that the user can fix.
    """
    if words is not None:
        sys.argv[1:] = words
    # On several devices the launcher starts its own file once a device; it must start this one.
    launcher.__file__ = __file__
    tuner.run_exp = train
    return _said(_launch)


def _launch() -> None:
    if is_env_enabled("USE_V1"):
        raise ConfigError(
            "USE_V1 chooses LLaMA-Factory's new trainer, which this command does not reach.",
            "unset it, or set it to 0.",
        )
    launcher.launch()


def train(args: Any = None, callbacks: list[Any] | None = None) -> None:
    """Train as LLaMA-Factory's `run_exp` does, with SelfAug.

    Args:
        args: Arguments of `run_exp`, with the settings of :func:`selfaug.attach`; ``None`` for those of the command
            line.
        callbacks: Callbacks of `run_exp`.

    Raises:
        ConfigError: If a setting is not known or out of range, or an argument of the host cannot work with SelfAug.
    """
    given, rest = _split(read_args(args))
    settings = settings_of(given)
    if tuner.get_ray_args(rest).use_ray:
        raise ConfigError("use_ray=True cannot work with SelfAug: its workers would train without it.", "leave it out.")

    def parsed_and_checked(*words: Any) -> Any:
        parsed = _get_train_args(*words)
        _refuse(parsed, settings)
        return parsed

    tuner.get_train_args = parsed_and_checked
    workflow.CustomSeq2SeqTrainer = functools.partial(Trainer, settings)
    _run_exp(rest, callbacks)


def _split(args: Any) -> tuple[dict[str, Any], Any]:
    """Return SelfAug's settings and the host's arguments."""
    if not isinstance(args, dict):
        ours = [word for word in args if word.lstrip("-").startswith(PREFIX)]
        if ours:
            raise ConfigError(
                f"{ours[0]} among options, which LLaMA-Factory reads itself, would not be known to it.",
                f"write a YAML file: selfaug-llamafactory train x.yaml {ours[0].lstrip('-').partition('=')[0]}=...",
            )
        return {}, args
    given = {name: value for name, value in args.items() if name.startswith(PREFIX)}
    return given, {name: value for name, value in args.items() if name not in given}


def _refuse(parsed: Sequence[Any], settings: dict[str, Any]) -> None:
    values = {name: value for part in parsed for name, value in vars(part).items()}
    for name, (right, why) in _RIGHT.items():
        if values[name] != right:
            raise ConfigError(f"{name}={values[name]!r} cannot work with SelfAug: {why}.", f"set {name}: {right}.")
    if values["packing"] and not values["neat_packing"]:
        raise ConfigError(
            "packing=True lets the documents of a row see each other, while the reference pass takes each alone, and "
            "its padding looks like a prompt.",
            "set neat_packing: true, which keeps documents apart, or packing: false.",
        )
    if values["finetuning_type"] in ("full", "freeze") and settings.get("reference", "base") in ("base", "initial"):
        raise ConfigError(
            f"finetuning_type={values['finetuning_type']!r} trains weights of the base, which is gone after the first "
            "step.",
            f"set finetuning_type: lora, or {PREFIX}reference to the path of the base.",
        )


def _said(work: Callable[[], None]) -> int:
    try:
        work()
    except UserError as error:
        sys.stderr.write(f"error: {error.message}\n\nhint: {error.hint}\n")
        return 2
    return 0


if __name__ == "__main__":  # one process of a launch over several devices
    sys.exit(_said(train))
