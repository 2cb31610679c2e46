"""Checks the ranges of numeric settings before anything is loaded.

transformers, trl and peft accept most numbers: a negative number of epochs trains nothing and reports success, a
dropout of -0.1 has no effect, and a batch of 0 rows ends in a traceback.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from selfaug.common.errors import ConfigError

__all__ = ["ADAPTER", "TRAINING", "check_ranges"]


class Range(NamedTuple):
    """The range of a setting.

    Args:
        low: Smallest value.
        high: Largest value.
        open_low: Whether ``low`` itself is excluded.
        open_high: Whether ``high`` itself is excluded.
        also: Allowed value outside the range, such as -1 for no limit; ``None`` for none.
    """

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    also: float | None = None

    def contains(self, value: float) -> bool:
        """Tell whether a number is in the range."""
        if value == self.also:
            return True
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def in_words(self) -> str:
        """Return the range in words."""
        words = f"more than {_text(self.low)}" if self.open_low else f"{_text(self.low)} or more"
        if math.isfinite(self.high):
            words += f" and less than {_text(self.high)}" if self.open_high else f" and at most {_text(self.high)}"
        elif self.open_high:
            words = f"a finite number, {words}"
        return words if self.also is None else f"{words}, or {_text(self.also)}"


def _text(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else str(number)


_COUNT = Range(1)
_PART = Range(0, 1, open_high=True)
_WEIGHT = Range(0, open_high=True)
_STEPS = Range(0, open_low=True)
_SEED = Range(0, 2**32 - 1)

TRAINING: Mapping[str, Range] = {
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "num_train_epochs": Range(0, open_low=True, open_high=True),
    "max_steps": Range(1, also=-1),
    "learning_rate": _WEIGHT,  # 0 measures a step without taking it
    "weight_decay": _WEIGHT,
    "adam_beta1": _PART,
    "adam_beta2": _PART,
    "adam_epsilon": _WEIGHT,
    "max_grad_norm": Range(0),
    "warmup_steps": _WEIGHT,
    "neftune_noise_alpha": _WEIGHT,
    "label_smoothing_factor": _PART,
    "router_aux_loss_coef": _WEIGHT,
    "logging_steps": _STEPS,
    "save_steps": _STEPS,
    "eval_steps": _STEPS,
    "eval_delay": Range(0),
    "eval_accumulation_steps": _COUNT,
    "save_total_limit": Range(0),
    "seed": _SEED,
    "data_seed": _SEED,
    "dataloader_num_workers": Range(0),
    "dataloader_prefetch_factor": _COUNT,
    "dataset_num_proc": _COUNT,
    "pad_to_multiple_of": _COUNT,
    "ddp_timeout": _COUNT,
    "ddp_bucket_cap_mb": _COUNT,
}
"""Ranges of the settings of `trl.SFTConfig`."""

ADAPTER: Mapping[str, Range] = {
    "lora_r": _COUNT,
    "lora_alpha": Range(0, open_low=True, open_high=True),
    "lora_dropout": _PART,
}
"""Ranges of the settings of `trl.ModelConfig`."""

_INSTEAD = {
    "max_steps": "-1 leaves the length of the training to num_train_epochs",
    "save_steps": "to save only at the end, --save_strategy no",
    "logging_steps": "to log nothing, --logging_strategy no",
    "eval_steps": "to evaluate never, --eval_strategy no",
}


def check_ranges(settings: Any, ranges: Mapping[str, Range]) -> None:
    """Check that numeric settings are in their ranges; values of other types are left to the libraries.

    Args:
        settings: Object with the settings as attributes.
        ranges: Range of each setting.

    Raises:
        ConfigError: If a number is out of its range.
    """
    for name, allowed in ranges.items():
        value = getattr(settings, name, None)
        if isinstance(value, str) and value.lstrip("-").isdigit():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or allowed.contains(value):
            continue
        more = f"; {_INSTEAD[name]}" if name in _INSTEAD else ""
        raise ConfigError(f"{name}={value} is out of its range", f"give {allowed.in_words()}{more}.")
