from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from selfaug.common.errors import ConfigError
from selfaug.run.checkpoint import seal
from selfaug.run.folder import MAY_DIFFER, RunFolder, config_differences

CONFIG = {"alpha": 2, "seed": 1, "output_dir": "x", "save_steps": 5}


def with_checkpoint(folder: RunFolder, *, whole: bool = True) -> None:
    step = folder.checkpoints / "checkpoint-3"
    step.mkdir(parents=True)
    (step / "adapter_model.safetensors").write_bytes(b"weights")
    if whole:
        seal(step, {})


def snapshot(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def test_a_new_or_empty_folder_is_free(folder: RunFolder) -> None:
    folder.check_free(CONFIG, overwrite=False, resume=False)
    assert not folder.path.exists()
    folder.path.mkdir()
    folder.check_free(CONFIG, overwrite=False, resume=False)


def test_what_is_created_is_read_back(folder: RunFolder) -> None:
    folder.create({**CONFIG, "text": "ü: #"})
    assert folder.read_config() == {**CONFIG, "text": "ü: #"}
    assert folder.checkpoints.is_dir()
    assert sorted(entry.name for entry in folder.path.iterdir()) == ["checkpoints", "config.yaml"]


def test_a_run_that_left_nothing_may_begin_again_even_with_other_settings(folder: RunFolder) -> None:
    folder.create(CONFIG)
    folder.check_free({**CONFIG, "alpha": 3}, overwrite=False, resume=False)


@pytest.mark.parametrize("kind", ["checkpoint", "adapter", "model"])
def test_a_run_with_results_is_not_run_over(folder: RunFolder, kind: str) -> None:
    folder.create(CONFIG)
    if kind == "checkpoint":
        with_checkpoint(folder)
    else:
        (folder.path / kind).mkdir()
    before = snapshot(folder.path)
    with pytest.raises(ConfigError, match="same settings") as error:
        folder.check_free(CONFIG, overwrite=False, resume=False)
    assert "--resume_from_checkpoint" in error.value.hint
    with pytest.raises(ConfigError, match=r"another run \(alpha: 2 there, 3 now\)") as error:
        folder.check_free({**CONFIG, "alpha": 3}, overwrite=False, resume=False)
    assert "--overwrite_output_dir true" in error.value.hint
    folder.check_free(CONFIG, overwrite=False, resume=True)
    folder.check_free({**CONFIG, "alpha": 3}, overwrite=True, resume=False)
    assert snapshot(folder.path) == before


def test_a_resumed_run_may_change_how_long_but_not_what(folder: RunFolder) -> None:
    folder.create(CONFIG)
    with_checkpoint(folder)
    folder.check_free({**CONFIG, "save_steps": 9, "output_dir": "y"}, overwrite=False, resume=True)
    with pytest.raises(ConfigError, match="seed"):
        folder.check_free({**CONFIG, "seed": 2}, overwrite=False, resume=True)


def test_a_torn_checkpoint_is_no_result(folder: RunFolder) -> None:
    folder.create(CONFIG)
    with_checkpoint(folder, whole=False)
    folder.check_free(CONFIG, overwrite=False, resume=False)
    folder.create(CONFIG)
    assert list(folder.checkpoints.iterdir()) == []


def test_foreign_files_are_refused_and_survive_an_overwrite(folder: RunFolder) -> None:
    folder.path.mkdir()
    (folder.path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds no run: it has thesis\.txt"):
        folder.check_free(CONFIG, overwrite=False, resume=False)
    folder.check_free(CONFIG, overwrite=True, resume=False)
    folder.create(CONFIG)
    with_checkpoint(folder)
    (folder.path / "adapter").mkdir()
    folder.log.write_text("{}\n")
    (folder.path / "scale.json").write_text("{}")
    folder.create({**CONFIG, "alpha": 3}, overwrite=True)
    assert (folder.path / "thesis.txt").read_text() == "mine"
    assert sorted(entry.name for entry in folder.path.iterdir()) == ["checkpoints", "config.yaml", "thesis.txt"]
    assert list(folder.checkpoints.iterdir()) == []


def test_a_resumed_run_keeps_its_checkpoints(folder: RunFolder) -> None:
    folder.create(CONFIG)
    with_checkpoint(folder)
    folder.create({**CONFIG, "save_steps": 7}, resume=True)
    assert folder.has_checkpoint()
    assert folder.read_config()["save_steps"] == 7


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        RunFolder(tmp_path / "run").check_free(CONFIG, overwrite=True, resume=False)


def test_remove_if_empty_spares_what_holds_something(folder: RunFolder) -> None:
    folder.checkpoints.mkdir(parents=True)
    folder.remove_if_empty()
    assert not folder.path.exists()
    folder.checkpoints.mkdir(parents=True)
    (folder.path / "a").touch()
    folder.remove_if_empty()
    assert (folder.path / "a").exists()


def test_open_wants_a_finished_run(folder: RunFolder) -> None:
    folder.path.parent.joinpath("ran").mkdir()
    with pytest.raises(ConfigError, match=r"does not exist\. Did you mean 'ran'\?"):
        RunFolder.open(folder.path)
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        RunFolder.open(folder.path.parent / "ran")
    folder.create(CONFIG)
    with pytest.raises(ConfigError, match="has not finished") as error:
        RunFolder.open(folder.path)
    assert "--resume_from_checkpoint" in error.value.hint
    spaced = RunFolder(folder.path.parent / "my run")
    spaced.create(CONFIG)
    with pytest.raises(ConfigError) as error:
        RunFolder.open(spaced.path)
    command = shlex.split(error.value.hint.split("`")[1])
    assert command == ["selfaug", "train", "--config", str(spaced.config), "--resume_from_checkpoint"]
    folder.adapter.mkdir()
    assert RunFolder.open(str(folder.path)).finished == folder.adapter
    with pytest.raises(ConfigError) as error:
        RunFolder.open(folder.adapter)
    assert str(folder.path.resolve()) in error.value.hint


def test_a_damaged_config_is_named(folder: RunFolder) -> None:
    folder.create(CONFIG)
    for text in ("a: b: c", "- 1"):
        folder.config.write_text(text)
        with pytest.raises(ConfigError, match=r"config\.yaml"):
            folder.read_config()


def test_what_may_differ_are_settings_that_exist() -> None:
    from selfaug.cli.parsing import parse

    assert parse([]).values.keys() >= MAY_DIFFER
    learnt = {"alpha", "seed", "learning_rate", "lora_r", "dataset_name", "method", "max_length", "align_fraction"}
    assert not learnt & MAY_DIFFER


def test_config_differences_see_a_setting_that_only_one_side_has() -> None:
    assert config_differences({"alpha": 1}, {"alpha": 1, "beta": 2, "save_steps": 3}) == {"beta": (None, 2)}


def test_a_setting_that_an_older_run_does_not_know_had_its_default() -> None:
    old, defaults = {"alpha": 1}, {"alpha": 2, "beta": 2}
    assert config_differences(old, {"alpha": 1, "beta": 2}, defaults) == {}
    assert config_differences(old, {"alpha": 2, "beta": 3}, defaults) == {"alpha": (1, 2), "beta": (2, 3)}
    assert yaml.safe_load(yaml.safe_dump(CONFIG)) == CONFIG
