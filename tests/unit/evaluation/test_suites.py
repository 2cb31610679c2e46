"""Are suites whole, and is what the user names found, merged and refused as it should be?"""

from __future__ import annotations

from pathlib import Path

import pytest

from selfaug.common.errors import ConfigError
from selfaug.evaluation.suites import SUITES, GeneralTask, chosen, suite

KNOWN = {name: [name] for name in ("ifeval", "mmlu", "gsm8k", "arc_challenge", "hellaswag")} | {
    "ai2": ["arc_a", "arc_b"]
}


def pick(*words: str, limit: int | None = None, max_gen_toks: int | None = None) -> list[GeneralTask]:
    return chosen(words, KNOWN, limit=limit, max_gen_toks=max_gen_toks)


def test_the_papers_six_are_there() -> None:
    assert SUITES == ("lab", "offline", "paper", "quick")
    names = [task.task for task in suite("paper")]
    assert names == ["ifeval", "minerva_math500", "humaneval_instruct", "mmlu", "arc_challenge_chat", "hellaswag"]


@pytest.mark.parametrize("name", SUITES)
def test_each_task_pins_what_its_number_depends_on(name: str) -> None:
    for task in suite(name):
        assert task.num_fewshot is not None
        assert task.chat_template in ("auto", True, False)
        assert task.primary
        assert task.suite == name
        if task.task.startswith(("ifeval", "offline", "minerva", "humaneval", "arc_challenge_chat")):
            assert task.generation["max_gen_toks"] > 0
            assert task.generation["do_sample"] is False


def test_what_is_named_last_refines_what_was_named_before(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("{}", encoding="utf-8")
    tasks = {task.task: task for task in pick("quick", "gsm8k", f"ifeval={file}", limit=7, max_gen_toks=9)}
    assert list(tasks) == ["ifeval", "arc_challenge", "hellaswag", "mmlu", "gsm8k"]
    assert tasks["ifeval"].data == file.resolve()
    assert tasks["ifeval"].primary == "prompt_level_strict_acc"
    assert {task.limit for task in tasks.values()} == {7}
    assert {task.generation["max_gen_toks"] for task in tasks.values()} == {9}
    assert pick("quick")[0].limit == 200
    assert [task.task for task in pick("ai2")] == ["arc_a", "arc_b"]


def test_the_near_name_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'hellaswg' is not known\. Did you mean 'hellaswag'\?"):
        pick("hellaswg")
    with pytest.raises(ConfigError, match=r"Did you mean 'quick'\?"):
        pick("quik")
    (tmp_path / "prompts.jsonl").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"Did you mean 'prompts.jsonl'\?"):
        pick(f"ifeval={tmp_path / 'promts.jsonl'}")
