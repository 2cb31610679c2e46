"""`selfaug scale`: does it write the adapter it says, keep what is finished, and refuse what it cannot scale?"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfaug.cli.main import main
from selfaug.common.weights import model_hash
from selfaug.evaluation.general_part import TextPart
from selfaug.evaluation.task_part import TaskPart
from selfaug.model.base import Base
from tests.models import perturb_adapter, save_tiny
from tests.runs import finished_run

IDS = torch.tensor([[5, 9, 33, 21, 8, 60]])
PROMPT = """{"mode": "plain", "system": "", "abstention": "w96"}"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """Records, and texts that the base itself wrote: whatever moves it makes them less likely."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for i in range(16):
        text = " ".join(f"w{3 + (i * 7 + j) % 90}" for j in range(12))
        rows.append(
            {"id": f"q{i}", "question": f"w{i + 3} w{i + 4}", "documents": [{"text": text}], "answer": f"w{i + 5}"}
        )
    base, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    begun = torch.tensor([[3 + i, 90 - i] for i in range(24)])
    whole = base.generate(input_ids=begun, attention_mask=torch.ones_like(begun), min_new_tokens=30, max_new_tokens=30)
    texts = [{"text": text} for text in tokenizer.batch_decode(whole, skip_special_tokens=True)]
    for name, lines in (("rows", rows), ("texts", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def adapter(tmp_path: Path, model: Path) -> Path:
    """Two files of PEFT, of random weights that any text is less likely under."""
    made = finished_run(tmp_path / "run", model, perturb=0.3)
    folder = tmp_path / "checkpoint-4"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(made.adapter / name, folder)
    return folder


def words(adapter: Path, model: Path, data: Path, *more: object) -> list[str]:
    given = [
        "scale", adapter, "--model_name_or_path", model, "--prompt", PROMPT, "--max_new_tokens", 2,
        "--data", data / "rows.jsonl", "--general_data", data / "texts.jsonl", "--score", "task:answer_nll",
        "--scales", "1", "0.5", "0.25", "0.1", "--looks", 2, *more,
    ]  # fmt: skip
    return [str(word) for word in given]


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def tried(folder: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((folder / "scale.json").read_text())
    return body


def counted(monkeypatch: pytest.MonkeyPatch, fail_after: int | None = None) -> list[str]:
    """What the model computes from here on; the call after ``fail_after`` is interrupted."""
    calls: list[str] = []

    def watched(own: Callable[..., Any]) -> Callable[..., Any]:
        def compute(part: Any, side: str, *rest: Any) -> Any:
            if len(calls) == fail_after:
                raise KeyboardInterrupt
            calls.append(f"{part.name} {side}")
            return own(part, side, *rest)

        return compute

    for kind in (TaskPart, TextPart):
        monkeypatch.setattr(kind, "compute", watched(kind.compute))
    return calls


def test_the_written_adapter_is_the_base_plus_the_factors_times_the_update(
    adapter: Path, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Base(str(model), None, model_hash(str(model)))
    kept.write(adapter)
    assert main(words(adapter, model, data, "--max_drop", "text:texts=2.4", "--knobs", "uniform")) == 0
    said = capsys.readouterr()
    out, body = tmp_path / "scaled-checkpoint-4", tried(tmp_path / "measured-checkpoint-4")
    assert str(out) in said.err
    assert "at most" in said.err
    assert body["exit_code"] == 0
    first, last = body["tried"][0], body["tried"][-1]
    assert (first["scale"], first["verdict"], first["half"]) == (1, "fail", "choosing")
    assert (last["verdict"], last["half"], last["label"]) == ("pass", "confirming", body["chosen"])
    factor = last["scale"]
    assert 0 < factor < 1
    assert tried(out)["chosen"] == body["chosen"]
    assert Base.read(out) == kept, "another base is still refused"
    base = AutoModelForCausalLM.from_pretrained(model).eval()
    before = logits(base)
    config = json.loads((adapter / "adapter_config.json").read_text())
    weights = load_file(adapter / "adapter_model.safetensors")
    for name in [name for name in weights if ".lora_A." in name]:
        layer = base.get_submodule(name.removeprefix("base_model.model.").partition(".lora_")[0])
        A, B = weights[name], weights[name.replace(".lora_A.", ".lora_B.")]
        with torch.no_grad():
            layer.weight += factor * config["lora_alpha"] / config["r"] * B @ A
    wanted = logits(base)
    assert (wanted - before).abs().max() > 0.01
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(out)).eval()
    torch.testing.assert_close(logits(loaded), wanted, rtol=0, atol=2e-5)  # float32, sums in another order


def test_an_interrupted_search_repeats_nothing_that_was_finished(
    adapter: Path, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = words(adapter, model, data, "--max_drop", "text:texts=2.4")
    with monkeypatch.context() as patch:
        calls = counted(patch, fail_after=7)
        assert main(line) == 130
    assert len(calls) == 7
    assert not (tmp_path / "scaled-checkpoint-4").exists()
    with monkeypatch.context() as patch:
        later = counted(patch)
        assert main(line) == 0
    found = tried(tmp_path / "measured-checkpoint-4")
    assert {"groups", "tried"} <= found.keys()
    shutil.rmtree(tmp_path / "scaled-checkpoint-4")
    with monkeypatch.context() as patch:
        assert main([*line, "--store", str(tmp_path / "new")]) == 0
        again = counted(patch)
        assert not again
    whole = tried(tmp_path / "measured-checkpoint-4")
    assert len(calls) + len(later) == len(list((tmp_path / "new").glob("t*.json")))
    for body in (found, whole):
        for trial in body["tried"]:
            del trial["seconds"]
    assert found["tried"] == whole["tried"]
    with monkeypatch.context() as patch:  # all is stored, so no measurement is left
        shutil.rmtree(tmp_path / "scaled-checkpoint-4")
        again = counted(patch)
        assert main(line) == 0
        assert again == []


def test_over_a_quantised_base_intruders_are_left_out_unless_they_were_asked_for(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, asked = AutoModelForCausalLM.from_pretrained, []

    def load(*words: Any, quantization_config: Any = None, **options: Any) -> Any:
        asked.append(quantization_config)
        return own(*words, **options)

    monkeypatch.setattr("selfaug.run.models._quantized", lambda config: "4 bits")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    made = finished_run(tmp_path / "run", model, perturb=0.3)
    line = ["scale", str(made.path), "--data", str(data / "rows.jsonl"), "--general_data", str(data / "texts.jsonl"),
            "--score", "task:answer_nll", "--max_new_tokens", "2", "--max_drop", "text:texts=2.4"]  # fmt: skip
    assert main([*line, "--knobs", "uniform", "intruders"]) == 2
    assert "pass --knobs uniform groups" in capsys.readouterr().err
    assert asked.count("4 bits") == 0
    assert main(line) == 0
    assert asked.count("4 bits") == 1
    body = tried(made.path)
    assert "groups" in body
    assert all(one["intruders"] == 1 for one in body["tried"])


def test_a_base_that_is_stored_quantised_is_seen(
    adapter: Path, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = tmp_path / "quantised"
    shutil.copytree(model, stored)
    config = json.loads((stored / "config.json").read_text())
    (stored / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    assert main(words(adapter, stored, data, "--max_drop", "general=1", "--knobs", "uniform", "intruders")) == 2
    assert "the base is quantised, and intruder directions are found in its weights" in capsys.readouterr().err


def test_where_no_scale_keeps_the_limits_nothing_is_written_and_the_code_is_the_gates(
    adapter: Path, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = words(adapter, model, data, "--max_drop", "text:texts=2.4", "--knobs", "uniform")
    assert main([*line, "--min_gain", "task:answer_nll=50"]) == 1
    assert "no scale keeps the limits" in capsys.readouterr().err
    assert tried(tmp_path / "measured-checkpoint-4")["chosen"] is None
    assert not (tmp_path / "scaled-checkpoint-4").exists()
    few = [*line, "--limit", "4", "--general_limit", "4", "--min_gain", "task:answer_nll=0"]
    assert main(few) == 3
    assert "surely" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"use_dora": True}, "use_dora: DoRA also trains the length"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: these modules are trained whole"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices: these embeddings are trained whole"),
        ({"bias": "all"}, "rewrote or trained weights of its base"),
        ({"target_modules": ["q_proj", "lm_head"]}, "changes the output projection"),
    ],
)
def test_what_no_factor_leads_back_from_is_refused_before_a_model_is_loaded(
    lora: dict[str, Any], said: str, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    settings = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **lora}
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(**settings))
    perturb_adapter(tuned)
    tuned.save_pretrained(str(tmp_path / "adapter"))
    loaded = []
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: loaded.append(1))
    assert main(words(tmp_path / "adapter", model, data, "--max_drop", "general=1")) == 2
    assert said in capsys.readouterr().err
    assert not loaded


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "no limit is given"),
        (["--max_drop", "general"], "does not say what may change by how much"),
        (["--max_drop", "general=lots"], "'lots' is no limit"),
        (["--max_drop", "text:textes=0.1"], "Did you mean 'text:texts'"),
        (["--max_drop", "general=1", "--score", "taks"], "--score taks: nothing that is measured"),
        (["--max_drop", "general=1", "--scales", "1.5"], "1.5 is out of range"),
        (["--max_drop", "general=1", "--looks", "9"], "looks is 9"),
        (["--max_drop", "general=1", "--knobs", "groups"], "begin at the best uniform scale"),
        (["--max_drop", "general=1", "--knobs", "uniform", "group"], "Did you mean 'groups'"),
        (["--max_drop", "general=1", "--no_task"], "nothing to keep the most of"),
        (["--max_drop", "general=1", "--limit", "1"], "task has 1 item of task"),
        (["--max_drop", "general=1", "--output_dir", "checkpoint-4"], "holds the adapter that is scaled"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_before_a_model_is_loaded(
    more: list[str], said: str, adapter: Path, model: Path, data: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    loaded = []
    monkeypatch.chdir(adapter.parent)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: loaded.append(1))
    assert main(words(adapter, model, data, *more)) == 2
    assert said in capsys.readouterr().err
    assert not loaded


def test_what_is_no_lora_is_refused(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--max_drop", "general=1"]
    assert main(words(model, model, data, *line)) == 2  # a whole model
    assert "is not a run folder" in capsys.readouterr().err
    made = finished_run(tmp_path / "whole", model, full=True)
    general = ["--general_data", str(data / "texts.jsonl"), "--data", str(data / "rows.jsonl")]
    assert main(["scale", str(made.path), *line, *general]) == 2
    assert "only the update of a LoRA can be scaled" in capsys.readouterr().err
    run = finished_run(tmp_path / "lora", model)
    assert main(["scale", str(run.path), *line, "--data", str(data / "rows.jsonl")]) == 2
    assert "no general ability is measured" in capsys.readouterr().err


@pytest.mark.nightly
def test_a_killed_search_goes_on_where_it_was(adapter: Path, model: Path, data: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "selfaug", *words(adapter, model, data, "--max_drop", "text:texts=2.4")]
    store = tmp_path / "measured-checkpoint-4" / "evaluation"
    with subprocess.Popen(line, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while len(list(store.glob("t*.json"))) < 6 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    kept = {path.name: path.stat().st_mtime_ns for path in store.glob("t*.json")}
    assert len(kept) >= 6
    assert not (tmp_path / "scaled-checkpoint-4").exists()
    assert subprocess.run(line, check=False).returncode == 0
    assert (tmp_path / "scaled-checkpoint-4" / "adapter_model.safetensors").is_file()
    after = {path.name: path.stat().st_mtime_ns for path in store.glob("t*.json")}
    assert len(after) > len(kept)
    assert {name: after[name] for name in kept} == kept
