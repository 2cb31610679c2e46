"""Drills can be answered by looking back alone, and a new model's first heads do look back."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfaug.lab import drills
from selfaug.lab import model as lab
from selfaug.lab.batches import PROMPT_WEIGHT, Order, batches
from selfaug.lab.curriculum import STAGES
from selfaug.lab.item import chat
from selfaug.lab.skills import reading
from selfaug.lab.tokenizer import make_tokenizer
from selfaug.lab.words import KINDS, WORD, names
from selfaug.lab.world import World


def looked_back(ids: Sequence[int], place: int) -> set[int]:
    """What followed the earlier places whose tokens before are the same for longest: an oracle without a model."""
    longest, found = 0, set()
    for earlier in range(1, place):
        same = 0
        while same < earlier and ids[earlier - 1 - same] == ids[place - 1 - same]:
            same += 1
        if same > longest:
            longest, found = same, set()
        if same and same == longest:
            found.add(ids[earlier])
    return found


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**9), st.sampled_from([40, 1000]))
def test_what_a_drill_asks_for_was_said_before(seed: int, vocabulary: int) -> None:
    ids, known = drills.draw(random.Random(seed), 3, vocabulary)
    assert len(ids) == len(known)
    assert all(3 <= token < vocabulary for token in ids)
    asked = [place for place, each in enumerate(known) if each]
    assert asked
    # In few tokens a row may say one thing twice and go on in two ways: then what was said is among them.
    right = [ids[place] in looked_back(ids, place) for place in asked]
    assert sum(right) / len(right) > (0.99 if vocabulary == 1000 else 0.7)


def test_a_training_begins_with_drills_that_weigh_like_answers() -> None:
    assert STAGES[0].drills > 0.5
    tokenizer = make_tokenizer(World.make(), 400, texts=300)
    pad = int(tokenizer.pad_token_id)
    order = Order(400, 512, World.make(), tokenizer.backend_tokenizer, pad, 3)
    ids_BT, weights_BT = next(batches(order, 0))
    assert {round(weight, 6) for weight in weights_BT.unique().tolist()} <= {0.0, PROMPT_WEIGHT, 1.0}
    assert 0.3 < (weights_BT == 1.0).sum() / (weights_BT > 0).sum() < 0.8
    assert len(ids_BT.unique()) > 100  # of 400: a few rows of text have far fewer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer(World.make(), 1024, texts=300)


def attentions(size: str, tokenizer: Any, ids: torch.Tensor) -> Any:
    model = lab.new_model(lab.SIZES[size], tokenizer, 0).eval()
    model.set_attn_implementation("eager")
    return model(input_ids=ids[None], output_attentions=True).attentions


@pytest.mark.parametrize("size", list(lab.SIZES))
def test_a_new_models_first_heads_read_the_tokens_before_and_the_next_ones_match(size: str, tokenizer: Any) -> None:
    row = torch.randperm(len(tokenizer), generator=torch.Generator().manual_seed(1))[:24]
    found = attentions(size, tokenizer, row.repeat(2))
    for head in range(lab.SIZES[size].heads):
        back = torch.stack([found[0][0, head, place, place - head - 1] for place in range(8, 48)])
        assert back.mean() > 0.8
    # The second time, what followed the same token the first time stands out among all 24 to 47 places.
    matched = torch.stack([found[1][0, 0, place, place - 23] for place in range(24, 48)])
    assert (matched > 3 / 36).float().mean() > 0.4  # chance: 0.05 and less
    for head, places in ((0, 5), (1, 6)):
        back = torch.stack([found[2][0, head, place, place - places] for place in range(8, 48)])
        assert back.mean() > 0.8


@pytest.mark.parametrize("size", list(lab.SIZES))
def test_a_new_model_finds_what_a_question_asks_for_and_carries_it_to_the_answer(size: str, tokenizer: Any) -> None:
    rng = random.Random(2)
    found_there = []
    for _ in range(20):
        item = reading.make(rng, "test", unanswerable=0.0)
        words = [tokenizer.decode([i]) for i in tokenizer(chat(item.turns), add_special_tokens=False)["input_ids"]]
        ids = torch.tensor(tokenizer(chat(item.turns), add_special_tokens=False)["input_ids"])
        sign = len(ids) - 6
        assert words[sign] in ("?", ".")
        found = attentions(size, tokenizer, ids)
        assert found[2][0, 0, -1, sign] > 0.8
        asked = [words[sign - 4], *words[sign - 2 : sign]]  # what, and both syllables of whom
        told = [n for n in range(6, sign - 8) if [words[n - 5], *words[n - 3 : n - 1]] == asked]
        found_there.append(found[1][0, 2, sign, told[0]].item() * sign)
    assert sum(found_there) / len(found_there) > 5, found_there  # chance: 1


def test_names_are_two_words_of_the_tokenizer_in_both_parts() -> None:
    for kind in KINDS:
        for part in ("train", "test"):
            for name in names(kind, part):  # type: ignore[arg-type]
                assert len(WORD.findall(f" {name}")) == 2, name
                assert "".join(WORD.findall(f"Of {name}, {name}.")) == f"Of {name}, {name}."
    assert WORD.findall("Tomorrow Seaport") == ["Tomorrow", " Seaport"]
