"""A model is finished only when all of it is written, and a making leaves the process as it was."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from torch import Tensor

from selfaug.cli import lab as cli
from selfaug.cli.config import read
from selfaug.common.errors import ConfigError
from selfaug.lab import model as lab
from selfaug.lab.batches import PROMPT_WEIGHT, Order, Words, batches, encode
from selfaug.lab.card import Journal
from selfaug.lab.item import Item, chat
from selfaug.lab.probe import answers, share_right
from selfaug.lab.skills import SKILLS, items
from selfaug.lab.tokenizer import make_tokenizer
from selfaug.lab.world import World

SETTINGS = lab.Making(size="small", steps=3, tokens=256, vocabulary=400, texts=300)


def test_stopped_while_saving_it_is_not_finished_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lab.make(tmp_path / "whole", SETTINGS)
    assert lab.is_finished(tmp_path / "whole")
    with monkeypatch.context() as patch:

        def torn(model: object, tokenizer: object, folder: Path) -> str:
            (folder / "model.safetensors").write_bytes(b"half of it")
            raise KeyboardInterrupt

        patch.setattr(lab, "save", torn)
        with pytest.raises(KeyboardInterrupt):
            lab.make(tmp_path / "torn", SETTINGS)
    assert not lab.is_finished(tmp_path / "torn")
    assert lab.make(tmp_path / "torn", SETTINGS) == whole
    assert lab.is_finished(tmp_path / "torn")


def test_the_card_names_the_command_and_the_hash_and_the_log_has_each_step_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfaug.lab.probe.share_right", lambda *_: 0.0)
    digest = lab.make(tmp_path, SETTINGS, probe_every=2, checkpoint_every=1)
    text = (tmp_path / "README.md").read_text()
    assert digest in text
    words = shlex.split(next(line for line in text.splitlines() if line.startswith("selfaug lab make")))
    again = read(cli.COMMAND, words[2:]).settings
    assert (again.size, again.steps, again.tokens, again.seed) == ("small", 3, 256, 0)
    assert "| 2 | 0.00 |" in text
    assert [json.loads(line)["step"] for line in (tmp_path / "training.jsonl").read_text().splitlines()] == [1, 2, 3]
    journal = Journal(tmp_path / "log")
    for entry in ({"step": 1, "loss": 3}, {"step": 2, "loss": 2}, {"step": 2, "facts": 0.5}, {"step": 1, "loss": 4}):
        journal.add(entry)
    with (tmp_path / "log").open("a") as file:
        file.write('{"step": 3, "lo')
    assert journal.close() == journal.entries() == [{"step": 1, "loss": 4}, {"step": 2, "loss": 2, "facts": 0.5}]


def test_threads_are_given_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    settings = lab.Making(size="small", steps=1, tokens=64, vocabulary=400, texts=300, threads=before + 1)
    lab.make(tmp_path, settings)
    assert torch.get_num_threads() == before


def test_other_settings_are_refused(tmp_path: Path) -> None:
    lab.make(tmp_path, SETTINGS)
    with pytest.raises(ConfigError, match="other settings"):
        lab.make(tmp_path, lab.Making(size="small", steps=4, tokens=256, vocabulary=400, texts=300))


def test_a_steps_batch_is_the_same_from_wherever_it_is_gone_on_and_by_any_number_of_processes() -> None:
    tokenizer = make_tokenizer(World.make(), 400, texts=300)
    pad = int(tokenizer.pad_token_id)
    order = Order(40, 512, World.make(), tokenizer.backend_tokenizer, pad, 3)
    whole = [list(map(Tensor.tolist, batch)) for batch in batches(order, 0)]
    assert len(whole) == 40
    assert len({tuple(row) for ids, _ in whole for row in ids}) > 20
    for first, workers in ((1, 0), (15, 2), (16, 0), (39, 1)):
        assert [list(map(Tensor.tolist, batch)) for batch in batches(order, first, workers)] == whole[first:]
    other = Order(40, 512, World.make(), tokenizer.backend_tokenizer, pad, 4)
    assert [batch[0].tolist() for batch in batches(other, 0)] != [ids for ids, _ in whole]


def test_answers_count_fully_and_prompts_a_little() -> None:
    tokenizer = make_tokenizer(World.make(), 400, texts=300)
    item = Item("reading", ("Hello.", "Yes.", "What is red?"), "A fox.", {})
    ids, weights = encode(item, Words(tokenizer.backend_tokenizer))
    assert tokenizer.decode(ids) == f"{chat(item.turns)}A fox.<|im_end|>\n"
    full = [i for i, weight in zip(ids, weights, strict=True) if weight == 1.0]
    assert tokenizer.decode(full) == "Yes.<|im_end|>A fox.<|im_end|>"
    assert set(weights) == {1.0, PROMPT_WEIGHT}


@pytest.mark.parametrize("skill", sorted(SKILLS))
def test_word_by_word_the_ids_are_those_of_the_whole_text(skill: str) -> None:
    tokenizer = make_tokenizer(World.make(), 400, texts=300)
    words = Words(tokenizer.backend_tokenizer)
    for item in items(skill, "test", 30, World.make()):
        text = f"{chat(item.turns)}{item.answer}<|im_end|>\n"
        assert encode(item, words)[0] == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_tokens_that_fill_up_rows_do_not_count() -> None:
    tokenizer = make_tokenizer(World.make(), 400, texts=300)
    pad = int(tokenizer.pad_token_id)
    for ids_BT, weights_BT in batches(Order(4, 700, World.make(), tokenizer.backend_tokenizer, pad, 0), 0):
        assert ids_BT.shape == weights_BT.shape
        assert ((weights_BT == 0) == (ids_BT == pad)).all()


def test_a_probe_counts_right_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lab.new_model(lab.SIZES["small"], tokenizer := make_tokenizer(World.make(), 400, texts=300), 0).eval()
    wanted = [items("editing", "test", 5, World.make())[i] for i in (0, 3, 1)]
    found = answers(model, tokenizer, wanted, longest=4)
    alone = [answers(model, tokenizer, [item], longest=4)[0] for item in wanted]
    assert found == alone
    monkeypatch.setattr("selfaug.lab.probe.answers", lambda *_: [wanted[0].answer, "other", wanted[2].answer])
    assert share_right(model, tokenizer, wanted) == pytest.approx(2 / 3)
