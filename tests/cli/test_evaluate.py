"""`selfaug evaluate` as its users meet it: what is refused, what is kept when it stops, what lies in the run folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from selfaug.cli.main import main
from selfaug.evaluation.results import read_results, read_samples
from selfaug.evaluation.task_part import TaskPart
from selfaug.run.folder import RunFolder
from tests.models import save_tiny, tiny
from tests.runs import finished_run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, model: Path) -> RunFolder:
    return finished_run(tmp_path_factory.mktemp("runs") / "made", model)


@pytest.fixture
def run(tmp_path: Path, made: RunFolder) -> RunFolder:
    shutil.copytree(made.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i in range(12):
            text = " ".join(f"w{3 + (i * 7 + j) % 90}" for j in range(40))
            row = {"id": f"q{i}", "question": f"w{i + 3} w{i + 4}", "documents": [{"text": text}]}
            row |= {"answerable": False} if i % 4 == 3 else {"answer": [f"w{i + 5} w{i + 9}", f"w{i + 5}"]}
            file.write(json.dumps(row) + "\n")
    return path


def evaluate(run: RunFolder, *words: str | Path) -> int:
    return main(["evaluate", str(run.path), "--max_new_tokens", "8", *map(str, words)])


def test_results_table_and_samples(run: RunFolder, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(run, "--data", data) == 0
    out, err = capsys.readouterr()
    results = read_results(run.path / "results.json")
    part = results["parts"]["task"]
    assert (part["items"], part["counts"]["questions_without_answer"]) == (12, 3)
    assert results["run"]["kind"] == "adapter"
    assert all(results["hashes"][name] for name in ("base", "tuned", "tokenizer", "renderer", "train_config"))
    assert {"answer_match", "answer_f1", "exact_match", "f1", "crag", "abstention_recall", "answer_nll"} <= set(
        part["metrics"]
    )
    assert [name for name, entry in part["metrics"].items() if entry["primary"]] == ["answer_f1"]
    lines = out.splitlines()
    assert lines[0].split()[:2] == ["part", "metric"]
    assert len(lines) == 1 + len(part["metrics"])
    nll = part["metrics"]["answer_nll"]
    assert f"{nll['base']['value']:.4f}" in out
    assert nll["base"]["value"] != nll["tuned"]["value"]
    assert "results.json" in err
    samples = list(read_samples(run.path / "samples.jsonl", "task"))
    assert [sample["id"] for sample in samples] == [f"q{i}" for i in range(12)]
    assert any(sample["base"]["response"] != sample["tuned"]["response"] for sample in samples)
    # The table is made of the samples: nats and tokens of both sides.
    for side in ("base", "tuned"):
        nats = [sample[side]["values"]["answer_nll"] for sample in samples]
        assert nll[side]["value"] == pytest.approx(sum(n for n, _ in nats) / sum(k for _, k in nats))


def test_what_is_shared_with_the_training_data_is_said_before_a_model_is_loaded(
    run: RunFolder, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfaug.run.models import Sides

    rows = [json.loads(line) for line in data.read_text("utf-8").splitlines()]
    trained = [rows[0], {**rows[1], "answer": "otherwise"}, {**rows[3], "question": "new", "answerable": False}]
    trained[0]["documents"][0]["text"] = trained[0]["documents"][0]["text"].upper() + "!"
    (tmp_path / "hub").mkdir()
    for shard, row in enumerate(trained):
        (tmp_path / "hub" / f"train-0000{shard}-of-00003.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    config = run.read_config() | {"dataset_name": str(tmp_path / "hub"), "held_out": None, "format": "auto"}
    run.config.write_text(yaml.safe_dump(config), "utf-8")
    loaded: list[str] = []

    def stop(*_: Any) -> None:
        loaded.append(capsys.readouterr().err)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Sides, "side", stop)
        assert evaluate(run, "--data", data) == 130
    assert "questions.jsonl is not independent of the training data:" in loaded[0]
    assert "leak: 1 row of 12 are also rows of the training data (0 letter by letter)" in loaded[0]
    assert "leak: 3 distinct documents (in 3 rows of 12) are also in the training data (2 letter" in loaded[0]
    assert "1 distinct question (in 1 row): the training data asks the same and has another answer" in loaded[0]
    assert evaluate(run, "--data", data) == 0
    told = read_results(run.path / "results.json")["parts"]["task"]["data"]["shared_with_training"]
    assert told["shared_documents"] == {"count": 3, "rows": 3, "exact": 2}
    capsys.readouterr()
    # What cannot be looked at is said too; a file that shares nothing is not worth a word.
    shutil.rmtree(tmp_path / "hub")
    assert evaluate(run, "--data", data) == 0
    err = capsys.readouterr().err
    assert f"could not be checked: its training data, {tmp_path / 'hub'}, is not there any more" in err
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "train.jsonl").write_text(json.dumps({**rows[5], "documents": ["x"], "question": "?"}), "utf-8")
    assert evaluate(run, "--data", data) == 0
    assert "independent" not in capsys.readouterr().err


def test_json_goes_to_stdout_alone(run: RunFolder, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(run, "--data", data, "--json") == 0
    assert json.loads(capsys.readouterr().out) == read_results(run.path / "results.json")


def test_what_is_finished_is_not_repeated(run: RunFolder, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    whole = TaskPart.compute
    stop = True

    def compute(self: TaskPart, side: str, model: Any, progress: Any) -> Any:
        if side == "tuned" and stop:
            raise KeyboardInterrupt
        done.append(side)
        return whole(self, side, model, progress)

    monkeypatch.setattr(TaskPart, "compute", compute)
    assert evaluate(run, "--data", data) == 130
    assert done == ["base"]
    assert not (run.path / "results.json").exists()
    stop = False
    assert evaluate(run, "--data", data) == 0
    assert done == ["base", "tuned"]
    first = (run.path / "results.json").read_text(encoding="utf-8")
    assert evaluate(run, "--data", data) == 0
    assert done == ["base", "tuned"]
    again = read_results(run.path / "results.json")
    assert again["parts"] == json.loads(first)["parts"]
    # Whatever decides a part makes it a new one: settings, data, weights.
    assert evaluate(run, "--data", data, "--batch_size", "5") == 0
    assert len(done) == 4
    with data.open("a", encoding="utf-8") as file:
        file.write('{"question": "w9", "documents": [{"text": "w8"}], "answer": "w7"}\n')
    assert evaluate(run, "--data", data) == 0
    assert len(done) == 6
    assert evaluate(run, "--data", data, "--fresh") == 0
    assert len(done) == 8


def test_parts_measured_earlier_stay_in_the_results(run: RunFolder, data: Path, tmp_path: Path) -> None:
    text = tmp_path / "general.txt"
    text.write_text(" ".join(f"w{3 + i % 50}" for i in range(200)), encoding="utf-8")
    assert evaluate(run, "--data", data) == 0
    assert evaluate(run, "--no_task", "--general_data", text) == 0
    results = read_results(run.path / "results.json")
    assert set(results["parts"]) == {"task", "text:general"}
    assert results["parts"]["text:general"]["metrics"]["nll"]["base"]["n"] == 1
    assert {sample["part"] for sample in read_samples(run.path / "samples.jsonl")} == {"task", "text:general"}


def test_runs_of_one_base_share_what_it_answered(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    whole = TaskPart.compute
    monkeypatch.setattr(TaskPart, "compute", lambda self, side, *rest: (done.append(side), whole(self, side, *rest))[1])
    for seed in (1, 2):
        other = finished_run(tmp_path / f"seed-{seed}", model, seed=seed)
        assert evaluate(other, "--data", data, "--store", tmp_path / "store") == 0
    assert done == ["base", "tuned", "tuned"]


def fails(capsys: pytest.CaptureFixture[str], run: RunFolder, *words: str | Path) -> tuple[str, str]:
    """The message and the hint of a call that must be a user's mistake."""
    code = evaluate(run, *words)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    message, _, hint = err.partition("\n\nhint: ")
    assert "error: " in message
    assert hint.strip()
    return message, hint


