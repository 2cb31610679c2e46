"""The chat templates that TRL ships, a small tokenizer for each, and the conversations that they are tried with."""

from __future__ import annotations

import copy
import re
from functools import cache
from pathlib import Path
from typing import Any

import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

FOLDER = Path(trl.__file__).parent / "chat_templates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))

_CONTROL = re.compile(
    r"<\|[^<>|]+\|>|<｜[^<>｜]+｜>|<\|[a-z_]+>|<[a-z_]+\|>|<(?:start|end)_of_(?:turn|utterance)>|</?s>|\[gMASK\]|<sop>"
    r"|</?think>|</?tool_(?:call|response)>"
)
# The token that ends generation, by the beginning of a template's name; the last that fits counts.
_EOS = {
    "": "<|im_end|>", "cohere": "<|END_OF_TURN_TOKEN|>", "deepseek": "<｜end▁of▁sentence｜>", "gemma": "<eos>",
    "diffusion_gemma": "<eos>", "glm4moe": "<|endoftext|>", "gptoss": "<|return|>", "idefics3": "<end_of_utterance>",
    "llama3": "<|eot_id|>", "llava_next": "</s>", "muse": "<|eot|>", "phi3": "<|endoftext|>",
    "smolvlm": "<end_of_utterance>",
}  # fmt: skip


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, and of the control strings that stand in the template."""
    source = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    eos = [token for start, token in _EOS.items() if name.startswith(start)][-1]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(sorted({"<bos>", eos, *_CONTROL.findall(source)}))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token=eos, name_or_path=name)
    tokenizer.chat_template = source
    return tokenizer


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_w",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "The city."}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    }
]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str, thought: str | None = None, *calls: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thought is not None:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = [
            {
                "id": f"call{arguments['city']}0",
                "type": "function",
                "function": {"name": "get_w", "arguments": arguments},
            }
            for arguments in calls
        ]
    return message


def result(text: str, city: str = "Rome") -> dict[str, Any]:
    return {"role": "tool", "content": text, "tool_call_id": f"call{city}0"}


ROME, OSLO = {"city": "Rome", "days": 2}, {"city": "Oslo", "days": 3}

# Each has its tools beside it.
CASES: dict[str, tuple[list[dict[str, Any]], list[Any] | None]] = {
    "text": ([user("Hi?"), said("Yes.")], None),
    "system": ([{"role": "system", "content": "Be kind."}, user("Hi?"), said("Yes.")], None),
    "turns": ([user("Hi?"), said("Yes."), user("Why?"), said("So.")], None),
    "follow-up": ([user("Hi?"), said("Yes."), user("Why?")], None),
    "thought": ([user("Hi?"), said("Yes.", "Hm.")], None),
    "inline thought": ([user("Hi?"), said("<think>\nHm.\n</think>\n\nYes.")], None),
    "thoughts": ([user("Hi?"), said("Yes.", "Hm."), user("Why?"), said("So.", "Well.")], None),
    "call": ([user("W?"), said("", None, ROME), result("21 C"), said("Warm.")], TOOLS),
    "call without tools": ([user("W?"), said("", None, ROME), result("21 C"), said("Warm.")], None),
    "call last": ([user("W?"), said("", None, ROME)], TOOLS),
    "call beside text": ([user("W?"), said("I look.", None, ROME), result("21 C"), said("Warm.")], TOOLS),
    "call after thought": ([user("W?"), said("", "Hm.", ROME), result("21 C"), said("Warm.", "Aha.")], TOOLS),
    "call beside text without tools": (
        [user("W?"), said("I look.", None, ROME), result("21 C"), said("Warm.")],
        None,
    ),
    "parallel calls": (
        [user("W?"), said("", None, ROME, OSLO), result("21 C"), result("9 C", "Oslo"), said("Warm.")],
        TOOLS,
    ),
    "calls in turn": (
        [user("W?"), said("", None, ROME), result("21 C"), said("", None, OSLO), result("9 C", "Oslo"), said("Warm.")],
        TOOLS,
    ),
    "call, follow-up": (
        [user("W?"), said("", None, ROME), result("21 C"), said("Warm."), user("Why?"), said("So.")],
        TOOLS,
    ),
}


def case(name: str) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """The messages and tools of a case, as a copy."""
    return copy.deepcopy(CASES[name])
