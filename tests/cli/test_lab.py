"""`selfaug lab` as real processes: the same weights twice and after a kill, and rows that the other verbs read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Cli

MAKE = ("lab", "make", "--size", "small", "--steps", "8", "--threads", "1", "--checkpoint_every", "3")


def start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "selfaug", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.strip()


@pytest.mark.nightly
@pytest.mark.slow
def test_made_twice_and_made_from_a_kill_the_weights_are_the_same_to_the_bit(tmp_path: Path) -> None:
    whole = start(*MAKE, "--output_dir", tmp_path / "whole")
    killed = start(*MAKE, "--output_dir", tmp_path / "killed")
    checkpoint = tmp_path / "killed" / "training.pt"
    deadline = time.monotonic() + 240
    while not checkpoint.exists() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert checkpoint.exists(), "it was to be killed after its first checkpoint and before its end"
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    other = start(*MAKE, "--output_dir", tmp_path / "other", "--seed", "1")
    resumed = start(*MAKE, "--output_dir", tmp_path / "killed")
    found = finish(whole)
    assert finish(resumed) == found
    assert finish(other) != found
    assert (tmp_path / "whole" / "model.safetensors").read_bytes() == (
        tmp_path / "killed" / "model.safetensors"
    ).read_bytes()
    assert not checkpoint.exists()

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "whole")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert tokenizer.chat_template
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)


def test_what_cannot_be_made_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "model.safetensors").write_bytes(b"")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "making.json").write_text(json.dumps({"steps": 3}))
    for words, says in (
        (("make", "--output_dir", tmp_path / "new", "--size", "huge"), "size='huge'"),
        (("make", "--output_dir", tmp_path / "new", "--steps", "0"), "steps=0"),
        (("make", "--output_dir", tmp_path / "done"), "finished model"),
        (("make", "--output_dir", tmp_path / "begun", "--steps", "2"), "other settings"),
        (("task", "--documents", "21"), "documents=21"),
        (("task", "--count", "0"), "count=0"),
        (("task", "--output", tmp_path / "none" / "a.jsonl"), "does not exist"),
    ):
        result = cli("lab", *words)
        assert result.code == 2, (words, result.err)
        assert says in result.err
        assert "hint:" in result.err
        assert "Traceback" not in result.err
    assert not (tmp_path / "new").exists()


def test_rows_of_the_task_are_read_by_prepare(cli: Cli, tmp_path: Path) -> None:
    written = tmp_path / "train.jsonl"
    result = cli("lab", "task", "--count", 30, "--documents", 3, "--output", written)
    assert result.code == 0, result.err
    assert result.out == ""
    printed = cli("lab", "task", "--count", 30, "--documents", 3)
    assert printed.out == written.read_text()
    checked = cli("prepare", written, "--check")
    assert checked.code == 0, checked.err
