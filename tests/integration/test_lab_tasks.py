"""The lab's skills through lm_eval give the same numbers as the lab's own checkers on the same items."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfaug.evaluation.harness import Harness
from selfaug.evaluation.suites import suite
from selfaug.lab.item import chat, passes
from selfaug.lab.model import SIZES, new_model, save
from selfaug.lab.skills import SKILLS, items
from selfaug.lab.tokenizer import make_tokenizer
from selfaug.lab.world import World

pytestmark = pytest.mark.slow

ITEMS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, large enough that answers differ: hardly one is right, so texts are compared beside scores."""
    folder = tmp_path_factory.mktemp("lab")
    tokenizer = make_tokenizer(World.make(), 600, texts=2000)
    random_model = new_model(SIZES["small"], tokenizer, seed=0)
    with torch.no_grad():
        for weight in random_model.parameters():
            if weight.ndim > 1:
                weight *= 8
    save(random_model, tokenizer, folder)
    return folder


class Counted:
    """What a harness tells of its progress."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def __call__(self, done: int, /) -> None:
        self.heard.append(("done", done))

    def expect(self, total: int) -> None:
        self.heard.append(("of", total))


def own_answers(folder: Path, skill: str) -> list[str]:
    """Greedy answers one prompt at a time, unpadded, without lm_eval."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for item in items(skill, "test", 500, World.make())[:ITEMS]:
        prompt = tokenizer(chat(item.turns), add_special_tokens=False, return_tensors="pt")["input_ids"]
        ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=64, do_sample=False)
        found.append(tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True))
    return found


def test_every_skill_is_a_task_of_the_suite() -> None:
    assert [task.task for task in suite("lab")] == [f"lab_{skill}" for skill in SKILLS]


@pytest.mark.nightly
@pytest.mark.parametrize("skill", ["facts", "dialogue"])
def test_lm_evals_number_is_that_of_the_labs_checkers(model: Path, skill: str) -> None:
    task = next(task for task in suite("lab") if task.task == f"lab_{skill}")
    progress = Counted()
    found = Harness().run(
        dataclasses.replace(task, limit=ITEMS),
        AutoModelForCausalLM.from_pretrained(model),
        AutoTokenizer.from_pretrained(model),
        batch_size=1,
        progress=progress,
    )
    # Each request is counted, and their number is known before the first is answered.
    assert progress.heard == [("of", ITEMS), *(("done", done) for done in range(1, ITEMS + 1))]
    answers = own_answers(model, skill)
    assert len(set(answers)) > 1
    assert [sample["response"] for sample in found["samples"]] == answers
    world = items(skill, "test", 500, World.make())
    own = [passes(item.check, text) for item, text in zip(world, answers, strict=False)]
    assert [sample["values"]["acc"] for sample in found["samples"]] == [float(one) for one in own]
    assert found["tables"][task.task]["acc"]["value"] == pytest.approx(sum(own) / ITEMS)
    assert [sample["prompt"] for sample in found["samples"]] == [chat(item.turns) for item in world[:ITEMS]]
    # The scorer is the item's own: the trained answer passes and a wrong one does not.
    from selfaug.evaluation.tasks.lab import of_lab

    row = of_lab.dataset(skill=skill, items=500)["test"][0]
    assert of_lab.process_results(row, [world[0].answer]) == {"acc": 1.0}
    assert of_lab.process_results(row, [""]) == {"acc": 0.0}
