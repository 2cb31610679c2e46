"""The check that a model is an instruct model, for methods that let it write."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from selfaug.common.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfaug.data.prompts import Renderer

__all__ = ["require_chat"]


def require_chat(method: str) -> Callable[[PreTrainedTokenizerBase, Renderer], None]:
    """Return a check that raises :class:`~selfaug.common.errors.ConfigError` if prompts have no chat template."""

    def check(tokenizer: PreTrainedTokenizerBase, renderer: Renderer) -> None:
        if renderer.mode != "chat":
            raise ConfigError(
                f"method={method!r} lets the model write, as an assistant does, and {tokenizer.name_or_path!r} has "
                "no chat template (or plain prompts are requested), so it is no instruct model.",
                "use an instruct model, name its template with --chat_template_path, or choose another method.",
            )

    return check
