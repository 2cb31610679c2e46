"""Does each check accept answers that follow and refuse those that do not, and can each request be fulfilled?"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from selfaug.evaluation.instructions import KINDS, Instruction, Request, follows, follows_loosely, requests
from selfaug.evaluation.suites import suite
from selfaug.evaluation.tasks.offline import of_instructions

MADE = 368

# Arguments, answers that follow, and answers that do not.
PLANTED: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "at_least": ({"n": 4}, ["one two three four", "it's a well-known - fact"], ["one two three", "a - b"]),
    "at_most": ({"n": 3}, ["one two three", " one "], ["one two three four"]),
    "sentences": (
        {"n": 2},
        ["One. Two!", "It costs 3.50 today. Really?", 'He said "No." She left.', "One... two"],
        ["One.", "One. Two. Three.", "One, two", "2.5. ? !"],
    ),
    "questions": ({"n": 2}, ["Who? And why?"], ["Who?", "Who? Why? How?"]),
    "paragraphs": ({"n": 2}, ["a\n\nb", "a\nb\n \n\nc"], ["a\nb", "a\n\nb\n\nc"]),
    "bullets": (
        {"n": 2},
        ["- a\n- b", "Here:\n- a\n* b\nDone - really."],
        ["- a", "- a\n- b\n- c", "-a\n-b", "a - b\nc - d", "**a** b\n**c** d"],
    ),
    "numbered": (
        {"n": 2},
        ["1. a\n2. b", "So:\n1) a\n2) b"],
        ["1. a", "1. a\n2. b\n3. c", "2. a\n1. b", "1 a\n2 b", "9" * 5000 + ". a"],
    ),
    "json": (
        {"keys": ["tip", "mood"]},
        ['{"tip": "a", "mood": 2}', '```json\n{"mood": [], "tip": {}}\n```'],
        [
            '{"tip": "a"}',
            '{"tip": 1, "mood": 2, "name": 3}',
            'Here: {"tip": 1, "mood": 2}',
            '["tip", "mood"]',
            "[" * 9999,
        ],
    ),
    "contains": ({"words": ["river", "music"]}, ["Music by the river."], ["Rivers of music.", "river"]),
    "omits": ({"word": "the"}, ["Then they left there."], ["On the way.", "THE end"]),
    "times": ({"word": "river", "n": 2}, ["River, river! rivers"], ["river", "river river river"]),
    "begins": ({"phrase": "Here we go"}, ["Here we go: a", '"HERE we go"'], ["So here we go", "Here we", "Here go we"]),
    "ends": ({"phrase": "Take care"}, ["Bye. Take care!", "take care"], ["Take care, all", "care take"]),
    "title": ({}, ["[A title]\ntext", "[A]"], ["A title\ntext", "text [A]", "[] text", "[A] text", "[A\ntext"]),
    "quoted": ({}, ['"all of it"', "“so”"], ['"half', 'she said "so"', '""', "'so'"]),
    "postscript": ({}, ["Hi.\nP.S. More.", "p.s. more"], ["Hi. P.S. More.", "P.S. a\nHi.", "PS: more"]),
    "lower": ({}, ["all small, 3 of them"], ["All", "123", "..."]),
    "upper": ({}, ["ALL BIG, 3"], ["All", "123", "..."]),
    "no_commas": ({}, ["a; b"], ["a, b", "1,000"]),
    "digits": ({"n": 2}, ["3 of 1,000", "2.5 and 7"], ["three of 4", "1,000.5", "12"]),
    "bold": ({"n": 2}, ["**a** and **b c**"], ["**a**", "*a* *b*", "** **\n**a", "**a\nb** **c**"]),
    "two_answers": (
        {},
        ["a\n******\nb", "a\nb\n\n ****** \n\nc"],
        ["a ****** b", "a\n******\na", "a\n******\n", "a\n******\nb\n******\nc", "a\n*****\nb"],
    ),
    "choice": ({"words": "yes, no or unsure"}, ["No.", "unsure"], ["or", "yes no", "Yes, because I do", "maybe"]),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_right_and_wrong_answers_are_told_apart(kind: str) -> None:
    arguments, right, wrong = PLANTED[kind]
    holds = KINDS[kind].holds
    assert [answer for answer in right if not holds(answer.strip(), **arguments)] == []
    assert [answer for answer in wrong if holds(answer.strip(), **arguments)] == []
    one = Instruction(kind, arguments)
    assert [answer for answer in (*wrong, "", " \n") if follows(one, answer)] == []
    # A terse answer follows nothing but a choice.
    assert {follows(one, answer) for answer in right} == {kind == "choice"}


def test_ten_words_are_enough() -> None:
    small = Instruction("lower", {})
    assert follows(small, " ten words are one two three four five six seven. ")
    assert not follows(small, "nine words are one two three four five six.")


def test_loosely_an_opening_a_farewell_and_asterisks_do_not_count() -> None:
    shouted = Instruction("upper", {})
    hello = "HELLO " * 10
    for answer in (f"Sure:\n{hello}", f"{hello}\nHope this helps!", f"Sure:\n{hello}\nBye!"):
        assert not follows(shouted, answer)
        assert follows_loosely(shouted, answer)
    ends = Instruction("times", {"word": "river", "n": 2})
    assert follows_loosely(ends, "river *river* and so on to the end of it all")
    assert not follows_loosely(shouted, f"Sure:\n{hello.lower()}\nBye!")
    assert not follows_loosely(shouted, "Sure")  # nothing is left without its only line
    assert follows_loosely(Instruction("bold", {"n": 10}), "**a** " * 10)  # what is right strictly is right loosely


def solved(request: Request) -> str:
    """An answer that follows every instruction of a request, put together without the checks."""
    given = {one.kind: one.arguments for one in request.instructions}
    if "choice" in given:
        return str(given["choice"]["words"].split(",")[0])
    if "json" in given:
        return json.dumps(dict.fromkeys(given["json"]["keys"], "red " * 9))
    n = {kind: arguments["n"] for kind, arguments in given.items() if "n" in arguments}
    words = [given["begins"]["phrase"]] if "begins" in given else []
    words += given["contains"]["words"] if "contains" in given else []
    words += [given["times"]["word"]] * n["times"] if "times" in given else []
    words += ["**red**"] * n.get("bold", 0) + ["7"] * n.get("digits", 0) + ["red?"] * n.get("questions", 0)
    shape = next((kind for kind in given if "shape" in KINDS[kind].takes), None)
    count = n.get(shape, 2 if shape == "two_answers" else 1)
    others = " ".join([*words, given.get("ends", {"phrase": ""})["phrase"], *["blue"] * (count - 1)])
    words += ["red"] * max(1, n.get("at_least", 10) - len(others.split()))
    parts = [" ".join(words), *["blue"] * (count - 1)]
    if shape == "numbered":
        parts = ["blue"] * n["numbered"]
    if "ends" in given:
        parts[-1] += f" {given['ends']['phrase']}"
    text = {
        "sentences": ". ".join(parts) + ".",
        "paragraphs": "\n\n".join(parts),
        "bullets": "\n".join(f"- {part}" for part in parts),
        "numbered": "\n".join([" ".join(words), *(f"{i}. {part}" for i, part in enumerate(parts, start=1))]),
        "two_answers": "\n******\n".join(parts),
        "title": f"[Red]\n{parts[0]}",
        "quoted": f'"{parts[0]}"',
        "postscript": f"{parts[0]}\nP.S. Red",
        None: parts[0],
    }[shape]
    return text.upper() if "upper" in given else text.lower() if "lower" in given else text


def test_no_request_contradicts_itself() -> None:
    made = requests(MADE)
    assert Counter(len(request.instructions) for request in made).keys() == {1, 2, 3}
    for request in made:
        answer = solved(request)
        assert all(follows(one, answer) for one in request.instructions), (request, answer)


def test_requests_are_different_the_same_each_time_and_say_what_is_checked() -> None:
    made = requests(MADE)
    assert made == requests(MADE)
    assert made[:40] == requests(40)
    assert made != requests(MADE, seed=1)
    assert len({request.prompt for request in made}) == MADE
    kinds = Counter(one.kind for request in made for one in request.instructions)
    assert kinds.keys() == KINDS.keys()
    assert min(kinds.values()) >= MADE // len(KINDS)
    for request in made:
        assert "{" not in request.prompt
        for one in request.instructions:
            for value in one.arguments.values():
                for word in value if isinstance(value, list) else [value]:
                    assert str(word) in request.prompt


def test_the_task_scores_a_request_by_all_its_instructions() -> None:
    rows = of_instructions.dataset(items=MADE, seed=0)["test"]
    assert len(rows) == MADE
    place = next(i for i, row in enumerate(rows) if row["kinds"].count(",") == 2 and "upper" in row["kinds"])
    answer = solved(requests(MADE)[place])
    assert of_instructions.process_results(rows[place], [answer]) == {
        "prompt_level_strict_acc": 1.0,
        "prompt_level_loose_acc": 1.0,
        "inst_level_strict_acc": [True] * 3,
        "inst_level_loose_acc": [True] * 3,
    }
    opened = of_instructions.process_results(rows[place], [f"Sure\n{answer}"])
    assert opened["prompt_level_strict_acc"] == 0
    assert opened["prompt_level_loose_acc"] == 1
    assert sum(opened["inst_level_strict_acc"]) < 3
    assert of_instructions.mean_of_all([[True, False], [True, True, True]]) == 0.8
    assert [task.task for task in suite("offline")] == ["offline_following"]
