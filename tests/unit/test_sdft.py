"""Is a rewrite used where it agrees with the answer, and nowhere else?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from selfaug.common.errors import ConfigError
from selfaug.data.forms import read_forms
from selfaug.data.prompts import Renderer
from selfaug.data.record import Conversation, Document, Item, Record
from selfaug.generation.requests import Reply, Request
from selfaug.generation.store import Store
from selfaug.generation.writer import Writer
from selfaug.methods.sdft import agrees, rewritten
from selfaug.training.config import SelfAugConfig
from tests.chatting import chat_tokenizer


@pytest.mark.parametrize(
    ("rewrite", "answers", "agree"),
    [
        ("It is Paris, on the Seine.", ["Paris"], True),
        ("It is Lyon.", ["Paris"], False),
        ("It is not Paris.", ["Paris"], False),
        ("the city of light", ["Paris", "City of Light"], True),
        ("Tom found 3 red balls in the park", ["3 red balls"], True),
        ("Tom found three balls", ["3 red balls"], False),
        ("The treaty was signed on 6 May 1920 in Rome", ["The treaty was signed on 5 May 1920 in Rome"], False),
        ("In Rome the treaty was signed, on 5 May 1920", ["The treaty was signed on 5 May 1920 in Rome"], True),
        ("Yes, she did.", ["yes"], True),
        ("No, she did not.", ["yes"], False),
        ("No, she never did.", ["no"], True),
        ("I don't know", ["Paris"], False),
        ("I don't know, perhaps Paris", ["Paris"], False),
        ("The documents do not say.", ["I don't know"], False),
        ("I don't know that.", ["I don't know"], True),
        ("", ["Paris"], False),
        ("...", ["Paris"], False),
        ("答案是北京。", ["北京"], True),
        ("不是北京。", ["北京"], False),
        ("我不知道。", ["北京"], False),
        ("यह रोम है", ["राम"], False),
        ("it was 5 degrees in Rome", ["it was -5 degrees in Rome"], False),
    ],
)
def test_agreement(rewrite: str, answers: list[str], agree: bool) -> None:
    assert agrees(rewrite, answers) is agree


def test_a_file_of_abstentions_is_an_option(tmp_path: Path) -> None:
    path = tmp_path / "forms.yaml"
    path.write_text("fi: [en tiedä]", encoding="utf-8")
    assert agrees("En tiedä, ehkä Pariisi", ["Pariisi"])
    assert not agrees("En tiedä, ehkä Pariisi", ["Pariisi"], forms=read_forms(str(path)))
    options = {"rewrite_abstentions": str(tmp_path / "none.yaml")}
    with pytest.raises(ConfigError, match="does not exist"):
        SelfAugConfig(output_dir=str(tmp_path), method="sdft", method_options=options, report_to="none", use_cpu=True)


@pytest.mark.parametrize(
    ("rewrite", "fault"),
    [
        ("The reference answer says a red ball.", True),
        ("Here is MY RESPONSE: a red ball", True),
        ("Now it's your turn: a red ball", True),
        ("Your turn! a red ball", True),
        ("It is your turn to find a red ball", False),
        ("Tom found a red ball", False),
    ],
)
def test_a_rewrite_that_speaks_of_its_task_is_not_learnt(rewrite: str, fault: bool, tmp_path: Path) -> None:
    assert agrees(rewrite, ["a red ball"])  # precondition: nothing else speaks against it
    (got,) = changed([RECORD], Scripted(lambda _: Reply(rewrite, True)), tmp_path)
    assert (got == RECORD) is fault
    assert json.loads((tmp_path / "counts.json").read_text())["sdft"].get("refused_of_the_task", 0) == int(fault)


def test_without_agreement_every_rewrite_is_learnt_as_published(tmp_path: Path) -> None:
    def learnt(text: str, agreement: float) -> bool:
        source = Scripted(lambda _: Reply(text, True))
        given = writer(source, tmp_path / f"{len(text)} {agreement}")
        return rewritten([RECORD], given, share=1.0, agreement=agreement, temperature=0.0) != [RECORD]

    assert learnt("He found it at school.", 0.0)
    assert not learnt("He found it at school.", 0.7)
    assert not learnt("The reference answer is school.", 0.0)


def test_the_smallest_word_f1_is_a_setting() -> None:
    gold, rewrite = ["a cat sleeps in house by sea"], "cat sleeps in a big house"
    # 4 words of 5 said and 6 wanted are shared: F1 is 8/11.
    assert agrees(rewrite, gold, 0.727)
    assert not agrees(rewrite, gold, 0.728)
    assert not agrees(rewrite, gold, 1.0)


class Scripted:
    """Replies as a function of the request's last words."""

    def __init__(self, reply: Callable[[str], Reply]) -> None:
        self.reply = reply
        self.asked: list[Request] = []

    def ask(self, requests: Sequence[Request]) -> Iterator[dict[int, Reply]]:
        for i, request in enumerate(requests):
            self.asked.append(request)
            yield {i: self.reply(str(request.messages[-1]["content"]))}


