"""A model is finished only when all of it is written, and a making leaves the process as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from selfaug.errors import ConfigError
from selfaug.lab import model as lab
from selfaug.lab.curriculum import batches
from selfaug.lab.tokenizer import make_tokenizer
from selfaug.lab.world import World

SETTINGS = lab.Making(size="small", steps=3, tokens=256, vocabulary=400, texts=300)


def test_stopped_while_saving_it_is_not_finished_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lab.make(tmp_path / "whole", SETTINGS)
    assert lab.is_finished(tmp_path / "whole")
    with monkeypatch.context() as patch:

        def torn(model: object, tokenizer: object, folder: Path) -> None:
            (folder / "model.safetensors").write_bytes(b"half of it")
            raise KeyboardInterrupt

        patch.setattr(lab, "save", torn)
        with pytest.raises(KeyboardInterrupt):
            lab.make(tmp_path / "torn", SETTINGS)
    assert not lab.is_finished(tmp_path / "torn")
    assert lab.make(tmp_path / "torn", SETTINGS) == whole
    assert lab.is_finished(tmp_path / "torn")


def test_threads_are_given_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    settings = lab.Making(size="small", steps=1, tokens=64, vocabulary=400, texts=300, threads=before + 1)
    lab.make(tmp_path, settings)
    assert torch.get_num_threads() == before


def test_other_settings_are_refused(tmp_path: Path) -> None:
    lab.make(tmp_path, SETTINGS)
    with pytest.raises(ConfigError, match="other settings"):
        lab.make(tmp_path, lab.Making(size="small", steps=4, tokens=256, vocabulary=400, texts=300))


def test_a_steps_batch_is_the_same_from_wherever_it_is_gone_on(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(World.make(), 400, texts=300).backend_tokenizer
    whole = list(batches(0, 11, 512, World.make(), tokenizer, seed=3))
    assert len({tuple(example.input_ids) for batch in whole for example in batch}) > 20
    for first in (1, 3, 4, 10):
        assert list(batches(first, 11, 512, World.make(), tokenizer, seed=3)) == whole[first:]
    assert list(batches(0, 11, 512, World.make(), tokenizer, seed=4)) != whole
