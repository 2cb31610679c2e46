"""Is the opening of a user's turn found under every kind of chat template, and refused where there is none to find?"""

from __future__ import annotations

import pytest

from selfaug.common.errors import ConfigError
from selfaug.data.prompts import Renderer
from selfaug.generation.header import user_turn
from tests.unit.data.chat import CHATML, FAMILIES, byte_level, tokenizer_of

TURNS = {
    "chatml": ("<|im_start|>user\n", "<|im_end|>"),
    "chatml-base": ("<|im_start|>user\n", "<|im_end|>"),
    "llama3": ("<s><|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    "mistral": ("<s>[INST] ", "[/INST]"),
    "gemma": ("<bos><start_of_turn>user\n", "<end_of_turn>"),
    "phi3": ("<|user|>\n", "<|end|>"),
    "zephyr": ("<|user|>\n", "</s>"),
    "cohere": ("<bos><|START|><|USER|>", "<|END|>"),
    "qwen3": ("<|im_start|>user\n", "<|im_end|>"),
    "marked": ("<|im_start|>user\n", "<|im_end|>"),
    "late": ("USER: ", "ASSISTANT:"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_opening_and_the_end_of_a_users_turn(name: str) -> None:
    tokenizer = tokenizer_of(FAMILIES[name])
    assert tuple(user_turn(tokenizer, Renderer.for_tokenizer(tokenizer))) == TURNS[name]


def test_the_templates_own_system_text_belongs_to_the_opening() -> None:
    template = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
    tokenizer = byte_level(None, "<|im_end|>", template)
    expected = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n"
    assert user_turn(tokenizer, Renderer.for_tokenizer(tokenizer)).header == expected


WORDS = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
BAD = {
    "writes nothing before": "{{ bos_token }}" + WORDS + "{{ eos_token }}",
    "writes nothing behind": "User: " + WORDS,
    "once and as they are": "User: {{ messages[0]['content'] }}, {{ messages[0]['content'] }}{{ eos_token }}"
    "{{ messages[-1]['content'] if messages | length > 1 }}",
    "depends on them": "User ({{ messages[0]['content'] | length }}): " + WORDS + "{{ eos_token }}",
    "refuses a lone user turn": "{% if messages | length < 2 %}{{ raise_exception('alone') }}{% endif %}User: "
    + WORDS
    + "{{ eos_token }}",
}


@pytest.mark.parametrize("why", BAD)
def test_what_shows_no_opening_is_refused_by_name(why: str) -> None:
    tokenizer = byte_level("<s>", "</s>", BAD[why])
    renderer = Renderer(mode="chat", chat_template=BAD[why])
    with pytest.raises(ConfigError, match=why) as refused:
        user_turn(tokenizer, renderer)
    assert "method='magpie'" in refused.value.message
