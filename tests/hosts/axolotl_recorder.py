"""Plugins of axolotl for its tests."""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin

from tests.hosts import recorder

__all__ = ["KeepMask", "Recorder", "recorder"]


class Recorder(BasePlugin):
    """Records the step of every training, as the import of `tests.hosts.recorder` does."""


class KeepMask(BasePlugin):
    """Keeps the attention mask of packed rows, as axolotl does for attention that it does not know."""

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        trainer.args.sample_packing_drop_attention_mask = False