@pytest.mark.parametrize(("truncate", "kept"), [(None, "w11"), ("by_score", "w11"), ("by_gold", "w22")])
def test_a_mark_of_the_right_document_decides_only_where_it_is_asked_for(
    run: RunFolder, tmp_path: Path, truncate: str | None, kept: str
) -> None:
    documents = [{"text": " ".join([word] * 30), "is_gold": word == "w22"} for word in ("w11", "w22")]
    rows = [{"question": f"w{i}", "documents": documents, "answer": "w22"} for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [] if truncate is None else ["--truncate", truncate]
    assert evaluate(run, "--data", tmp_path / "rows.jsonl", "--max_length", "60", *flags) == 0
    prompts = [sample["prompt"] for sample in read_samples(run.path / "samples.jsonl", "task")]
    assert len(prompts) == 3
    words = {"w11", "w22"}
    assert all(max(words, key=prompt.split().count) == kept for prompt in prompts), prompts[0]


def test_a_missing_adapter(run: RunFolder, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run.adapter / "adapter_model.safetensors").unlink()
    assert "has no weights" in fails(capsys, run, "--data", data)[0]
    shutil.rmtree(run.adapter)
    assert "has not finished" in fails(capsys, run, "--data", data)[0]


def test_an_adapter_that_is_not_the_runs(run: RunFolder, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run.adapter / "adapter_model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    assert "are not those that the run wrote" in fails(capsys, run, "--data", data)[0]


def _other(folder: Path, **changes: Any) -> Path:
    other = tiny("llama", seed=5)
    config = other.config
    if changes:
        config.update(changes)
        other = AutoModelForCausalLM.from_config(config)
    return save_tiny(folder, other)


def test_another_base_by_its_hash(
    run: RunFolder, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message, hint = fails(capsys, run, "--data", data, "--base", _other(tmp_path / "other"))
    assert "belongs to another base" in message
    assert "sampled-sha256:" in message
    assert "--base" in hint


def test_another_base_by_its_shape(
    run: RunFolder, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads(run.manifest.read_text(encoding="utf-8"))
    manifest["model"]["weights"] = None  # as of a base that was not on the machine
    run.manifest.write_text(json.dumps(manifest), encoding="utf-8")
    other = _other(tmp_path / "other", intermediate_size=64)
    message, _ = fails(capsys, run, "--data", data, "--base", other)
    assert "does not fit the base model" in message
    assert "size mismatch" in message


def test_the_base_may_have_moved(run: RunFolder, model: Path, data: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(model, tmp_path / "moved")
    config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    run.config.write_text(yaml.safe_dump({**config, "model_name_or_path": str(tmp_path / "gone")}), encoding="utf-8")
    assert evaluate(run, "--data", data) == 2
    assert evaluate(run, "--data", data, "--base", moved) == 0


BAD = [
    (["--data", "{tmp}/nope.jsonl"], "does not exist"),
    ([], "held no data out"),
    (["--no_task"], "nothing to measure"),
    (["--limit", "0", "--data", "{data}"], "limit is 0"),
    (["--max_new_tokens", "600", "--data", "{data}"], "no room for a prompt"),
    (["--judge_url", "http://x/v1", "--data", "{data}"], "belong together"),
    (["--backend", "vllm", "--data", "{data}"], "none is named"),
    (["--generl", "quick"], "Did you mean '--general'?"),
    (["--no_task", "--general_data", "{tmp}/questins.jsonl"], "Did you mean 'questions.jsonl'?"),
]


@pytest.mark.parametrize(("words", "said"), BAD)
def test_mistakes_are_told(
    run: RunFolder, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    filled = [word.format(data=data, tmp=tmp_path) for word in words]
    assert said in fails(capsys, run, *filled)[0]
    assert not (run.path / "results.json").exists()


def test_a_settings_file_and_its_mistakes(
    run: RunFolder, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "evaluate.yaml"
    file.write_text(f"data: [{data}]\nbatch_size: 3\nlimit: 4\n", encoding="utf-8")
    assert evaluate(run, "--config", file, "--limit", "5") == 0
    results = read_results(run.path / "results.json")
    assert (results["config"]["batch_size"], results["config"]["limit"]) == (3, 5)
    assert results["parts"]["task"]["items"] == 5
    capsys.readouterr()
    file.write_text("batchsize: 3\n", encoding="utf-8")
    assert "Did you mean 'batch_size'?" in fails(capsys, run, "--config", file)[0]


@pytest.fixture
def judge() -> Iterator[tuple[str, list[Any]]]:
    replies: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            raw = json.dumps({"choices": [{"message": {"content": replies[0]}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1", replies
    server.shutdown()
    server.server_close()


def test_a_judge_that_is_down_loses_no_answers(
    run: RunFolder, data: Path, judge: tuple[str, list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    url, replies = judge
    asking = ["--data", data, "--judge_model", "j", "--judge_retries", "0"]
    message, hint = fails(capsys, run, *asking, "--judge_url", "http://127.0.0.1:9/v1")
    assert "gave no answer in 1 tries" in message
    assert "kept" in hint
    replies.append('{"verdict": "right"}')
    assert evaluate(run, *asking, "--judge_url", url) == 0
    err = capsys.readouterr().err
    assert err.count("finished before") == 2
    part = read_results(run.path / "results.json")["parts"]["task"]
    assert part["metrics"]["crag"]["primary"] is True
    # Every answer that is one was judged right.
    assert part["metrics"]["crag"]["base"]["value"] == pytest.approx(1 - part["counts"]["abstained"]["base"] / 12)


def test_a_judge_that_babbles_is_counted(
    run: RunFolder, data: Path, judge: tuple[str, list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    url, replies = judge
    replies.append("As a large language model I find this hard to say.")
    assert evaluate(run, "--data", data, "--judge_model", "j", "--judge_url", url) == 0
    err = capsys.readouterr().err
    assert "could not be read: base" in err
    assert "hard to say" in err
    part = read_results(run.path / "results.json")["parts"]["task"]
    assert part["counts"]["judge_unparsed"]["base"] > 0
    assert part["counts"]["judge_left_out"] >= part["counts"]["judge_unparsed"]["base"]
    assert "crag" not in part["metrics"] or part["metrics"]["crag"]["base"]["n"] < 12


@pytest.mark.nightly
def test_a_full_disk_keeps_what_was_finished(run: RunFolder, data: Path) -> None:
    # Files of at most 8 kB, as on a disk that is full: the answers of both models fit, the sample log does not.
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000));"
        "from selfaug.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    long = data.with_name("long.jsonl")
    with long.open("w", encoding="utf-8") as file:
        for i in range(12):
            document = " ".join(f"w{3 + (i + j) % 90}" for j in range(250))
            row = {"question": f"w{i + 3}", "documents": [{"text": document}], "answer": "w5"}
            file.write(json.dumps(row) + "\n")
    words = ["evaluate", str(run.path), "--data", str(long), "--max_new_tokens", "4"]
    ended = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env={**os.environ}, timeout=300
    )
    assert ended.returncode == 2, ended.stderr
    assert "samples.jsonl cannot be written: File too large" in ended.stderr
    assert "finished are kept" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (run.path / "results.json").exists()
    assert not list(run.path.glob(".*.tmp"))
    again = subprocess.run(
        [sys.executable, "-m", "selfaug", *words], capture_output=True, text=True, env={**os.environ}, timeout=300
    )
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("finished before") == 2
    assert read_results(run.path / "results.json")["parts"]["task"]["items"] == 12


def test_the_whole_model_of_a_run_without_adapter(tmp_path: Path, model: Path, data: Path) -> None:
    whole = finished_run(tmp_path / "whole", model, full=True)
    assert evaluate(whole, "--data", data) == 0
    results = read_results(whole.path / "results.json")
    assert results["run"]["kind"] == "model"
    nll = results["parts"]["task"]["metrics"]["answer_nll"]
    assert nll["base"]["value"] != nll["tuned"]["value"]


def test_a_users_forms_of_abstention_are_counted(
    run: RunFolder, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(run, "--data", data) == 0
    before = read_results(run.path / "results.json")["parts"]["task"]["counts"]["abstained"]
    said = [sample["tuned"]["response"] for sample in read_samples(run.path / "samples.jsonl", "task")]
    first = next(response.split()[0] for response in said if response)
    forms = tmp_path / "forms.yaml"
    forms.write_text(json.dumps({"en": [first]}), encoding="utf-8")
    assert evaluate(run, "--data", data, "--abstentions", forms) == 0
    after = read_results(run.path / "results.json")["parts"]["task"]["counts"]["abstained"]
    assert before["tuned"] < after["tuned"]
    settings = read_results(run.path / "results.json")["parts"]["task"]["settings"]
    assert settings["abstentions"]["path"].endswith("forms.yaml")
    forms.write_text("en: {hole: [x]}", encoding="utf-8")
    capsys.readouterr()
    assert evaluate(run, "--data", data, "--abstentions", forms) == 2
    out, err = capsys.readouterr()
    assert (out, "Did you mean 'whole'" in " ".join(err.split())) == ("", True)
