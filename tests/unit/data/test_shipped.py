"""The trained text under each chat template that TRL ships: written by hand, and held against TRL's own masks."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from itertools import groupby
from typing import Any, NamedTuple

import pytest

from selfaug.common.errors import DataError
from selfaug.data.masks import conversation_labels
from selfaug.data.prompts import Renderer
from selfaug.data.record import Conversation
from selfaug.data.template import ChatTemplate
from tests.docs_tables import ROOT, between
from tests.unit.data.shipped import CASES, NAMES, OSLO, ROME, case, tokenizer_of

LABELS = ROOT / "docs" / "labels.md"


def runs(tokenizer: Any, ids: list[int], kept: list[Any]) -> list[str]:
    pairs = zip(ids, kept, strict=True)
    return [tokenizer.decode([i for i, _ in group]) for keep, group in groupby(pairs, lambda p: bool(p[1])) if keep]


@cache
def trained(name: str, which: str) -> list[str]:
    """The decoded stretches of labelled tokens."""
    tokenizer = tokenizer_of(name)
    messages, tools = case(which)
    ids, labels = conversation_labels(tokenizer, messages, tools)
    assert all(label in (-100, i) for i, label in zip(ids, labels, strict=True))
    return runs(tokenizer, ids, [label != -100 for label in labels])


# --- Written by hand

Call = dict[str, Any]


def qwen_json(call: Call) -> str:
    return f'<tool_call>\n{{"name": "get_w", "arguments": {json.dumps(call)}}}\n</tool_call>'


def qwen_xml(call: Call) -> str:
    return (
        f"<tool_call>\n<function=get_w>\n<parameter=city>\n{call['city']}\n</parameter>\n"
        f"<parameter=days>\n{call['days']}\n</parameter>\n</function>\n</tool_call>"
    )


def glm(call: Call) -> str:
    keys = "".join(f"\n<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>" for k, v in call.items())
    return f"\n<tool_call>get_w{keys}\n</tool_call>"


def gemma(call: Call) -> str:
    return f'<|tool_call>call:get_w{{city:<|"|>{call["city"]}<|"|>,days:{call["days"]}}}<tool_call|>'


def llama(call: Call) -> str:
    return f'{{"name": "get_w", "parameters": {json.dumps(call)}}}'


def harmony(call: Call) -> str:
    return f" to=functions.get_w<|channel|>commentary json<|message|>{json.dumps(call)}<|call|>"


def atem(call: Call) -> str:
    keys = "".join(f'<atem:parameter name="{k}">{v}</atem:parameter>\n' for k, v in call.items())
    call_text = f'<atem:invoke name="get_w">\n{keys}</atem:invoke>'
    return f" to=get_w<|message|><atem:function_calls>\n{call_text}\n</atem:function_calls>"


def python_call(call: Call) -> str:
    return f"get_w(city='{call['city']}', days={call['days']})"


def lfm(*calls: Call) -> str:
    return f"<|tool_call_start|>[{', '.join(map(python_call, calls))}]<|tool_call_end|>"


def fill(form: str, words: str, thought: str = "") -> str:
    return form.replace("{t}", thought).replace("{}", words)


class Hand(NamedTuple):
    """What one family writes. ``None``: refused, as the template leaves something out or refuses the messages.

    Args:
        end: What ends a turn that is not the last.
        last: What ends the last one, after it.
        plain: A turn without a thought behind the last question; ``{}`` is its words.
        past: A turn before a later question.
        thought: A turn with a thought, ``{t}``; the thought is lost where it is the same as ``plain``.
        calls: From calls to the text of a turn that has nothing else, behind the last question.
        beside: The same of a turn with words, ``{}``, before its one call.
        past_calls: As ``calls``, of a turn before a later question.
        then: A turn behind a tool's result, where it is opened otherwise.
    """

    end: str
    last: str = ""
    plain: str = "{}"
    past: str = "{}"
    thought: str = "{}"
    calls: Callable[..., str] | None = None
    one_call: bool = False
    beside: str | None = None
    past_calls: Callable[..., str] | None = None
    then: str | None = None
    call_end: str | None = None
    call_then: Callable[..., str] | None = None


IM = "<|im_end|>"
_XML = lambda *calls: "\n".join(map(qwen_xml, calls))  # noqa: E731
_JSON = lambda *calls: "\n".join(map(qwen_json, calls))  # noqa: E731
CLOSED, THOUGHT = "\n</think>\n\n", "{t}\n</think>\n\n{}"
_CLOSED_XML = lambda *calls: CLOSED + _XML(*calls)  # noqa: E731
_NEMOTRON_CALLS = lambda *calls: "</think>\n" + "".join(qwen_xml(c) + "\n" for c in calls)  # noqa: E731
_GLM_CALLS = lambda *calls: "\n<think></think>" + "".join(map(glm, calls))  # noqa: E731
_GEMMA_CALLS = lambda *calls: "".join(map(gemma, calls)) + "<|tool_response>"  # noqa: E731

NEMOTRON = Hand(IM, "", "</think>{}", "</think>{}", "{t}</think>{}", _NEMOTRON_CALLS,
                beside="</think>{}\n" + qwen_xml(ROME) + "\n")  # fmt: skip
LFM_MARKED = Hand(IM, thought="<think>{t}</think>{}", calls=lfm, beside="{}" + lfm(ROME))
QWEN_THINK = Hand(IM, "", CLOSED + "{}", "{}", THOUGHT, _CLOSED_XML, beside=CLOSED + "{}\n\n" + qwen_xml(ROME),
                  past_calls=_XML)  # fmt: skip
GEMMA4 = Hand("<turn|>", "<eos>", calls=_GEMMA_CALLS, call_end="")
GEMMA4_THINKING = GEMMA4._replace(thought="<|channel>thought\n{t}\n<channel|>{}")
QWEN_PLAIN = Hand(IM, calls=_JSON, beside="{}\n" + qwen_json(ROME))
PHI = Hand("<|end|>", "\n<|endoftext|>")

HAND: dict[str, Hand] = {
    "cohere": Hand("<|END_OF_TURN_TOKEN|>"),
    "cohere2": Hand("<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
    "deepseek_r1_distill": Hand("<｜end▁of▁sentence｜>", plain=CLOSED + "{}", thought=THOUGHT),
    "deepseekv3": Hand("<｜end▁of▁sentence｜>", plain=CLOSED + "{}", thought=THOUGHT),
    "diffusion_gemma": GEMMA4_THINKING._replace(then="<|turn>model\n{}", call_then=lambda *calls: "<|turn>model\n"
                                                + _GEMMA_CALLS(*calls)),
    "gemma": Hand("<end_of_turn>", "<eos>"),
    "gemma3": Hand("<end_of_turn>", "<eos>"),
    "gemma4": GEMMA4,
    # Ends a turn of calls as any other, and writes words behind them.
    "gemma4_v2": Hand("<turn|>", "<eos>", calls=lambda *calls: "".join(map(gemma, calls)), beside=gemma(ROME) + "{}"),
    "gemma4_v3": GEMMA4,
    "gemma4_v4": GEMMA4,
    "gemma4_v5": GEMMA4_THINKING,
    "glm4moe": Hand("", "<|endoftext|>", "\n<think></think>\n{}", "\n<think></think>\n{}", "\n<think>{t}</think>\n{}",
                    _GLM_CALLS, beside="\n<think></think>\n{}" + glm(ROME)),
    "gptoss": Hand("<|end|>", "", "<|channel|>final<|message|>{}", "<|channel|>final<|message|>{}",
                   "<|channel|>analysis<|message|>{t}<|end|><|start|>assistant<|channel|>final<|message|>{}",
                   harmony, one_call=True, call_end=""),
    "idefics3": Hand("<end_of_utterance>", plain=" {}", past=" {}", thought=" {}"),
    "lfm2": Hand(IM),
    "lfm2_2_5": LFM_MARKED,
    "lfm2_2_5_v2": LFM_MARKED,
    "lfm2_2_5_vl": LFM_MARKED,
    "lfm2_v2": LFM_MARKED._replace(thought="{}"),
    "llama3": Hand("<|eot_id|>"),
    "llama3_1": Hand("<|eot_id|>", calls=llama, one_call=True),
    "llama3_2": Hand("<|eot_id|>", calls=llama, one_call=True),
    "llava_next": Hand("</s>", plain=" {}", past=" {}", thought=" {}"),
    "muse_glimmer": Hand("<|eot|>", "", " to=user<|message|>{}", " to=user<|message|>{}",
                         " to=self<|message|>{t}<|eom|><|start|>assistant to=user<|message|>{}",
                         lambda *calls: "<|eom|><|start|>assistant".join(map(atem, calls))),
    "nemotron_3_5_lightning": NEMOTRON,
    "nemotron_3_nano": NEMOTRON._replace(thought="{t}\n</think>\n{}"),
    "nemotron_3_super": NEMOTRON._replace(thought="{t}\n</think>\n{}"),
    "nemotron_3_ultra": NEMOTRON,
    "phi3": PHI,
    "smolvlm": Hand("<end_of_utterance>", plain=" {}", past=" {}", thought=" {}"),
    "phi3_5": PHI,
    "qwen2_5": QWEN_PLAIN,
    "qwen2_5_vl": Hand(IM),
    # Calls that are not the last turn come without a block of thoughts, though words behind them have one.
    "qwen3": Hand(IM, "", "<think>\n\n</think>\n\n{}", "{}", "<think>\n{t}\n</think>\n\n{}", _JSON,
                  beside="{}\n" + qwen_json(ROME)),
    "qwen3_5_nothink": Hand(IM, thought="<think>\n{t}\n</think>\n\n{}", calls=_XML, beside="{}\n\n" + qwen_xml(ROME)),
    "qwen3_5_think": QWEN_THINK,
    "qwen3_6": QWEN_THINK,
    "qwen3_8": QWEN_THINK._replace(past=CLOSED + "{}", past_calls=_CLOSED_XML),
    "qwen3_instruct_2507": QWEN_PLAIN,
    "qwen3_vl": QWEN_PLAIN,
}  # fmt: skip
# The only templates that keep the thoughts of turns before a later question.
KEEP_THOUGHTS = ("qwen3_8", "muse_glimmer")


def by_hand(name: str, which: str) -> list[str] | None:
    """The trained stretches of a case, or ``None`` where it is refused."""
    hand = HAND[name]
    eos = tokenizer_of(name).eos_token
    end = hand.end + (hand.last or ("" if hand.end.endswith(eos) else eos))
    if name == "gptoss":
        end = "<|return|>"
    call_end = hand.end if hand.call_end is None else hand.call_end
    past_calls, then = hand.past_calls or hand.calls, hand.then or hand.plain
    later_calls = hand.call_then or hand.calls
    words, past = partial(fill, hand.plain), partial(fill, hand.past)
    if which in ("text", "system"):
        return None if (name, which) == ("gemma", "system") else [words("Yes.") + end]
    if which == "turns":
        return [past("Yes.") + hand.end, words("So.") + end]
    if which == "follow-up":
        return [past("Yes.") + hand.end]
    if which == "thought":
        lost = hand.thought == hand.plain
        return [words("Yes.") + end if lost else fill(hand.thought, "Yes.", "Hm.") + end]
    if which == "thoughts":
        first = hand.thought if name in KEEP_THOUGHTS else hand.past
        # This one writes a line break behind the thought that it leaves out.
        first = "</think>\n{}" if name in ("nemotron_3_nano", "nemotron_3_super") else first
        return [fill(first, "Yes.", "Hm.") + hand.end, fill(hand.thought, "So.", "Well.") + end]
    if which == "call beside text":
        return None if hand.beside is None else [fill(hand.beside, "I look.") + call_end, fill(then, "Warm.") + end]
    if hand.calls is None or past_calls is None or later_calls is None or (which == "parallel calls" and hand.one_call):
        return None
    if which == "call":
        return [hand.calls(ROME) + call_end, fill(then, "Warm.") + end]
    if which == "parallel calls":
        return [hand.calls(ROME, OSLO) + call_end, fill(then, "Warm.") + end]
    if which == "calls in turn":
        return [hand.calls(ROME) + call_end, later_calls(OSLO) + call_end, fill(then, "Warm.") + end]
    assert which == "call, follow-up"
    early = hand.then.replace("{}", "Warm.") if hand.then else past("Warm.")
    return [past_calls(ROME) + call_end, early + hand.end, words("So.") + end]


HAND_CASES = ("text", "system", "turns", "follow-up", "thought", "thoughts", "call", "call beside text",
              "parallel calls", "calls in turn", "call, follow-up")  # fmt: skip
BASES = [name for name in NAMES if not name.endswith("_training")]


@pytest.mark.parametrize("name", BASES)
def test_the_trained_text_is_the_one_written_by_hand(name):
    assert name in HAND, "TRL ships a template that nobody has read"
    for which in HAND_CASES:
        expected = by_hand(name, which)
        if expected is None:
            with pytest.raises(DataError, match=r"leaves out|refuses|inside message"):
                trained(name, which)
        else:
            assert trained(name, which) == expected, which


def table() -> str:
    """The table of ``docs/labels.md``: the trained text by family and case, one row for templates that agree."""
    shown: dict[tuple[str, ...], list[str]] = {}
    for name in BASES:
        cells = []
        for which in DOCUMENTED:
            try:
                texts = [text.replace("\n", "\\n") for text in trained(name, which)]
                cells.append(" · ".join(f"`{text}`" for text in texts))
            except DataError as error:
                cells.append("refused: " + re.sub(r"the chat template of '\w+' |, so .*", "", error.message))
        shown.setdefault(tuple(cells), []).append(name)
    lines = []
    for cells, names in sorted(shown.items(), key=lambda item: item[1]):
        lines += [f"**{', '.join(names)}**", "", "| case | trained |", "|---|---|"]
        lines += [
            f"| {which} | {cell.replace('|', chr(92) + '|')} |" for which, cell in zip(DOCUMENTED, cells, strict=True)
        ]
        lines.append("")
    return "\n".join(lines)


DOCUMENTED = ("turns", "thoughts", "call", "call beside text", "parallel calls", "call, follow-up")


def test_the_page_shows_what_is_trained():
    written = between("labels", LABELS.read_text(encoding="utf-8")).group(1)
    assert written == table(), "run: python -m tests.unit.data.test_shipped"


# --- What holds for every template


@pytest.mark.parametrize("name", NAMES)
def test_each_word_of_the_assistant_is_trained_once_and_nobody_else_s(name):
    found = 0
    for which in ("system", "thoughts", "inline thought", "call", "parallel calls", "calls in turn", "call, follow-up"):
        messages, tools = case(which)
        # Words that stand nowhere else, so that they are found wherever they are written.
        for i, message in enumerate(messages):
            if message["content"]:
                message["content"] = message["content"].replace("Yes", "Yyes") + f" w{i}w"
        tokenizer = tokenizer_of(name)
        try:
            ids, labels = conversation_labels(tokenizer, messages, tools)
        except DataError:
            continue
        found += 1
        texts = runs(tokenizer, ids, [label != -100 for label in labels])
        rest = "".join(runs(tokenizer, ids, [label == -100 for label in labels]))
        for i, message in enumerate(messages):
            if message["content"]:
                own = message["role"] == "assistant"
                assert sum(text.count(f"w{i}w") for text in texts) == own
                assert (f"w{i}w" in rest) == (not own)
            for call in message.get("tool_calls", ()):
                city = call["function"]["arguments"]["city"]
                assert sum(text.count(city) for text in texts) == 1
                assert city not in rest
        turns = [message for message in messages if message["role"] == "assistant"]
        assert len(texts) == len(turns)
    assert found >= 2


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_before_the_last_turn_is_the_inference_prompt(name):
    for which in ("text", "thought", "inline thought", "turns", "call"):
        messages, tools = case(which)
        tokenizer = tokenizer_of(name)
        try:
            ids, labels = conversation_labels(tokenizer, messages, tools)
        except DataError:
            continue
        prompt = ChatTemplate(tokenizer, tools=tools).render(messages[:-1], generation=True)
        start = max(i for i, label in enumerate(labels) if label == -100) + 1
        if name == "diffusion_gemma_training" and which == "call":
            # The template opens the turn behind a tool's result anew, in a turn but not in the prompt.
            assert tokenizer.decode(ids[:start]) == prompt + "<|turn>model\n"
        elif "nothink" in name and "thought" in which:
            # The prompt says that there is no thought, and the data have one: said in the report.
            assert tokenizer.decode(ids[:start]) != prompt
        else:
            assert tokenizer.decode(ids[:start]) == prompt, which


@pytest.mark.parametrize("name", NAMES)
def test_no_thought_is_opened_twice_or_left_open(name):
    for which in ("text", "thought", "inline thought"):
        messages, tools = case(which)
        try:
            ids, _ = conversation_labels(tokenizer_of(name), messages, tools)
        except DataError:
            continue
        text = tokenizer_of(name).decode(ids)
        assert text.count("<think>") == text.count("</think>") <= 1, which


def test_refusals_are_counted_by_family():
    refused: Counter[str] = Counter()
    for name in BASES:
        for which in HAND_CASES:
            try:
                trained(name, which)
            except DataError:
                refused[name] += 1
    tool_cases = sum("call" in which for which in HAND_CASES)
    nothing_of_tools = ("cohere", "cohere2", "deepseek_r1_distill", "deepseekv3", "gemma3", "idefics3", "lfm2",
                        "llama3", "llava_next", "phi3", "phi3_5", "qwen2_5_vl", "smolvlm")  # fmt: skip
    words_beside_a_call = dict.fromkeys(
        ("diffusion_gemma", "gemma4", "gemma4_v3", "gemma4_v4", "gemma4_v5", "muse_glimmer"), 1
    )
    one_call_at_a_time = dict.fromkeys(("gptoss", "llama3_1", "llama3_2"), 2)
    assert dict(refused) == {
        **dict.fromkeys(nothing_of_tools, tool_cases), "gemma": tool_cases + 1,  # no system message
        **words_beside_a_call, **one_call_at_a_time,
    }  # fmt: skip


# --- TRL's masks as a second opinion

# TRL's markers begin earlier than the inference prompt ends: with what, by family.
EARLIER = {
    "deepseek_r1_distill_training": "<｜Assistant｜>(<think>\n)?", "deepseekv3_training": "<｜Assistant｜>",
    "gptoss_training": re.escape("<|start|>assistant"), "muse_glimmer_training": re.escape("<|start|>assistant"),
    "nemotron_3_5_lightning_training": "<think>\n?", "nemotron_3_nano_training": "<think>\n?",
    "nemotron_3_super_training": "<think>\n?", "nemotron_3_ultra_training": "<think>\n?",
    "qwen2_5_training": "\n", "qwen3_5_nothink_training": "<think>\n\n</think>\n\n",
    "qwen3_5_think_training": "<think>\n", "qwen3_6_training": "<think>\n", "qwen3_8_training": "<think>\n",
}  # fmt: skip
MARKED = [name for name in NAMES if re.search(r"\{%-?\s*generation", tokenizer_of(name).chat_template)]


def test_the_marked_templates_are_those_for_training():
    assert {name for name in NAMES if name.endswith("_training")} <= set(MARKED)
    assert len(MARKED) >= 31


@pytest.mark.parametrize("name", MARKED)
def test_trl_s_masks_say_the_same_but_for_the_prompt_s_end(name):
    tokenizer = tokenizer_of(name)
    parts = ChatTemplate(tokenizer).takes_parts
    compared = earlier = 0
    for which in CASES:
        if which == "inline thought" or "without tools" in which or ("thought" in which and "deepseek" in name):
            continue  # written as the family writes thoughts, and not with the tags as words
        messages, tools = case(which)
        try:
            ours = trained(name, which)
        except DataError:
            continue
        if parts:
            messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        made = tokenizer.apply_chat_template(messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True)
        theirs = runs(tokenizer, made["input_ids"], made["assistant_masks"])
        assert len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            # We add EOS to the last turn and leave out the line break behind an end of turn.
            our, their = (text.removesuffix(tokenizer.eos_token).rstrip() for text in (our, their))
            their = their.removesuffix(tokenizer.eos_token).rstrip()
            if our != their:
                opening = re.match(EARLIER.get(name, "(?!)"), their)
                assert opening, (which, our, their)
                kept = our.removeprefix("\n</think>\n\n") if "deepseek" in name else our
                assert their[opening.end() :].lstrip("\n") == kept.lstrip("\n")
                earlier += 1
            compared += 1
    assert compared >= 5
    assert (earlier > 0) == (name in EARLIER)


# --- What a template leaves out


@pytest.mark.parametrize("which", ["call without tools", "call beside text without tools"])
@pytest.mark.parametrize("name", ["phi3", "deepseek_r1_distill", "lfm2", "qwen2_5_vl"])
def test_calls_that_the_template_leaves_out_are_refused(name, which):
    tokenizer = tokenizer_of(name)
    messages, _ = case(which)
    assert "get_w" not in tokenizer.apply_chat_template(messages, tokenize=False)
    with pytest.raises(DataError, match=r"leaves out the tool call 'get_w' of message 1"):
        conversation_labels(tokenizer, messages)


def test_arguments_may_be_objects_or_json_texts_whatever_the_template_takes():
    for name in ("deepseekv3", "qwen3", "qwen3_6", "gptoss", "llama3_1", "glm4moe"):
        tokenizer, rows = tokenizer_of(name), []
        for as_text in (False, True):
            messages, _ = case("call without tools")
            if as_text:
                function = messages[1]["tool_calls"][0]["function"]
                function["arguments"] = json.dumps(function["arguments"])
            rows.append(conversation_labels(tokenizer, messages))
        assert rows[0] == rows[1], name
        assert '\\"city' not in tokenizer.decode(rows[0][0])


def test_a_template_that_drops_one_argument_is_refused_by_its_name():
    tokenizer = tokenizer_of("qwen3_6")
    source = tokenizer.chat_template.replace(
        "{%- for args_name, args_value in tool_call.arguments|items %}",
        "{%- for args_name, args_value in tool_call.arguments|items if args_name != 'days' %}",
    )
    assert source != tokenizer.chat_template
    messages, tools = case("call")
    with pytest.raises(DataError, match="leaves out the argument"):
        conversation_labels(tokenizer, messages, tools, chat_template=source)
    shown = source.replace("if args_name != 'days'", "if args_value is not number")
    with pytest.raises(DataError, match=r"leaves out the argument"):
        conversation_labels(tokenizer, messages, tools, chat_template=shown)
    # A value alone, whose name stays.
    blank = tokenizer.chat_template.replace("{{- args_value }}", "{{- args_value if args_name != 'days' else '?' }}")
    assert blank != tokenizer.chat_template
    with pytest.raises(DataError, match=r"leaves out the argument (2|'days')"):
        conversation_labels(tokenizer, messages, tools, chat_template=blank)


def test_arguments_written_as_python_are_not_trained():
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }}{{ call.function.arguments }}</call>"
        "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = tokenizer_of("qwen3")
    messages, _ = case("call without tools")
    assert "{'city': 'Rome'" in tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    ids, labels = conversation_labels(tokenizer, messages, chat_template=template)
    first = runs(tokenizer, ids, [label != -100 for label in labels])[0]
    assert first == f"<call>get_w{json.dumps(ROME)}</call><|im_end|>"


@pytest.mark.parametrize("name", ["gptoss", "qwen3_6", "deepseek_r1_distill", "gemma4", "cohere"])
def test_dropped_thoughts_are_counted_and_said(name):
    from selfaug.data.encode import encode

    tokenizer = tokenizer_of(name)
    messages, _ = case("thoughts")
    renderer = Renderer.for_tokenizer(tokenizer)
    encoded = encode([Conversation(tuple(messages))], tokenizer, renderer, max_length=None)
    text = tokenizer.decode(encoded.rows[0]["input_ids"])
    missing = sum(thought not in text for thought in ("Hm.", "Well."))
    assert missing
    assert encoded.report.thoughts_dropped == missing
    assert any(line.startswith(f"{missing} thoughts are left out") for line in encoded.report.lines())


def test_a_turn_of_nothing_but_its_end_is_never_trained():
    tokenizer = tokenizer_of("cohere")
    source = tokenizer.chat_template.replace("content.strip()", "content.split('</think>')[-1].strip()")
    messages = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "<think>Hm.</think>"}]
    text = tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False)
    assert "Hm." not in text
    with pytest.raises(DataError, match="leaves out"):
        conversation_labels(tokenizer, messages, chat_template=source)


# --- Planted errors


def shifted(monkeypatch: pytest.MonkeyPatch, start: int = 0, end: int = 0) -> None:
    """Plant an error: each turn's bounds that far off."""
    from selfaug.data import masks

    real = masks._bounds

    def bounds(found, turns):
        return {t: b._replace(start=b.start + start, end=b.end + end) for t, b in real(found, turns).items()}

    monkeypatch.setattr(masks, "_bounds", bounds)


@pytest.mark.parametrize(("start", "end"), [(1, 0), (-1, 0), (0, len("<|start|>functions."))])
def test_a_planted_shift_is_caught(monkeypatch, start, end):
    assert trained("gptoss", "calls in turn") == by_hand("gptoss", "calls in turn")
    shifted(monkeypatch, start, end)
    with contextlib.suppress(DataError):  # refused, which catches it too
        assert trained.__wrapped__("gptoss", "calls in turn") != by_hand("gptoss", "calls in turn")


def test_a_planted_tool_output_is_refused(monkeypatch):
    shifted(monkeypatch, end=len("<|start|>functions.get_w to=assistant<|channel|>commentary<|message|>") + 3)
    with pytest.raises(DataError, match="writes message 2 inside message 1"):
        trained.__wrapped__("gptoss", "call")


if __name__ == "__main__":
    page = LABELS.read_text(encoding="utf-8")
    place = between("labels", page)
    LABELS.write_text(page[: place.start(1)] + table() + page[place.end(1) :], encoding="utf-8")
