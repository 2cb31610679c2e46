"""The texts that a chat template writes before and after the content of a user's first turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from selfaug.common.errors import ConfigError
from selfaug.data.template import ChatTemplate, TemplateRefusedError, control_strings, matcher

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfaug.data.prompts import Renderer

__all__ = ["UserTurn", "user_turn"]

# Private-use characters do not occur in templates, so these can be found after rendering.
_WORDS = ("\ue0f7asked\ue0f8", "\ue0f7another\ue0f8")


class UserTurn(NamedTuple):
    """The texts before and after the user's words."""

    header: str
    end: str


def user_turn(
    tokenizer: PreTrainedTokenizerBase,
    renderer: Renderer,
    *,
    setting: str = "method='magpie'",
    hint: str = "give another chat template (--chat_template_path), or choose --method sa-sft or replay.",
) -> UserTurn:
    """Return the opening of a user's first turn (including a template's own system text), and its end.

    Args:
        tokenizer: Tokenizer of the model.
        renderer: Renderer with the chat template.
        setting: Setting that asks for it, for the error.
        hint: Hint of the error.

    Raises:
        ConfigError: If the template changes the words, its texts before and after depend on them, or one of these texts
            is empty, so that a user's turn cannot be distinguished from plain text.
    """

    def underivable(why: str) -> ConfigError:
        return ConfigError(
            f"{setting} lets the model write the instructions behind the opening of a user's turn, and that of the "
            f"chat template of {tokenizer.name_or_path!r} cannot be told: {why}",
            hint,
        )

    template = ChatTemplate(tokenizer, renderer.chat_template, kwargs=renderer.chat_template_kwargs)
    surroundings = set()
    for words in _WORDS:
        try:
            text = template.render([{"role": "user", "content": words}], generation=True)
        except TemplateRefusedError as error:
            raise underivable(f"it refuses a lone user turn ({error.message})") from error
        if text.count(words) != 1:
            raise underivable("it does not write a user's words once and as they are")
        header, _, rest = text.partition(words)
        surroundings.add((header, rest))
    if len(surroundings) != 1:
        raise underivable("what it writes around a user's words depends on them")
    header, rest = surroundings.pop()
    if not _without_start(header, tokenizer).strip():
        raise underivable("it writes nothing before a user's words, so a model could not know whose turn it is")
    control = matcher(control_strings(tokenizer, special_only=False)).search(rest)
    end = control.group() if control else rest.strip()
    if not end:
        raise underivable("it writes nothing behind a user's words, so the model's instruction would not end")
    return UserTurn(header, end)


def _without_start(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    return text.removeprefix(tokenizer.bos_token or "")
