from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfaug.cli import merge
from selfaug.cli.config import read
from selfaug.common.errors import ConfigError, DataError
from selfaug.data.prompts import Renderer
from selfaug.data.record import Document, Record
from selfaug.run.folder import RunFolder
from selfaug.run.models import Sides, check_origin

from .conftest import ENVIRONMENT, Cli, Result

Run = tuple[Path, Result]
QUESTION = "What did Tom find on day 3?"


def load(run: Path, model: Path) -> tuple[Any, Any]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    return PeftModel.from_pretrained(base, str(run / "adapter")).eval(), tokenizer


def test_the_merged_model_computes_what_base_and_adapter_do(
    cli: Cli, trained: Run, model: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    out = tmp_path / "merged"
    result = cli("merge", trained[0], "--output_dir", out)
    assert result.code == 0, result.err
    assert result.out == f"{out}\n"
    assert {"model.safetensors", "tokenizer.json", "selfaug_renderer.json"} <= {path.name for path in out.iterdir()}
    tuned, _ = load(trained[0], model)
    merged = AutoModelForCausalLM.from_pretrained(out)
    ids = torch.tensor([[5, 9, 33, 21, 8]])
    with torch.no_grad():
        wanted, got = tuned(input_ids=ids).logits, merged(input_ids=ids).logits
        with tuned.disable_adapter():
            base = tuned(input_ids=ids).logits
    assert (base - wanted).abs().max() > 0.05 * base.std()
    assert (got - wanted).abs().max() < 1e-4 * base.std()
    assert "12 of 12 greedy answers are the adapter's" in result.err  # the run's own rows
    assert Renderer.load(out) == Renderer.load(trained[0] / "adapter")


def test_the_number_format_is_the_one_asked_for(cli: Cli, trained: Run, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    # By the weights alone: on so small a model, rounding the base to bfloat16 outweighs six steps of training.
    words = ["--dtype", "bfloat16", "--prompts", "0"]
    result = cli("merge", trained[0], "--output_dir", tmp_path / "merged", *words)
    assert result.code == 0, result.err
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").dtype == torch.bfloat16
    again = cli("merge", trained[0], "--output_dir", tmp_path / "merged", "--overwrite_output_dir")
    assert again.code == 0, again.err
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").dtype == torch.float32


def test_a_merge_that_changes_the_logits_saves_nothing(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora import LoraModel

    # The planted error: the adapter is dropped and not folded.
    monkeypatch.setattr(LoraModel, "merge_and_unload", lambda self, **_: self.unload())
    out = tmp_path / "merged"
    with pytest.raises(ConfigError, match="nothing was saved"):
        merge.run(read(merge.COMMAND, [str(trained[0]), "--output_dir", str(out)]))
    assert list(tmp_path.iterdir()) == []


def test_the_snippet_of_the_page_answers_the_trained_prompt(trained: Run, model: Path) -> None:
    import torch

    page = (Path(__file__).resolve().parents[2] / "docs/serving.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.S)
    known: dict[str, Any] = {}
    exec(snippet, known)
    documents = [{"title": "Tom", "text": "Tom found 3 red balls."}, {"text": "</s> The cat sleeps."}]
    tuned, tokenizer = load(trained[0], model)
    record = Record(QUESTION, (Document("Tom found 3 red balls.", "Tom"), Document("</s> The cat sleeps.")), ("-",))
    ids = torch.tensor([Renderer.load(trained[0] / "adapter").prompt_ids(tokenizer, record)])
    made = tuned.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=128, do_sample=False
    )[0, ids.shape[1] :]  # fmt: skip
    wanted = tokenizer.decode(made, skip_special_tokens=True)
    assert wanted
    assert known["answer"](trained[0] / "adapter", QUESTION, documents) == wanted
    assert known["answer"](trained[0] / "adapter", QUESTION, documents[:1]) != wanted  # the documents matter


def run_on(trained: Run, model: Path, folder: Path) -> Path:
    """A copy of the run whose base is ``model``."""
    run = folder / "run"
    shutil.copytree(trained[0], run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"model_name_or_path": str(model)}))
    return run


def test_a_quantised_base_is_refused_by_name(cli: Cli, trained: Run, model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "quantised"
    shutil.copytree(model, copy)
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (copy / "config.json").write_text(json.dumps(config))
    result = cli("merge", run_on(trained, copy, tmp_path), "--output_dir", tmp_path / "out")
    assert result.code == 2
    assert "quantised (gptq)" in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "out").exists()


def test_mistakes_of_merge(cli: Cli, trained: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("mine")
    gone = run_on(trained, tmp_path / "gone", tmp_path)
    cases = [
        (["merge", tmp_path / "nowhere", "--output_dir", tmp_path / "out"], "does not exist"),
        (["merge", model, "--output_dir", tmp_path / "out"], "not a run folder"),
        (["merge", trained[0], "--output_dir", tmp_path / "full"], "not empty"),
        (["merge", trained[0], "--output_dir", tmp_path / "full", "--overwrite_output_dir"], "would be lost"),
        (["merge", trained[0], "--output_dir", trained[0] / "adapter", "--overwrite_output_dir"], "would be lost"),
        (["merge", trained[0], "--output_dir", trained[0]], "the run itself"),
        (["merge", trained[0], "--output_dir", trained[0].parent, "--overwrite_output_dir"], "the run itself"),
        (["merge", trained[0]], "--output_dir"),
        (["merge", trained[0], "--output_dir", tmp_path / "out", "--prompts", "-1"], "--prompts"),
        (["merge", gone, "--output_dir", tmp_path / "out"], "does not exist"),
    ]
    for words, says in cases:
        result = cli(*words)
        assert result.code == 2, (words, result.err)
        assert says in result.err
        assert "hint: " in result.err
        assert "Traceback" not in result.err
    assert (tmp_path / "full" / "a").read_text() == "mine"
    assert not (tmp_path / "out").exists()


def test_too_little_space_is_said_before_anything_is_loaded(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(ConfigError, match="GiB free"):
        merge._check_space(tmp_path / "a" / "b", model, "float32")


def greedy(run: Path, model: Path, *, adapter: bool, documents: tuple[Document, ...] = ()) -> str:
    """The expected answer, from transformers and peft alone but for the prompt."""
    import torch

    tuned, tokenizer = load(run, model)
    ids = Renderer.load(run / "adapter").prompt_ids(tokenizer, Record(QUESTION, documents, ("-",)))
    chosen = tuned if adapter else tuned.unload()
    with torch.no_grad():
        out = chosen.generate(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=12, do_sample=False
        )
    return tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)


def shown(text: str) -> str:
    return "".join(char for char in text if char in "\t\n" or char.isprintable())


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "Tom.txt").write_text("On day 3 Tom found 3 red balls in the park.")
    (folder / "Anna.md").write_text("Anna sails on the lake.")
    return folder


def test_one_question_gets_the_tuned_and_the_base_answer(cli: Cli, trained: Run, model: Path) -> None:
    tuned, base = (shown(greedy(trained[0], model, adapter=adapter)) for adapter in (True, False))
    assert tuned.strip() != base.strip()
    ask = ["chat", trained[0], "--question", QUESTION, "--max_new_tokens", 12]
    for flags, expected in (([], tuned), (["--untuned"], base), (["--base"], base)):
        result = cli(*ask, *flags)
        assert result.code == 0, result.err
        assert shown(result.out).strip() == expected.strip()
    both = cli(*ask, "--compare").out
    before, after = both.split("[tuned]\n")
    assert shown(before.removeprefix("[base]\n")).strip() == base.strip()
    assert shown(after).strip() == tuned.strip()


def test_documents_are_retrieved_into_the_trained_prompt(cli: Cli, trained: Run, model: Path, documents: Path) -> None:
    ask = ["--question", QUESTION, "--max_new_tokens", 12, "--documents", documents, "--top_k", 1]
    result = cli("chat", trained[0], *ask)
    assert result.code == 0, result.err
    found = Document("On day 3 Tom found 3 red balls in the park.", "Tom")
    expected = shown(greedy(trained[0], model, adapter=True, documents=(found,))).strip()
    assert expected != shown(greedy(trained[0], model, adapter=True)).strip()
    assert shown(result.out).strip() == expected


@pytest.mark.nightly
def test_a_conversation_reads_lines_and_commands(trained: Run, documents: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "selfaug",
            "chat",
            str(trained[0]),
            "--documents",
            str(documents),
            "--max_new_tokens",
            "4",
        ],
        input=f"{QUESTION}\n/documents\n/reset\n/what\n\n/quit\n{QUESTION}\n",
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "On day 3 Tom found" in done.stderr
    assert done.stderr.count("/quit ends") == 2
    assert "Traceback" not in done.stderr


def test_mistakes_of_chat(cli: Cli, trained: Run, tmp_path: Path) -> None:
    cases = [
        (["chat", tmp_path / "nowhere"], "does not exist"),
        (["chat", trained[0], "--question", " "], "--question is empty"),
        (["chat", trained[0], "--question", "a", "--documents", tmp_path / "none"], "documents"),
        (["chat", trained[0], "--question", "a", "--top_k", "0"], "--top_k"),
        (["chat", trained[0], "--question", "a", "--temperature", "-1"], "--temperature"),
        (["chat", trained[0], "--question", "a", "--base", "--compare"], "--compare"),
        (["chat", trained[0], "--question", "a", "--untuned", "--compare"], "--compare"),
        (["chat", trained[0], "--question", "word " * 999], "context"),
    ]
    for words, says in cases:
        result = cli(*words)
        assert result.code == 2, (words, result.err)
        assert says in result.err
        assert "Traceback" not in result.err


def chat_session(run: Path, **options: Any) -> Any:
    """A session whose tokenizer has a chat template."""
    from transformers import AutoTokenizer

    from selfaug.cli.session import Session

    sides = Sides(check_origin(RunFolder.open(run)))
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant: {% endif %}"
    )
    return Session(sides, tokenizer, Renderer.for_tokenizer(tokenizer), None, **options)


def test_what_was_said_stands_before_the_question_until_there_is_no_room(trained: Run) -> None:
    session = chat_session(trained[0], max_new_tokens=20)
    first = session.tokenizer.decode(session.ask("Who?"))
    session.remember("Who?", "Tom")
    second = session.tokenizer.decode(session.ask("Where?"))
    assert "user: Question: Who?" in first
    assert second.index("user: Who?") < second.index("assistant: Tom") < second.index("user: Question: Where?")
    assert second.count("system:") == 1
    session.remember("Where?", "word " * 150)
    assert len(session.ask("When?")) <= 256 - 20
    assert "Tom" not in session.tokenizer.decode(session.ask("When?"))
    session.forget()
    assert session.tokenizer.decode(session.ask("Who?")) == first
    with pytest.raises(DataError, match="context"):
        session.ask("word " * 300)


def test_control_characters_do_not_reach_the_terminal() -> None:
    from selfaug.cli.session import printable

    assert printable("a\x1b[31mb\x07\x9b\tc\nd\re ü") == "a[31mb\tc\nde ü"