def writer(source: Scripted, folder: Path, max_length: int | None = 256, seed: int = 0) -> Writer:
    tokenizer = chat_tokenizer()
    return Writer(
        source, Store(folder), {}, tokenizer=tokenizer, renderer=Renderer.for_tokenizer(tokenizer),
        max_length=max_length, length=8, seed=seed,
    )  # fmt: skip


def changed(items: Sequence[Item], source: Scripted, folder: Path, share: float = 1.0, **more: int) -> list[Item]:
    return rewritten(items, writer(source, folder, **more), share=share, agreement=0.7, temperature=0.0)


PARK = (Document("Tom found a red ball in the park.", "Tom"),)
RECORD = Record("What did Tom find?", PARK, ("a red ball", "red ball"), id="r1")


def test_a_rewrite_that_agrees_is_learnt_and_one_that_disagrees_is_not(tmp_path: Path) -> None:
    other = Record("Where did Tom find it?", PARK, ("in the park",), id="r2")
    unknown = Record("Why?", PARK, (), id="r3", answerable=False)
    words = {"What did": "Tom found a red ball.", "Where did": "He found it at school."}
    source = Scripted(lambda asked: Reply(next(text for start, text in words.items() if start in asked), True))
    got = changed([RECORD, other, unknown], source, tmp_path)
    assert got == [
        Record("What did Tom find?", PARK, ("Tom found a red ball.", *RECORD.answers), id="r1"),
        other,
        unknown,
    ]
    # The base saw the documents, the question and the answer.
    assert all(
        part in source.asked[0].messages[-1]["content"] for part in (PARK[0].text, RECORD.question, "a red ball")
    )
    assert len(source.asked) == 2
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert counts == {"sdft": {"rewritten": 1, "kept": 1, "refused_disagreeing": 1}}
    rows = [json.loads(line) for line in (tmp_path / "sdft.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["r1", "r2", "r3"]


def test_a_rewrite_that_was_cut_or_does_not_fit_is_not_learnt(tmp_path: Path) -> None:
    assert changed([RECORD], Scripted(lambda _: Reply("Tom found a red ball", False)), tmp_path / "cut") == [RECORD]
    long = Scripted(lambda _: Reply("a red ball" + " indeed" * 60, True))
    fitting = changed([RECORD], long, tmp_path / "a", max_length=512)[0]
    assert isinstance(fitting, Record)
    assert fitting.answers[0].endswith("indeed")
    # Here its documents would have to make room for it: the prompt would be another.
    assert changed([RECORD], long, tmp_path / "b", max_length=256) == [RECORD]
    assert json.loads((tmp_path / "b" / "counts.json").read_text())["sdft"]["refused_too_long"] == 1


def test_turns_of_a_conversation_are_rewritten_one_by_one(tmp_path: Path) -> None:
    messages = (
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Who slept?"},
        {"role": "assistant", "content": "the cat"},
        {"role": "user", "content": "And where?"},
        {"role": "assistant", "content": "in the house"},
        {"role": "assistant", "content": "more words"},
    )
    source = Scripted(lambda asked: Reply("It was the cat." if "Who" in asked else "on the roof", True))
    (got,) = changed([Conversation(messages, PARK)], source, tmp_path)
    assert isinstance(got, Conversation)
    assert [m["content"] for m in got.messages if m["role"] == "assistant"] == [
        "It was the cat.",
        "in the house",
        "more words",
    ]
    assert got.documents == PARK
    first, second = source.asked
    assert [m["role"] for m in second.messages] == ["system", "user", "assistant", "user"]
    # Later turns are asked for behind the answers as they were given, and documents are shown.
    assert second.messages[2]["content"] == "the cat"
    assert PARK[0].text in first.messages[1]["content"]
    assert "in the house" in second.messages[-1]["content"]


def test_a_share_is_drawn_by_the_rows_and_the_seed(tmp_path: Path) -> None:
    items = [Record(f"What did Tom find on day {i}?", PARK, ("a red ball",)) for i in range(60)]

    def which(name: str, given: Sequence[Item], **more: int) -> set[str]:
        source = Scripted(lambda _: Reply("He found a red ball", True))
        got = changed(given, source, tmp_path / name, share=0.5, **more)
        return {new.question for new in got if isinstance(new, Record) and new.answers[0].startswith("He")}

    some = which("a", items)
    assert 15 < len(some) < 45
    assert which("b", items[::-1]) == some
    assert which("c", items, seed=1) != some
    assert which("d", items[:30]) == some & {item.question for item in items[:30]}


def test_control_tokens_in_an_answer_stay_words(tmp_path: Path) -> None:
    source = Scripted(lambda _: Reply("a <|im_end|> ball", True))
    record = Record("What <|im_start|>?", PARK, ("a <|im_end|> ball",))
    changed([record], source, tmp_path)
    assert not [text for text in ("<|im_end|>", "<|im_start|>") if text in source.asked[0].messages[-1]["content"]]
