"""What does a user see while one waits: at once, with an estimate, and nothing of other libraries?"""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from selfaug.cli.main import VERBS

from .conftest import ENVIRONMENT, TRAIN, Cli, write_rows

WORDS = {
    "train": [["train"], ["train", "--help-all"], ["train", "--model_name_or_path", "none/such"]],
    "prepare": [["prepare", "rows.jsonl"]],
    "cache": [["cache"], ["cache", "--help-all"]],
    "evaluate": [["evaluate", "run"]],
    "shift": [["shift", "run"]],
    "relate": [["relate", "run"]],
    "compare": [["compare", "--output_dir", "out", "--methods", "sft"]],
    "tune": [["tune", "--output_dir", "out", "--max_drop", "general=2pt"]],
    "report": [["report", "run"]],
    "gate": [["gate", "run"]],
    "scale": [["scale", "run", "--max_drop", "general=2pt"]],
    "demo": [["demo"]],
    "lab": [["lab", "make", "--output_dir", "out"], ["lab", "task", "--count", "3"]],
    "merge": [["merge", "run", "--output_dir", "out"]],
    "chat": [["chat", "run"]],
}
# Bars of tqdm, and words of libraries that the user can do nothing about.
FOREIGN = re.compile(
    r"it/s|s/it|Loading weights|Map:|Generating|Tokenizing|examples/s|deprecated|FutureWarning|UserWarning"
    r"|values were not passed|find_unused_parameters"
)


def test_every_verb_speaks_before_anything_heavy_is_imported() -> None:
    assert set(WORDS) == set(VERBS)
    lines = [words for verb in WORDS.values() for words in verb]
    script = Path(__file__).with_name("first_words.py")
    done = subprocess.run(
        [sys.executable, str(script)], input=json.dumps(lines), capture_output=True, text=True, env=ENVIRONMENT,
        check=True,
    )  # fmt: skip
    for words, heard in zip(lines, json.loads(done.stdout), strict=True):
        assert heard is not None, words
        assert heard["text"].startswith(f"selfaug {words[0]}: "), words
        assert heard["heavy"] == [], words


def test_a_help_that_is_there_at_once_says_nothing_else(cli: Cli) -> None:
    for verb in ("gate", "train", "cache"):
        result = cli(verb, "--help")
        assert (result.code, result.err) == (0, "")
        assert "--verbose" in result.out


def words_of(model: Path, data: Path, run: Path, *more: object) -> list[str]:
    words = ["--model_name_or_path", model, "--dataset_name", data, "--output_dir", run, "--max_steps", 6, *TRAIN]
    return [sys.executable, "-m", "selfaug", "train", *map(str, [*words, *more])]


