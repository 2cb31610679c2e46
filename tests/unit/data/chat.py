"""Chat templates in the manner of the well-known ones, and small tokenizers for them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIALS = [
    "<s>", "</s>", "<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|end|>", "[INST]", "[/INST]", "<|START|>", "<|END|>", "<|USER|>", "<|BOT|>", "<|SYSTEM|>",
]  # fmt: skip

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Where is the Eiffel Tower? It stands in Paris, France.",
    "Answer the question with the help of the documents. If they do not hold the answer, reply: I don't know",
    "user assistant system think question document answer Hello world, who are you? I am fine, thanks!",
    "Once upon a time there was a little girl named Lily. She liked to play in the park with her dog.",
    "1 2 3 4 5 6 7 8 9 0 - one two three four\n\nfive six seven\n\n\neight nine ten.",
] * 4


@dataclass(frozen=True)
class Family:
    """One way of writing chats: the template, its tokens, and what ends a turn that is not the last."""

    name: str
    template: str
    bos: str | None
    eos: str
    end: str
    system: bool = True


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# Takes neither two turns of one role in a row nor a conversation that begins with an answer.
MISTRAL = (
    "{{ bos_token }}{% set ns = namespace(system='', i=0) %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set ns.system = m['content'] + '\n\n' %}"
    "{% else %}{% if (m['role'] == 'user') != (ns.i % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set ns.i = ns.i + 1 %}"
    "{% if m['role'] == 'user' %}[INST] {{ ns.system + m['content'] }} [/INST]{% set ns.system = '' %}"
    "{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# The EOS stands only at the very end: what ends a turn changes once another turn follows.
PHI3 = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}\n<|{{ m['role'] }}|>\n{{ m['content'] + eos_token }}"
    "{% if loop.last and add_generation_prompt %}\n<|assistant|>{% endif %}{% endfor %}"
)
COHERE = (
    "{{ bos_token }}{% for m in messages %}<|START|>"
    "{{ {'user': '<|USER|>', 'assistant': '<|BOT|>', 'system': '<|SYSTEM|>'}[m['role']] }}"
    "{{ m['content'] | trim }}<|END|>{% endfor %}{% if add_generation_prompt %}<|START|><|BOT|>{% endif %}"
)
# Thoughts of turns before the last question are left out; the last answer always has a block of them.
QWEN3 = (
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% set words = m['content'].split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = m['content'].split('</think>')[0].split('<think>')[-1] if '</think>' in m['content'] else '' %}"
    "{% if loop.index0 > ns.last %}<think>\n{{ thought.strip('\n') }}\n</think>\n\n{% endif %}{{ words }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
MARKED = (
    "{%- for m in messages -%}\n"
    "    {%- if m['role'] == 'assistant' -%}\n"
    "        {{- '<|im_start|>assistant\n' -}}\n"
    "        {%- generation -%}\n"
    "            {{- m['content'] + '<|im_end|>' -}}\n"
    "        {%- endgeneration -%}\n"
    "        {{- '\n' -}}\n"
    "    {%- else -%}{{- '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' -}}{%- endif -%}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
# The EOS of an answer is written when the next question comes.
LATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %} ASSISTANT: {{ m['content'] }}"
    "{% else %}{{ '' if loop.first else eos_token }}{{ m['role'] | upper }}: {{ m['content'] }}{% endif %}{% endfor %}"
    "{{ ' ASSISTANT:' if add_generation_prompt else '' }}"
)

FAMILIES = {
    family.name: family
    for family in (
        Family("chatml", CHATML, None, "<|im_end|>", "<|im_end|>"),
        Family("chatml-base", CHATML, None, "<|endoftext|>", "<|im_end|>"),
        Family("llama3", LLAMA3, "<s>", "<|eot_id|>", "<|eot_id|>"),
        Family("mistral", MISTRAL, "<s>", "</s>", "</s>"),
        Family("gemma", GEMMA, "<bos>", "<eos>", "<end_of_turn>", system=False),
        Family("phi3", PHI3, "<s>", "<|endoftext|>", "<|end|>"),
        Family("zephyr", ZEPHYR, "<s>", "</s>", "</s>"),
        Family("cohere", COHERE, "<bos>", "<|END|>", "<|END|>"),
        Family("qwen3", QWEN3, None, "<|im_end|>", "<|im_end|>"),
        Family("marked", MARKED, None, "<|im_end|>", "<|im_end|>"),
        Family("late", LATE, "<s>", "</s>", "</s>"),
    )
}


@cache
def byte_level(bos: str | None, eos: str, template: str | None, trim_offsets: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 600 tokens, as GPT-2's and Llama 3's; it puts its BOS first where it has one."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    if bos:
        first = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A {bos} $B", [(bos, backend.token_to_id(bos))])
        backend.post_processor = processors.Sequence([backend.post_processor, first])
    return _wrap(backend, bos, eos, template)


@cache
def sentencepiece_like(bos: str, eos: str, template: str | None, words: bool = True) -> PreTrainedTokenizerFast:
    """A BPE that writes spaces as ▁ and one before the text, as Llama 2's; without ``words`` tokens cross words."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    if words:
        backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIALS, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    model = json.loads(backend.to_str())["model"]
    vocab = model["vocab"]
    vocab |= {f"<0x{i:02X}>": len(vocab) + i for i in range(256)}
    backend.model = models.BPE(vocab, [tuple(pair) for pair in model["merges"]], unk_token="<unk>", byte_fallback=True)
    backend.pre_tokenizer = None
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(f"{bos} $A", None, [(bos, backend.token_to_id(bos))])
    return _wrap(backend, bos, eos, template)


def _wrap(backend: Tokenizer, bos: str | None, eos: str, template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)
    tokenizer.chat_template = template
    return tokenizer


def tokenizer_of(family: Family, kind: str = "byte_level") -> PreTrainedTokenizerFast:
    if kind == "sentencepiece_like":
        return sentencepiece_like(family.bos or "<s>", family.eos, family.template)
    return byte_level(family.bos, family.eos, family.template, trim_offsets=kind == "trimmed")
