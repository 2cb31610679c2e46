"""Each mistake of a user, in a process of its own: one error, one hint, exit code 2, nothing written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from datasets import Dataset
from peft import LoraConfig

from selfaug import SelfAugConfig, SelfAugTrainer
from selfaug.common.errors import ConfigError

from .conftest import ENVIRONMENT, TRAIN, Cli, Result, records, write_rows

ROW = records(1)[0]


@dataclass
class Place:
    """Where a case works: a folder of its own, and a good model and good data to spoil."""

    folder: Path
    model: Path
    data: Path

    def file(self, content: str | bytes, name: str = "data.jsonl") -> Path:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def rows(self, *rows: Any) -> Path:
        return self.file("".join(json.dumps(row) + "\n" for row in rows))

    def copy_of_model(self) -> Path:
        return Path(shutil.copytree(self.model, self.folder / "model"))

    def without(self, *names: str) -> Path:
        copy = self.copy_of_model()
        for name in names:
            (copy / name).unlink()
        return copy

    def written(self, name: str, change: Callable[[dict], None]) -> Path:
        copy = self.copy_of_model()
        content = json.loads((copy / name).read_text())
        change(content)
        (copy / name).write_text(json.dumps(content))
        return copy


@pytest.fixture
def place(tmp_path: Path, model: Path, data: Path) -> Place:
    return Place(tmp_path, model, data)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def assert_refused(result: Result, *words: str) -> None:
    assert result.code == 2, (result.code, result.err)
    assert "Traceback" not in result.err
    assert result.out == ""
    lines = result.err.splitlines()
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    hints = [number for number, line in enumerate(lines) if line.startswith("hint: ")]
    assert len(errors) == len(hints) == 1, result.err
    assert lines[hints[0] - 1] == ""
    assert len(lines[hints[0]]) > len("hint: ") + 5
    said = "\n".join(lines[errors[0] :])
    for word in words:
        assert word in said, (word, said)


def refused(cli: Cli, place: Place, *words: str, says: tuple[str, ...], **given: object) -> None:
    chosen = {"model_name_or_path": place.model, "dataset_name": place.data, "output_dir": place.folder / "run"} | given
    flags = [word for name, value in chosen.items() for word in (f"--{name}", value)]
    before = snapshot(place.folder)
    result = cli("train", *flags, "--max_steps", 1, *words, cwd=place.folder)
    assert_refused(result, *says)
    assert snapshot(place.folder) == before


def test_the_good_case_that_every_bad_one_spoils(cli: Cli, place: Place) -> None:
    words = ["--model_name_or_path", place.model, "--dataset_name", place.data, "--output_dir", place.folder / "run"]
    result = cli("train", *words, "--max_steps", 1)
    assert result.code == 0, result.err


BAD_DATA: dict[str, tuple[Callable[[Place], Path], tuple[str, ...]]] = {
    "missing": (lambda p: p.folder / "dta.jsonl", ("dta.jsonl", "does not exist")),
    "empty": (lambda p: p.file(""), ("data.jsonl",)),
    "binary": (lambda p: p.file(b"\x00\xff\xfe\x01" * 300), ("data.jsonl",)),
    "broken JSON": (lambda p: p.file(json.dumps(ROW) + '\n{"question": \n'), ("data.jsonl", "line 2")),
    "wrong type": (lambda p: p.rows(ROW, ROW | {"question": 3}), ("line 2", "question", "3")),
    "empty answer": (lambda p: p.rows(ROW, ROW | {"answer": " "}), ("line 2", "answer")),
    "no documents": (lambda p: p.rows(ROW, ROW | {"documents": []}), ("line 2", "documents")),
    "unknown fields": (lambda p: p.rows({"quesiton": "a", "x": 1}), ("quesiton",)),
    "no row fits": (lambda p: p.rows(ROW | {"answer": "long " * 600}), ("max_length",)),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(cli: Cli, place: Place, case: str) -> None:
    make, says = BAD_DATA[case]
    refused(cli, place, dataset_name=make(place), says=says)


def test_no_aligned_token(cli: Cli, place: Place) -> None:
    # One prompt token: no prompt position whose next token is a prompt token too.
    path = place.rows(*[{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}] * 4)
    refused(cli, place, dataset_name=path, says=("aligned", "alpha"))
    assert cli(
        "train", "--model_name_or_path", place.model, "--dataset_name", path, "--output_dir", place.folder / "run",
        "--max_steps", 1, "--alpha", 0,
    ).code == 0  # fmt: skip


def test_bad_rows_can_be_skipped_and_are_counted_and_listed(cli: Cli, place: Place) -> None:
    path = place.rows(*records(6), ROW | {"question": 3}, ROW | {"documents": []})
    words = ["--model_name_or_path", place.model, "--dataset_name", path, "--output_dir", place.folder / "run"]
    result = cli("train", *words, "--max_steps", 1, "--on_bad_row", "skip")
    assert result.code == 0, result.err
    assert "2 bad rows left out" in result.err
    assert "line 7" in result.err
    assert "line 8" in result.err
    manifest = json.loads((place.folder / "run" / "manifest.json").read_text())
    assert manifest["data"]["train"]["bad_rows_left_out"] == 2


def test_a_document_longer_than_the_context_is_shortened_and_reported(cli: Cli, place: Place) -> None:
    long = ROW | {"documents": [{"text": "Tom found 0 red balls in the park. " * 300}]}
    path = place.rows(*records(4), long)
    words = ["--model_name_or_path", place.model, "--dataset_name", path, "--output_dir", place.folder / "run"]
    result = cli("train", *words, "--max_steps", 1)
    assert result.code == 0, result.err
    manifest = json.loads((place.folder / "run" / "manifest.json").read_text())
    assert manifest["lengths"]["train"]["kept"] == 5
    assert "shortened" in result.err


def test_no_chat_template_is_no_mistake_but_asking_for_one_is(cli: Cli, place: Place) -> None:
    refused(cli, place, "--prompt", '{"mode": "chat"}', says=("chat template",))


BAD_FLAGS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "unknown flag": (["--learning_rat", "1"], ("'--learning_rat'", "Did you mean '--learning_rate'?")),
    "wrong type": (["--learning_rate", "fast"], ("--learning_rate", "'fast'")),
    "negative alpha": (["--alpha", "-1"], ("alpha",)),
    "alpha NaN": (["--alpha", "nan"], ("alpha", "nan")),
    "fraction 0": (["--align_fraction", "0"], ("align_fraction",)),
    "fraction 2": (["--align_fraction", "2"], ("align_fraction",)),
    "unknown method": (["--method", "selfaugg"], ("method", "Did you mean 'selfaug'?")),
    "lm_head": (["--lora_target_modules", "lm_head"], ("lm_head",)),
    "unknown module": (["--lora_target_modules", "q_prj"], ("q_prj",)),
    "max_length beyond the context": (["--max_length", "9999"], ("max_length", "9999", "256")),
    "max_length 1": (["--max_length", "1"], ("max_length",)),
    "full fine-tuning of its own base": (["--use_peft", "false"], ("reference",)),
    "missing reference": (["--reference", "./nope"], ("reference './nope' does not exist",)),
    "mistyped reference": (["--reference", "inital"], ("reference 'inital'", "Did you mean 'initial'?")),
    "eval without data": (["--eval_strategy", "steps"], ("eval_strategy",)),
    "unknown prompt setting": (["--prompt", '{"ordr": "given"}'], ("ordr", "Did you mean 'order'?")),
    "unknown format": (["--format", "squda"], ("squda", "Did you mean 'squad'?")),
    "missing eval data": (["--eval_dataset", "nowhere.jsonl"], ("eval_dataset", "nowhere.jsonl")),
    "eos token": (["--eos_token", "<nope>"], ("eos_token", "<nope>")),
    "resume from nothing": (["--resume_from_checkpoint"], ("resume_from_checkpoint",)),
    "fp16 and bf16": (["--fp16", "--bf16", "true"], ("fp16",)),
}


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_bad_flags(cli: Cli, place: Place, case: str) -> None:
    words, says = BAD_FLAGS[case]
    refused(cli, place, *words, says=says)


def test_unknown_yaml_key(cli: Cli, place: Place) -> None:
    refused(cli, place, config=place.file("lerning_rate: 1\n", "a.yaml"), says=("lerning_rate", "'learning_rate'"))


def test_pissa_needs_another_reference(place: Place) -> None:
    """`init_lora_weights` has no flag of trl's own, so the library's door is tried here."""
    rows = Dataset.from_list([{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}] * 4)
    config = SelfAugConfig(str(place.folder / "x"), use_cpu=True)
    adapter = LoraConfig(init_lora_weights="pissa", target_modules="all-linear")
    with pytest.raises(ConfigError, match="pissa") as refused:
        SelfAugTrainer(str(place.model), config, train_dataset=rows, peft_config=adapter)
    assert "hint: " in str(refused.value)


BAD_MODELS: dict[str, tuple[Callable[[Place], Path | str], tuple[str, ...]]] = {
    "missing folder": (lambda p: p.model.parent / f"{p.model.name[:-1]}x", ("does not exist",)),
    "unknown hub name": (lambda p: "nobody/nothing-at-all", ("nobody/nothing-at-all",)),
    "a file": (lambda p: p.data, ("is a file",)),
    "no config": (lambda p: p.without("config.json"), ("config.json",)),
    "no weights": (lambda p: p.without("model.safetensors"), ("no weights",)),
    "no tokenizer": (lambda p: p.without("tokenizer.json", "tokenizer_config.json"), ("tokenizer",)),
    "unknown type": (lambda p: p.written("config.json", lambda c: c.update(model_type="lama")), ("lama",)),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_models(cli: Cli, place: Place, case: str) -> None:
    make, says = BAD_MODELS[case]
    refused(cli, place, model_name_or_path=make(place), says=says)


def test_weights_cut_short(cli: Cli, place: Place) -> None:
    weights = place.copy_of_model() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(cli, place, model_name_or_path=weights.parent, says=("model.safetensors", "cut short"))


def test_an_adapter_in_the_place_of_a_model(cli: Cli, place: Place, trained: tuple[Path, Result]) -> None:
    refused(cli, place, model_name_or_path=trained[0] / "adapter", says=("adapter", str(place.model)))


@pytest.mark.parametrize("what", ["model", "data"])
def test_nothing_given(cli: Cli, place: Place, what: str) -> None:
    words = ["--dataset_name", place.data] if what == "model" else ["--model_name_or_path", place.model]
    assert_refused(cli("train", *words, "--output_dir", place.folder / "run"), "--" + ("m" if what == "model" else "d"))


def test_a_folder_that_holds_another_run(cli: Cli, place: Place, trained: tuple[Path, Result]) -> None:
    run = place.folder / "run"
    shutil.copytree(trained[0], run)
    refused(cli, place, says=("holds another run", "--overwrite_output_dir true"))
    # To the letter the same settings, and still nothing of the finished run is lost.
    before = snapshot(run)
    words = ["--model_name_or_path", place.model, "--dataset_name", place.data, "--output_dir", run, "--max_steps", 6]
    assert_refused(cli("train", *words, *TRAIN), "same settings", "--resume_from_checkpoint")
    assert snapshot(run) == before


def test_a_folder_with_foreign_files(cli: Cli, place: Place) -> None:
    (place.folder / "run").mkdir()
    (place.folder / "run" / "thesis.txt").write_text("mine")
    refused(cli, place, says=("thesis.txt", "--overwrite_output_dir true"))


def test_resume_with_other_data(cli: Cli, place: Place, trained: tuple[Path, Result]) -> None:
    # The same path and settings, other content.
    run, data = place.folder / "run", write_rows(place.folder / "data.jsonl", records(8))
    words = ["--model_name_or_path", place.model, "--dataset_name", data, "--output_dir", run, *TRAIN]
    assert cli("train", *words, "--max_steps", 3).code == 0
    write_rows(data, records(9))
    before = snapshot(place.folder)
    result = cli("train", *words, "--max_steps", 6, "--resume_from_checkpoint")
    assert_refused(result, "data.train.rows", "8 then, 9 now")
    assert snapshot(place.folder) == before


def test_several_processes_are_not_started_for_a_mistake(cli: Cli, place: Place) -> None:
    refused(cli, place, "--num_processes", "2", "--alpha", "-1", says=("alpha",))
    refused(cli, place, "--num_processes", "2", dataset_name=place.folder / "none.jsonl", says=("none.jsonl",))


@pytest.mark.nightly
@pytest.mark.distributed
@pytest.mark.slow
def test_a_bad_row_far_down_ends_both_processes_and_is_said_once(cli: Cli, place: Place) -> None:
    rows = [*records(40), {**ROW, "answer": 3}]
    before = snapshot(place.folder) | {"data.jsonl": place.rows(*rows).read_bytes()}
    result = cli(
        *("train", "--model_name_or_path", place.model, "--dataset_name", place.folder / "data.jsonl"),
        *("--output_dir", place.folder / "run", "--num_processes", "2", *TRAIN),
    )
    assert "starting 2 processes" in result.err  # the first rows show nothing
    assert_refused(result, "data.jsonl, line 41", "answer")
    assert snapshot(place.folder) == before


class _Hub(BaseHTTPRequestHandler):
    """A hub that is overloaded, and counts how often it is asked."""

    asked: ClassVar[list[str]] = []

    def _answer(self) -> None:
        self.asked.append(self.path)
        self.send_error(503)

    do_GET = do_HEAD = _answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    _Hub.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(
    ("name", "most"), [pytest.param("models/nope", 0, marks=pytest.mark.nightly), ("owner/nope", 1)]
)
def test_a_missing_model_is_said_at_once(place: Place, hub: str, name: str, most: int) -> None:
    """The command as typed: a path is no question for the hub, and a name is one question, not a minute of them."""
    (place.folder / "models").mkdir()
    words = [sys.executable, "-m", "selfaug", "train", "--model_name_or_path", name, "--dataset_name", str(place.data)]
    environment = {key: value for key, value in ENVIRONMENT.items() if key != "HF_HUB_OFFLINE"} | {"HF_ENDPOINT": hub}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300, cwd=place.folder)
    assert_refused(Result(done.returncode, done.stdout, done.stderr), name)
    assert len([path for path in _Hub.asked if "nope" in path]) == most