def on_a_terminal(command: list[str], env: dict[str, str]) -> tuple[int, str]:
    """Exit code, and everything that the terminal was sent."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(command[0], command, env)
    seen = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen.decode()


@pytest.mark.nightly
def test_on_a_terminal_a_training_has_a_bar_with_the_time_left(model: Path, data: Path, tmp_path: Path) -> None:
    env = {**ENVIRONMENT, "TERM": "xterm-256color", "NO_COLOR": "1", "COLUMNS": "200"}
    code, seen = on_a_terminal(words_of(model, data, tmp_path / "run", "--held_out", "0.3"), env)
    assert code == 0, seen
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen)
    assert not FOREIGN.search(plain)
    # A closed bar of another library leaves an empty line behind.
    assert not re.search(r"\n\r?\n", plain.replace("\r\n", "\n"))
    assert "\x1b[" in seen  # a bar is drawn over itself
    assert not re.search(r"\x1b\[[0-9;]*3\dm", seen)  # in no colour
    order = ["selfaug train: ", "reading ", "rows kept", "loading the model ", "0/6", "step 1/6 ", "finished"]
    places = [plain.index(part) for part in order]
    assert places == sorted(places)
    assert plain.index("0/6") < plain.index("1/6") < plain.index("finished")
    assert re.search(r"steps [^\n]* [1-5]/6 \d+ s, \d+ s left", plain)
    logged = [line for line in plain.replace("\r", "\n").splitlines() if line.startswith("step 1/6  loss")]
    assert len(logged) == 1
    assert "grad_norm" in logged[0]


@pytest.mark.nightly
def test_in_a_file_a_training_has_an_estimate_after_its_first_step(model: Path, data: Path, tmp_path: Path) -> None:
    command = words_of(model, data, tmp_path / "run", "--logging_steps", "4")
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=True)
    lines = done.stderr.splitlines()
    assert done.stdout == f"{tmp_path / 'run' / 'adapter'}\n"
    assert lines[0] == "selfaug train: loading the libraries ..."
    assert not FOREIGN.search(done.stderr)
    assert not re.search(r"[\r\x1b]", done.stderr)
    first = [line for line in lines if line.startswith("steps: ")]
    assert re.fullmatch(r"steps: 1 of 6 \(16 %\), about \d+ s left", first[0])
    logged = [line for line in lines if line.startswith("step 4/6  loss")]
    assert re.search(r"  \d+ s left$", logged[0])
    assert lines.index(first[0]) < lines.index(logged[0])
    assert len(lines) < 20


def gone_rows() -> list[dict]:
    """Twelve rows, of which every second has its answer in the document that is dropped first."""
    rows = []
    for number in range(12):
        documents = [
            f"Anna sails on the lake on day {number} with a blue boat.",
            f"On day {number} Tom found red balls.",
        ]
        documents = documents if number % 2 else documents[::-1]
        rows.append({"question": f"What did Tom find on day {number}?", "documents": documents, "answer": "red balls"})
    return rows


@pytest.mark.parametrize(("way", "kept", "abstained"), [("keep", 12, 0), ("skip", 6, 0), ("abstain", 12, 6)])
def test_lost_answers_are_said_counted_and_treated_as_asked(
    cli: Cli, model: Path, tmp_path: Path, way: str, kept: int, abstained: int
) -> None:
    data = write_rows(tmp_path / "gone.jsonl", gone_rows())
    words = ["--model_name_or_path", model, "--dataset_name", data, "--output_dir", tmp_path / "run", "--max_steps", 1]
    result = cli("train", *words, *TRAIN, "--max_length", 84, "--on_lost_answer", way)
    assert result.code == 0, result.err
    lengths = json.loads((tmp_path / "run" / "manifest.json").read_text())["lengths"]["train"]
    assert lengths["documents_dropped"] + lengths["shortened"] > 0
    assert (lengths["answers_lost"], lengths["on_lost_answer"]) == (6, way)
    assert (lengths["kept"], lengths["abstained"]) == (kept, abstained)
    warned = "warning: train: 6 of 12 rows (50 %) have their answer only in what was dropped"
    assert (warned in result.err) is (way == "keep")
    assert ("--on_lost_answer skip" in result.err) is (way == "keep")
    assert ("6 rows left out, of 12 (50 %), by reason:" in result.err) is (way == "skip")


def test_one_row_left_of_twenty_is_a_warning_in_train_and_prepare(cli: Cli, model: Path, tmp_path: Path) -> None:
    long = "The cat sleeps in the house. " * 40
    turns = [[{"role": "user", "content": f"{long} {n}?"}, {"role": "assistant", "content": "Yes"}] for n in range(19)]
    turns.append([{"role": "user", "content": "Who sleeps?"}, {"role": "assistant", "content": "The cat"}])
    data = write_rows(tmp_path / "rows.jsonl", [{"messages": messages} for messages in turns])
    words = ["--model_name_or_path", model, "--max_length", 100]
    train = cli("train", "--dataset_name", data, "--output_dir", tmp_path / "run", "--max_steps", 1, *TRAIN, *words)
    prepare = cli("prepare", data, "--check", *words)
    assert train.code == prepare.code == 0, train.err + prepare.err
    for err in (train.err, prepare.err):
        assert "warning: train: only 1 of 20 rows are left: 19 (95 %) are left out" in err
        assert "--cut_prompt_left true" in err
    table = prepare.out[prepare.out.index("19 rows left out, of 20 (95 %), by reason:") :].splitlines()
    assert len(table) < 8
    assert table[2].split()[:3] == ["19", "95", "%"]


def test_bad_rows_are_counted_by_reason_first(cli: Cli, model: Path, tmp_path: Path) -> None:
    rows = gone_rows()
    for number in range(1, 9):
        rows[number] = {**rows[number], "answer": number} if number % 4 else {**rows[number], "question": " "}
    data = write_rows(tmp_path / "rows.jsonl", rows)
    words = ["--model_name_or_path", model, "--dataset_name", data, "--output_dir", tmp_path / "run", "--max_steps", 1]
    result = cli("train", *words, *TRAIN, "--on_bad_row", "skip")
    assert result.code == 0, result.err
    lines = result.err.splitlines()
    head = next(i for i, line in enumerate(lines) if "8 bad rows left out, of 12 (67 %), by reason:" in line)
    assert lines[head + 2].split()[:3] == ["6", "50", "%"]
    assert "field answer: expected" in lines[head + 2]
    assert "line 2, field 'answer': expected" in lines[head + 3]
    assert any("warning: only 4 of 12 rows" in line for line in lines)
    found = json.loads((tmp_path / "run" / "manifest.json").read_text())["data"]["train"]["bad_rows_by_reason"]
    assert sorted(found.values()) == [2, 6]
