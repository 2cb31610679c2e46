"""Does `selfaug train` let the base write, keep it through failures, and refuse models that cannot?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chatting import save_chat_model
from tests.server import Server, completed

from .conftest import TRAIN, Cli, records, write_rows


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def words(model: Path, data: Path, run: Path, *more: Any) -> list[str]:
    given = ["--model_name_or_path", model, "--dataset_name", data, "--output_dir", run, "--max_steps", 2, *TRAIN]
    return ["train", *map(str, [*given, *more])]


def test_an_endpoint_that_fails_in_the_middle_loses_nothing(
    cli: Cli, chat: Path, tmp_path: Path, server: Server
) -> None:
    """36 records: 36 rewrites, 32 of them on their way at a time; then 4 conversations of two texts each."""
    data, run = write_rows(tmp_path / "records.jsonl", records(36)), tmp_path / "run"
    broken = True

    def reply(body: dict[str, Any], n: int) -> tuple[int, bytes]:
        if broken and n > 32:
            return 400, b"no more credit"
        if "prompt" in body:
            return 200, completed(f"say {body['seed']}", chat=False)
        asked = body["messages"][-1]["content"]
        if "reference answer" not in asked:
            return 200, completed("words")
        number = asked.partition("reference answer: ")[2].partition(" ")[0]
        return 200, completed(f"He found {number} red balls." if int(number) % 2 else "He found a hat.")

    server.reply = reply
    flags = ["--method", "sdft+magpie", "--generation_url", server.url, "--generation_model", "base"]
    failed = cli(*words(chat, data, run, *flags), env={"OPENAI_API_KEY": "k-secret"})
    assert failed.code == 2
    assert "no more credit" in failed.err
    samples = run / "checkpoints" / "generated" / "samples-0.jsonl"
    assert len(samples.read_text().splitlines()) == 32
    broken = False
    asked = len(server.asked)
    done = cli(*words(chat, data, run, *flags), env={"OPENAI_API_KEY": "k-secret"})
    assert done.code == 0, done.err
    assert len(server.asked) == asked + 4 + 8
    assert "sdft: 18 rewritten, 18 refused disagreeing" in done.err
    assert "magpie: 4 kept" in done.err
    found = json.loads((samples.parent / "counts.json").read_text())
    assert found == {"sdft": {"rewritten": 18, "kept": 0, "refused_disagreeing": 18}, "magpie": {"kept": 4}}
    assert server.headers[0]["Authorization"] == "Bearer k-secret"
    everything = "".join(
        path.read_text(errors="replace") for path in run.rglob("*") if path.suffix in (".yaml", ".json", ".jsonl")
    )
    assert "k-secret" not in everything
    assert yaml.safe_load((run / "config.yaml").read_text())["generation_model"] == "base"
    assert (run / "adapter" / "adapter_model.safetensors").is_file()


def test_the_loaded_model_writes(cli: Cli, chat: Path, tmp_path: Path) -> None:
    data, run = write_rows(tmp_path / "records.jsonl", records(9)), tmp_path / "run"
    flags = ["--method", "selfaug+magpie", "--generation_length", 32, "--alpha", 0.5]
    done = cli(*words(chat, data, run, *flags))
    assert done.code == 0, done.err
    assert json.loads((run / "checkpoints" / "generated" / "counts.json").read_text())["magpie"]["kept"] == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--method", "magpie"], "method='magpie' lets the model write"),
        (["--method", "selfaug+sdft"], "method='sdft' lets the model write"),
        (["--method", "sa-sft"], "no chat template"),
        (["--method", "magpie+replay"], "decide which rows are mixed in"),
        (["--method", "magpie+sa-sft"], "decide which rows are mixed in"),
        (
            ["--method", "sft", "--generation_url", "http://x/v1", "--generation_model", "m"],
            "generation_url has no effect",
        ),
        (["--method", "magpie", "--generation_url", "http://x/v1"], "belong together"),
        (["--method", "magpie", "--generation_url", "localhost", "--generation_model", "m"], "no http address"),
        (["--method", "magpie", "--generation_length", "0"], "leaves nothing to be written"),
        (["--method", "magpie", "--method_options", "magpie_temperature=-1"], "out of range"),
        (["--method", "sdft", "--method_options", "rewrite_agreement=-1"], "out of range"),
        (["--method", "selfaug+magpie", "--reference_cache", "cache"], "as they were"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(
    flags: list[str], said: str, cli: Cli, model: Path, data: Path, tmp_path: Path
) -> None:
    result = cli(*words(model, data, tmp_path / "run", *flags))
    assert result.code == 2
    assert said in result.err
    assert not (tmp_path / "run").exists()


def test_a_template_that_opens_no_turn_and_rows_without_words_are_refused(
    cli: Cli, chat: Path, data: Path, tmp_path: Path
) -> None:
    template = tmp_path / "bare.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}")
    result = cli(*words(chat, data, tmp_path / "run", "--method", "magpie", "--chat_template_path", template))
    assert result.code == 2
    assert "writes nothing before a user's words" in result.err
    pairs = write_rows(tmp_path / "pairs.jsonl", [{"prompt": "Who?", "completion": " I"}] * 8)
    result = cli(*words(chat, pairs, tmp_path / "run", "--method", "sdft"))
    assert result.code == 2
    assert "format of trl's own" in result.err
    assert not (tmp_path / "run").exists()
