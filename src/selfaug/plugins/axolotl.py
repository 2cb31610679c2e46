"""The axolotl plugin: ``plugins: [selfaug.plugins.axolotl.Plugin]`` and ``selfaug_alpha: 2`` in its configuration.

Written for axolotl 0.19. Importing this module needs axolotl.
"""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel

from selfaug.attachment import attach
from selfaug.common.errors import ConfigError
from selfaug.plugins.settings import settings_of

__all__ = ["Arguments", "Plugin"]

_REFUSED = {
    "rl": "its loss is not that of supervised fine-tuning, which SelfAug's replaces",
    "reward_model": "its loss is not that of supervised fine-tuning, which SelfAug's replaces",
    "process_reward_model": "its loss is not that of supervised fine-tuning, which SelfAug's replaces",
    "kd_trainer": "its loss is not that of supervised fine-tuning, which SelfAug's replaces",
    "use_eaft": "its loss would replace SelfAug's",
    "use_dft": "its loss would replace SelfAug's",
    "relora": "it merges the adapter into the base again and again, so with the adapter off the model is not the base",
    "train_on_inputs": "it trains on prompts, so that no token is left to align",
    "pretraining_dataset": "its rows have no prompt, so that no token is left to align",
}


class Arguments(BaseModel):
    """Keys that the plugin adds to axolotl's configuration; :func:`selfaug.attach` describes them."""

    selfaug_alpha: float | None = None
    selfaug_align_target: float | None = None
    selfaug_align_fraction: float | None = None
    selfaug_align_token_fraction: float | None = None
    selfaug_align_boundary: bool | None = None
    selfaug_align_direction: str | None = None
    selfaug_reference: str | None = None
    selfaug_reference_slice: int | None = None
    selfaug_check: bool | None = None


class Plugin(BasePlugin):
    """Attaches SelfAug to axolotl's trainer."""

    def register(self, cfg: Any) -> None:
        """Refuse what cannot work, before axolotl reads data or a model.

        Raises:
            ConfigError: With the key of the configuration.
        """
        settings = settings_of(cfg)
        for key, why in _REFUSED.items():
            if cfg.get(key):
                raise ConfigError(f"{key}={cfg.get(key)!r} cannot work with SelfAug: {why}.", f"leave {key} out.")
        for key in ("context_parallel_size", "tensor_parallel_size"):
            if (cfg.get(key) or 1) > 1:
                raise ConfigError(
                    f"{key}={cfg.get(key)} splits what the alignment compares.", "use DDP or FSDP2 (data parallelism)."
                )
        if not cfg.get("adapter") and settings.get("reference", "base") in ("base", "initial"):
            raise ConfigError(
                "without adapter, axolotl trains all weights, and the base is gone after the first step.",
                "set adapter: lora (or qlora), or selfaug_reference to the path of the base.",
            )

    def get_input_args(self) -> str:
        """Return the name of the class with the plugin's keys."""
        return f"{__name__}.{Arguments.__name__}"

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Attach SelfAug."""
        attach(trainer, **settings_of(cfg))
