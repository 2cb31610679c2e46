"""The general skills: every answer passes its own check, and what is wrong fails it."""

from __future__ import annotations

import pytest

from selfaug.lab.item import Item, chat, passes
from selfaug.lab.skills import SKILLS, items
from selfaug.lab.tokenizer import CHAT_TEMPLATE, make_tokenizer
from selfaug.lab.world import World

WORLD = World.make()


@pytest.mark.parametrize("skill", SKILLS)
def test_five_hundred_tests_of_each_skill_that_training_never_sees(skill: str) -> None:
    tests = items(skill, "test", 500, WORLD)
    training = items(skill, "train", 500, WORLD)
    assert len({item.turns for item in tests}) == 500
    assert not {item.turns for item in tests} & {item.turns for item in training}
    assert tests == items(skill, "test", 500, WORLD)
    for item in (*tests, *training):
        assert passes(item.check, item.answer), item


@pytest.mark.parametrize("skill", SKILLS)
def test_answers_of_others_fail(skill: str) -> None:
    """A check that anything passes would call any model good."""
    tests = items(skill, "test", 200, WORLD)
    wrong = [item for item, other in zip(tests, tests[1:] + tests[:1], strict=True) if passes(item.check, other.answer)]
    assert len(wrong) < 0.35 * len(tests), wrong[:3]
    for text in ("", "I don't know", "the the the"):
        assert sum(passes(item.check, text) for item in tests) < 0.2 * len(tests)


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        ({"exact": ["a b"]}, " a b ", "a  b"),
        ({"contains": ["Tarton"]}, "It is tarton.", "It is Tarburg."),
        ({"upper": True}, "GOAT, COW", "GOAT, Cow"),
        ({"upper": True}, "A 1", "1, 2"),
        ({"start": "Surely"}, "surely, goat", "goat, surely"),
        ({"end": "thanks"}, "goat Thanks.", "thanks goat"),
        ({"end": "80"}, "73 + 7 = 80", "73 + 7 = 800"),
        ({"without": ","}, "goat and cow", "goat, cow"),
        ({"without": ","}, "goat", ""),
        ({"lines": ["dash", 2]}, "- goat\n- cow", "- goat\ncow"),
        ({"lines": ["number", 2]}, "1. goat\n2. cow", "1. goat\n1. cow"),
        ({"lines": ["dash", 2]}, "- a\n- b", "- a\n- b\n- c"),
        ({"json": ["animals", 2]}, '{"ANIMALS": ["GOAT", "COW"]}', '{"animals": ["goat"]}'),
        ({"json": ["animals", 1]}, '{"animals": ["goat"]}', '["goat"]'),
        ({"json": ["animals", 1]}, '{"animals": ["goat"]}', '{"animals": [1]}'),
        ({"json": ["animals", 1]}, '{"animals": ["goat"]}', "{"),
        ({"members": [["goat", "cow"], 2]}, "COW, goat", "goat, goat"),
        ({"members": [["goat", "cow"], 1]}, "goat", "goat cow"),
        ({"times": ["goat", 3]}, "goat goat Goat", "goat goat"),
        ({"times": ["goat", 2]}, "goat, goat", "goat goat cow"),
        ({"sentences": 2}, "One. Two!", "One."),
        ({"contains": ["a"], "end": "b"}, "a b", "a c"),
    ],
)
def test_checks_by_hand(check: dict[str, object], right: str, wrong: str) -> None:
    assert passes(check, right)
    assert not passes(check, wrong)


def test_an_unknown_check_is_an_error() -> None:
    with pytest.raises(KeyError):
        passes({"nonsense": 1}, "a")


def test_the_prompt_is_that_of_the_chat_template_and_digits_stand_alone() -> None:
    tokenizer = make_tokenizer(WORLD, 400, texts=300)
    item = Item("dialogue", ("Hello 42.", "Yes?", "Grüße, 東京!"), "a", {})
    text = tokenizer.apply_chat_template(item.messages(), tokenize=False, add_generation_prompt=True)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert text == chat(item.turns)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert {"4", "2"} <= set(tokenizer.convert_ids_to_tokens(ids))
