"""The weights that come along are those that their card tells of, and they can do what it says."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfaug.lab.card import CARD, LOG, command
from selfaug.lab.model import Making, weights_hash
from selfaug.lab.probe import share_right
from selfaug.lab.shipped import ASSETS
from selfaug.lab.skills import items
from selfaug.lab.tokenizer import make_tokenizer
from selfaug.lab.world import World

SHIPPED = sorted(path for path in ASSETS.iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda path: str(path.name))
def test_a_card_tells_of_its_own_weights(folder: Path) -> None:
    text = (folder / CARD).read_text()
    assert weights_hash(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)) in text
    making = Making(**json.loads((folder / "making.json").read_text()))
    assert making.size == folder.name
    assert command(making) in text
    assert shlex.split(command(making))[:3] == ["selfaug", "lab", "make"]
    steps = [json.loads(line)["step"] for line in (folder / LOG).read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] == making.steps


def test_the_weights_that_come_along_are_small() -> None:
    assert SHIPPED
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) < 10 * 2**20


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda path: str(path.name))
def test_it_has_its_skills_and_the_tokenizer_is_made_from_the_same_texts(folder: Path) -> None:
    making = Making(**json.loads((folder / "making.json").read_text()))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    made = make_tokenizer(World.make(), making.vocabulary, making.texts, making.seed)
    assert tokenizer.get_vocab() == made.get_vocab()
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    for skill in ("facts", "following", "editing", "reading"):
        # 90 % of 500 was measured (docs/lab.md); a model without the skill passes next to none of these.
        assert share_right(model, tokenizer, items(skill, "test", 40, World.make())) > 0.8, skill
