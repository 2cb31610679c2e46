"""Are adapters that any trainer wrote measured as what they are, without a run folder, or refused by name?"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from selfaug.cli.main import main
from selfaug.cli.subject import Subject, opened
from selfaug.common.errors import ConfigError
from selfaug.evaluation.results import read_results, read_samples
from selfaug.model.base import Base
from selfaug.run.folder import RunFolder
from selfaug.run.models import Sides, check_origin
from tests.models import save_tiny, tiny
from tests.runs import finished_run

PROMPT = """{"mode": "plain", "system": "", "abstention": "w96"}"""
IDS = torch.tensor([[5, 9, 33, 21, 8, 60]])
CHAT = "{% for m in messages %}{{ m['content'] }} w4 {% endfor %}{{ 'w5' if add_generation_prompt else '' }}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, model: Path) -> RunFolder:
    return finished_run(tmp_path_factory.mktemp("runs") / "made", model)


@pytest.fixture
def adapter(tmp_path: Path, made: RunFolder) -> Path:
    """An adapter as plain PEFT saves it: two files and nothing of ours."""
    folder = tmp_path / "adapters" / "checkpoint-4"
    folder.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(made.adapter / name, folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = []
    for i in range(8):
        text = " ".join(f"w{3 + (i * 7 + j) % 90}" for j in range(30))
        rows.append({"id": f"q{i}", "question": f"w{i + 3} w{i + 4}", "documents": [{"text": text}]})
        rows[-1] |= {"answerable": False} if i % 4 == 3 else {"answer": f"w{i + 5} w{i + 9}"}
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def evaluate(*words: object) -> int:
    return main(["evaluate", "--max_new_tokens", "6", *map(str, words)])


def figures(path: Path) -> Any:
    results = read_results(path / "results.json")
    lines = [{side: line[side] for side in ("base", "tuned")} for line in read_samples(path / "samples.jsonl")]
    return {name: part["metrics"] for name, part in results["parts"].items()}, lines


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def changed(model: PeftModel, folder: Path) -> Path:
    """Random values into every weight that the adapter trains, saved as PEFT saves them."""
    generator = torch.Generator().manual_seed(3)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(folder))
    return folder


def sides_of(folder: Path, model: Path) -> Sides:
    return Sides(check_origin(opened(Subject(adapter=str(folder), model_name_or_path=str(model)))), together=True)


# --- the same figures ------------------------------------------------------------------------------------------------


def test_a_run_and_its_bare_adapter_give_the_same_figures(
    made: RunFolder, adapter: Path, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(made.path, run)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{3 + 5 * i % 90}" for i in range(120)), encoding="utf-8")
    before = files_of(adapter)
    assert evaluate(run, "--data", data, "--general_data", text) == 0
    named = ("--adapter", adapter, "--model_name_or_path", model, "--renderer", made.adapter)
    assert evaluate(*named, "--data", data, "--general_data", text) == 0
    out = adapter.parent / "measured-checkpoint-4"
    assert figures(out) == figures(run)
    assert figures(out)[0]["task"]["answer_nll"]["difference"]["value"] != 0
    shift = ["--dataset_name", str(data), "--layers", "false"]
    assert main(["shift", str(run), *shift]) == 0
    assert main(["shift", *map(str, named), *shift]) == 0
    tables = [json.loads((folder / "shift.json").read_text()) for folder in (run, out)]
    assert tables[0]["checkpoints"][0]["regions"] == tables[1]["checkpoints"][0]["regions"]
    assert tables[0]["checkpoints"][0]["regions"]["documents"]["base_to_tuned"]["value"] > 1e-3
    # The adapter's folder, or that of the measurements, is enough from here on.
    capsys.readouterr()
    assert main(["report", str(adapter), "--format", "md"]) == 0
    page = capsys.readouterr().out
    assert "another trainer did it" in page
    assert "log is missing" not in page
    assert "0.0000" not in page.partition("answer\\_nll")[2].partition("\n")[0]
    codes = [main(["gate", str(folder), "--max-drop", "task:answer_nll=100"]) for folder in (run, adapter, out)]
    assert codes == [0, 0, 0]
    assert evaluate(out, "--data", data) == 0
    assert files_of(adapter) == before


def test_the_measurements_of_adapters_of_other_trainers_are_those_of_plain_peft(
    adapter: Path, model: Path, data: Path, tmp_path: Path
) -> None:
    assert evaluate("--adapter", adapter, "--model_name_or_path", model, "--data", data, "--prompt", PROMPT) == 0
    found = {line["id"]: line for line in read_samples(adapter.parent / "measured-checkpoint-4" / "samples.jsonl")}
    tokenizer = AutoTokenizer.from_pretrained(model)
    base = AutoModelForCausalLM.from_pretrained(model).eval()
    wanted: dict[str, dict[str, list[float]]] = {}
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for side in ("base", "tuned"):
        own = base if side == "base" else PeftModel.from_pretrained(base, str(adapter)).eval()
        for row in rows:
            prompt = f"Document 1\n{row['documents'][0]['text']}\n\nQuestion: {row['question']}\nAnswer:"
            answer = [*tokenizer(row.get("answer", "w96"))["input_ids"], tokenizer.eos_token_id]
            ids = torch.tensor([tokenizer(prompt)["input_ids"] + answer])
            with torch.no_grad():
                logs = own(input_ids=ids).logits[0].log_softmax(-1)
            place = ids.shape[1] - len(answer)
            nll = -sum(float(logs[place + i - 1, token]) for i, token in enumerate(answer))
            wanted.setdefault(row["id"], {})[side] = [nll, len(answer)]
    assert len(wanted) == len(found) == len(rows)
    for name, both in wanted.items():
        for side, (nll, count) in both.items():
            value = found[name][side]["values"]["answer_nll"]
            assert value[1] == count
            assert value[0] == pytest.approx(nll, rel=1e-4)


@pytest.mark.shared
@pytest.mark.nightly
def test_adapters_of_plain_trainer_and_of_trl_are_measured(tmp_path: Path, shared: Path) -> None:
    model = shared / "models" / "stories260k"
    rows = [
        {"id": f"r{n}", "question": f"What did Tom find on day {n}?", "answer": f"{n} red balls",
         "documents": [{"text": f"On day {n} Tom found {n} red balls in the park."}]}
        for n in range(12)
    ]  # fmt: skip
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    program = Path(__file__).parents[1] / "other_trainers.py"
    made = subprocess.run(
        [sys.executable, str(program), str(model), str(data), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr[-3000:]
    text = "Once upon a time there was a little girl who found a red ball in the park."
    (tmp_path / "story.txt").write_text(text)
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    for folder in (tmp_path / "trainer" / "checkpoint-4", tmp_path / "trl"):
        assert not list(folder.glob("selfaug*"))
        words = ("--data", data, "--prompt", PROMPT, "--general_data", tmp_path / "story.txt")
        assert evaluate("--adapter", folder, *words) == 0  # the base is the one in adapter_config.json
        out = folder.parent / f"measured-{folder.name}"
        metrics = figures(out)[0]
        assert metrics["task"]["answer_nll"]["difference"]["interval"][1] < 0
        base = AutoModelForCausalLM.from_pretrained(model).eval()
        for side in ("base", "tuned"):
            own = base if side == "base" else PeftModel.from_pretrained(base, str(folder)).eval()
            with torch.no_grad():
                nll = float(own(input_ids=ids, labels=ids).loss)
            assert metrics["text:story"]["nll"][side]["value"] == pytest.approx(nll, rel=1e-4)
        assert metrics["text:story"]["nll"]["difference"]["value"] != 0


# --- every kind of adapter -------------------------------------------------------------------------------------------

LORA = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}
KINDS: dict[str, Any] = {
    "dora": peft.LoraConfig(r=4, use_dora=True, **LORA),
    "biased": peft.LoraConfig(r=4, bias="lora_only", **LORA),
    "head and embedding saved": peft.LoraConfig(r=4, modules_to_save=["lm_head", "embed_tokens"], **LORA),
    "head adapted": peft.LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj", "lm_head"]),
    "embedding adapted": peft.LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj", "embed_tokens"]),
    "tokens": peft.LoraConfig(r=4, trainable_token_indices={"embed_tokens": [5, 33]}, **LORA),
    "pissa": peft.LoraConfig(r=4, init_lora_weights="pissa", **LORA),
    "replicated": peft.LoraConfig(r=4, layer_replication=[[0, 2], [1, 2]], **LORA),
    "ia3": peft.IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"],
                          feedforward_modules=["down_proj"]),
    "loha": peft.LoHaConfig(r=4, **LORA),
    "lokr": peft.LoKrConfig(r=4, **LORA),
    "vera": peft.VeraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj", "o_proj"]),
    "oft": peft.OFTConfig(oft_block_size=4, **LORA),
    "norms": peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm", "norm"]),
}  # fmt: skip


USUAL = ("dora", "biased", "head and embedding saved", "pissa", "ia3")


@pytest.mark.parametrize(
    "kind", [kind if kind in USUAL else pytest.param(kind, marks=pytest.mark.nightly) for kind in KINDS]
)
def test_both_sides_are_base_and_tuned_model_for_every_kind_of_adapter(kind: str, model: Path, tmp_path: Path) -> None:
    base = logits(AutoModelForCausalLM.from_pretrained(model).eval())
    torch.manual_seed(0)
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(model), KINDS[kind])
    folder = changed(tuned, tmp_path / "adapter")
    wanted = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(folder)).eval())
    assert (base - wanted).abs().max() > 1e-3
    sides = sides_of(folder, model)
    for name, expected in (("tuned", wanted), ("base", base), ("tuned", wanted)):
        with sides.side(name) as side:
            torch.testing.assert_close(logits(side), expected, rtol=0, atol=1e-5)


VIRTUAL = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (peft.PromptTuningConfig(**VIRTUAL), "peft_type PROMPT_TUNING: it adds virtual tokens"),
        (peft.PrefixTuningConfig(**VIRTUAL), "peft_type PREFIX_TUNING: it adds virtual tokens"),
        (peft.LoraConfig(r=4, alora_invocation_tokens=[5], **LORA), "aLoRA"),
    ],
)
def test_adapters_that_are_more_than_layers_are_refused_by_name(
    config: Any, said: str, model: Path, tmp_path: Path
) -> None:
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(ConfigError, match="--tuned_model") as refused:
        sides_of(tmp_path / "adapter", model)
    assert said in refused.value.message


def test_a_switch_that_does_not_give_the_base_back_is_refused(
    adapter: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import contextlib

    sides = sides_of(adapter, model)
    monkeypatch.setattr("selfaug.model.switch.adapters_off", lambda _: contextlib.nullcontext())
    with (
        pytest.raises(ConfigError, match="with the adapter switched off the model is not its base"),
        sides.side("base"),
    ):
        pass


@pytest.mark.nightly
def test_an_adapted_head_is_refused_and_measured_once_it_is_folded(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(model), KINDS["head adapted"])
    folder, merged = changed(tuned, tmp_path / "adapter"), tmp_path / "merged"
    rest = ["--model_name_or_path", str(model), "--prompt", PROMPT]
    for verb, flag in (("evaluate", "--data"), ("shift", "--dataset_name")):
        assert main([verb, "--adapter", str(folder), *rest, flag, str(data)]) == 2
        assert "changes the output projection" in capsys.readouterr().err
    assert main(["merge", "--adapter", str(folder), *rest, "--output_dir", str(merged), "--prompts", "2"]) == 0
    assert main(["shift", "--tuned_model", str(merged), *rest, "--dataset_name", str(data)]) == 0
    found = json.loads((tmp_path / "measured-merged" / "shift.json").read_text())["checkpoints"][0]["totals"]["data"]
    base = AutoModelForCausalLM.from_pretrained(model).eval()
    whole = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(folder)).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    total, count = 0.0, 0
    for row in map(json.loads, data.read_text().splitlines()):
        prompt = f"Document 1\n{row['documents'][0]['text']}\n\nQuestion: {row['question']}\nAnswer:"
        answer = [*tokenizer(row.get("answer", "w96"))["input_ids"], tokenizer.eos_token_id]
        ids = torch.tensor([tokenizer(prompt)["input_ids"] + answer])
        with torch.no_grad():
            p, q = (own(input_ids=ids).logits[0, :-1].log_softmax(-1) for own in (base, whole))
        total, count = total + float((p.exp() * (p - q)).sum()), count + len(p)
    assert found["tokens"] == count
    assert found["base_to_tuned"]["value"] == pytest.approx(total / count, rel=1e-3)


@pytest.mark.nightly
def test_a_wholly_tuned_model_is_measured_beside_its_base(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = finished_run(tmp_path / "run", model, full=True)
    plain = tmp_path / "tuned"
    shutil.copytree(whole.model, plain, ignore=shutil.ignore_patterns("selfaug*"))
    named = ("--tuned_model", plain, "--prompt", PROMPT, "--data", data)
    assert evaluate(*named) == 2
    assert "pass --model_name_or_path BASE" in capsys.readouterr().err
    assert evaluate(*named, "--model_name_or_path", model) == 0
    assert evaluate(whole.path, "--data", data) == 0
    nll = [figures(path)[0]["task"]["answer_nll"] for path in (tmp_path / "measured-tuned", whole.path)]
    assert nll[0] != nll[1]  # the run's own prompt has a system text
    capsys.readouterr()
    assert evaluate(*named[:2], "--model_name_or_path", model, "--renderer", whole.model, "--data", data) == 0
    assert figures(tmp_path / "measured-tuned") == figures(whole.path)
    other = save_tiny(tmp_path / "other", tiny("llama", vocab=101))
    assert evaluate(*named, "--model_name_or_path", other, "--output_dir", tmp_path / "out") == 2
    assert "has 97 tokens and the base" in capsys.readouterr().err


# --- nothing stale, nothing in a cache -------------------------------------------------------------------------------


def test_an_adapter_trained_anew_at_the_same_path_gets_no_old_figures(
    adapter: Path, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = adapter.parent / "measured-checkpoint-4"
    named = ["--adapter", str(adapter), "--model_name_or_path", str(model), "--prompt", PROMPT]
    shift = ["shift", *named, "--dataset_name", str(data), "--layers", "false"]
    assert evaluate(*named, "--data", data) == 0
    assert main(shift) == 0
    first, moved = figures(out), json.loads((out / "shift.json").read_text())["checkpoints"]
    file = adapter / "adapter_model.safetensors"
    save_file({name: 0.5 * tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    capsys.readouterr()
    for folder in (adapter, out):
        assert main(["gate", str(folder), "--max-drop", "task:answer_nll=100"]) == 2
        assert "was measured on other weights" in capsys.readouterr().err
    assert main(["report", str(out), "--format", "md"]) == 0
    said = capsys.readouterr().out
    assert "results.json was measured on other weights" in said
    assert "shift.json was measured on other weights" in said
    assert evaluate(*named, "--data", data) == 0
    assert "task, base: finished before" in capsys.readouterr().err
    assert main(shift) == 0
    now = json.loads((out / "shift.json").read_text())["checkpoints"]
    assert [line["tuned"] for line in figures(out)[1]] != [line["tuned"] for line in first[1]]
    assert [line["base"] for line in figures(out)[1]] == [line["base"] for line in first[1]]
    assert [entry["weights"] for entry in now] != [entry["weights"] for entry in moved]
    assert now[0]["regions"] != moved[0]["regions"]
    assert main(["gate", str(adapter), "--max-drop", "task:answer_nll=100"]) == 0


def test_another_prompt_layout_leaves_nothing_of_the_first(
    adapter: Path, model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    named = ["--adapter", str(adapter), "--model_name_or_path", str(model), "--output_dir", str(out)]
    more = tmp_path / "more.jsonl"
    shutil.copy(data, more)
    assert evaluate(*named, "--prompt", PROMPT, "--data", data, more) == 0
    assert set(figures(out)[0]) == {"task:questions", "task:more"}
    shift = ["--dataset_name", str(data), "--layers", "false", "--limit", "3"]
    assert main(["shift", *named, "--prompt", PROMPT, *shift]) == 0
    first = json.loads((out / "shift.json").read_text())["checkpoints"][0]["totals"]["prompt"]
    other = """{"mode": "plain", "system": "w7 w8 w9", "abstention": "w96"}"""
    assert evaluate(*named, "--prompt", other, "--data", data) == 0
    assert set(figures(out)[0]) == {"task"}
    assert main(["shift", *named, *shift]) == 0  # the layout is remembered
    second = json.loads((out / "shift.json").read_text())["checkpoints"][0]["totals"]["prompt"]
    assert second["tokens"] == first["tokens"] + 3 * 3


def test_measurements_of_several_models_are_not_mixed(
    adapter: Path, model: Path, made: RunFolder, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    rest = ["--prompt", PROMPT, "--data", str(data), "--output_dir", str(out)]
    assert evaluate("--adapter", adapter, "--model_name_or_path", model, *rest) == 0
    second = finished_run(tmp_path / "second", model, seed=9).adapter
    assert evaluate("--adapter", second, "--model_name_or_path", model, *rest) == 2
    assert "holds measurements of another model" in capsys.readouterr().err
    other = save_tiny(tmp_path / "other", tiny("llama", seed=5))
    assert evaluate("--adapter", adapter, "--model_name_or_path", other, *rest) == 2
    assert "holds measurements against another base" in capsys.readouterr().err
    for folder in (made.path, adapter, model):
        assert evaluate("--adapter", adapter, "--model_name_or_path", model, *rest[:-1], folder) == 2
        assert "holds a run, an adapter or a model of its own" in capsys.readouterr().err


def test_hub_names_are_measured_beside_the_working_folder_and_not_in_the_cache(
    adapter: Path, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from huggingface_hub import constants

    cache = tmp_path / "cache"
    repository = cache / "models--me--tuned"
    for revision, commit in (("main", "1" * 40), ("v2", "2" * 40)):
        shutil.copytree(adapter, repository / "snapshots" / commit / "best")
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
    file = repository / "snapshots" / ("2" * 40) / "best" / "adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    before = files_of(cache)
    named = ["--adapter", "me/tuned", "--model_name_or_path", str(model), "--prompt", PROMPT, "--data", str(data)]
    assert evaluate(*named) == 2
    assert "name one of the adapters in it: best" in capsys.readouterr().err
    assert evaluate(*named, "--adapter_subfolder", "best") == 0
    assert evaluate(*named, "--adapter_subfolder", "best", "--adapter_revision", "v2") == 0
    first, second = tmp_path / "measured-me--tuned--best", tmp_path / "measured-me--tuned--best--v2"
    one, two = figures(first)[1], figures(second)[1]
    assert [line["base"] for line in one] == [line["base"] for line in two]
    assert [line["tuned"] for line in one] != [line["tuned"] for line in two]
    snapshot = repository / "snapshots" / ("1" * 40) / "best"
    assert evaluate("--adapter", snapshot, *named[2:]) == 0
    assert figures(tmp_path / f"measured-{'1' * 40}--best")[1] == one
    assert evaluate(*named, "--adapter_subfolder", "best", "--output_dir", snapshot / "out") == 2
    assert "lies in the hub's cache" in capsys.readouterr().err
    assert evaluate(*named, "--adapter_subfolder", "best", "--adapter_revision", "v3") == 2
    assert "is not in the hub's cache" in capsys.readouterr().err
    assert files_of(cache) == before
    # The branch moves: what is there is measured, with nothing of what was there.
    (repository / "refs" / "main").write_text("2" * 40)
    assert evaluate(*named, "--adapter_subfolder", "best") == 0
    assert figures(first) == figures(second)


# --- what must be known is asked for by name -------------------------------------------------------------------------


def test_faults_are_named_before_a_model_is_loaded(
    adapter: Path, made: RunFolder, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(Sides, "_causal", refuse)
    known = ["--model_name_or_path", str(model), "--prompt", PROMPT, "--data", str(data)]

    def said(*words: object) -> str:
        assert evaluate(*words) == 2
        return capsys.readouterr().err

    assert "nothing is named" in said("--data", data)
    assert "run and adapter are both given" in said(made.path, "--adapter", adapter, *known)
    assert "nowhere' does not exist" in said("--adapter", tmp_path / "nowhere", *known)
    assert "name one of the adapters in it: checkpoint-4" in said("--adapter", adapter.parent, *known)
    assert "it looks like a whole model: pass it with --tuned_model" in said("--adapter", model, *known)
    assert "holds an adapter" in said("--tuned_model", adapter, *known)
    assert "how the prompts of" in said("--adapter", adapter, *known[:2], *known[4:])
    assert "which questions" in said("--adapter", adapter, *known[:4])
    assert "lm_head" not in said("--adapter", adapter, *known, "--prompt", '{"mode": "chat"}')
    assert "is given, and" in said(made.path, "--trained_on", data)
    assert "name it with --model_name_or_path" in said("--adapter", adapter, *known[2:], "--base", model)
    config = json.loads((adapter / "adapter_config.json").read_text())
    for name, value, words in (
        ("base_model_name_or_path", None, "names none"),
        ("base_model_name_or_path", "/gone/base", "names /gone/base as its base model, which cannot be used"),
        ("peft_type", "NEXT_YEARS", "cannot be used"),
    ):
        (adapter / "adapter_config.json").write_text(json.dumps({**config, name: value}))
        assert words in said("--adapter", adapter, *known[2:] if name[0] == "b" else known)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    weights = adapter / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:900])
    assert "does not fit the base model" in said("--adapter", adapter, *known)
    weights.unlink()
    assert "has no weights" in said("--adapter", adapter, *known)
    torch.save({}, adapter / "adapter_model.bin")
    assert "reading a pickle can run code" in said("--adapter", adapter, *known)
    assert not list(adapter.parent.glob("measured*"))


@pytest.mark.parametrize("change", [{"num_hidden_layers": 1}, {"num_hidden_layers": 3}, {"hidden_size": 48}])
def test_a_base_of_another_shape_is_refused_before_it_is_loaded(
    change: dict[str, int], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(model), peft.LoraConfig(r=4, **LORA))
    adapter = changed(tuned, tmp_path / "adapter")
    config = AutoConfig.from_pretrained(model)
    config.update(change)
    other = AutoModelForCausalLM.from_config(config)
    folder = save_tiny(tmp_path / "other", other)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if "hidden_size" not in change:
            PeftModel.from_pretrained(other, str(adapter))  # PEFT itself takes what fits, in silence
    monkeypatch.setattr(Sides, "_causal", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match="does not fit the base model"):
        sides_of(adapter, folder)


def test_an_adapter_with_added_tokens_is_refused_against_a_base_without_them(model: Path, tmp_path: Path) -> None:
    grown = AutoModelForCausalLM.from_pretrained(model)
    grown.resize_token_embeddings(101)
    config = peft.LoraConfig(r=4, modules_to_save=["lm_head", "embed_tokens"], **LORA)
    folder = changed(get_peft_model(grown, config), tmp_path / "adapter")
    with pytest.raises(ConfigError, match="does not fit the base model"):
        sides_of(folder, model)


def test_another_base_of_the_same_shape_is_refused_by_the_hash_beside_the_adapter(
    adapter: Path, model: Path, tmp_path: Path
) -> None:
    moved, other = tmp_path / "moved", tmp_path / "other"
    shutil.copytree(model, moved)
    shutil.copytree(model, other)
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    named = {"adapter": str(adapter), "prompt": PROMPT}
    opened(Subject(**named, model_name_or_path=str(other)))  # without the file nothing says which base it was
    Base.of(AutoModelForCausalLM.from_pretrained(model)).write(adapter)
    with pytest.raises(ConfigError, match=r"are not those that the adapter in .* was trained on") as raised:
        opened(Subject(**named, model_name_or_path=str(other)))
    assert "remove that file" in raised.value.hint
    assert opened(Subject(**named, model_name_or_path=str(moved))).foreign is not None
    (adapter / "selfaug_base.json").write_text('{"weights": 1}')
    with pytest.raises(ConfigError, match="does not describe a base model"):
        opened(Subject(**named, model_name_or_path=str(moved)))


def test_what_differs_from_the_base_is_told(
    adapter: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = CHAT
    tokenizer.add_tokens(["w1000"])
    tokenizer.save_pretrained(adapter)
    moved = Path(shutil.copytree(model, tmp_path / "moved"))
    run = opened(Subject(adapter=str(adapter), model_name_or_path=str(moved), prompt='{"mode": "chat"}'))
    said = capsys.readouterr().err
    assert f"was trained on {model}" in said
    assert f"is measured against {moved}" in said
    assert "another chat template than its base's" in said
    assert "98 tokens" in said
    assert 'our defaults: system "Answer the question' in said
    assert run.load_renderer().chat_template == CHAT


@pytest.mark.nightly
def test_chat_and_merge_take_a_bare_adapter(
    adapter: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--adapter", str(adapter), "--model_name_or_path", str(model), "--prompt", PROMPT]
    assert main(["chat", *named, "--question", "w5 w6", "--compare", "--max_new_tokens", "4"]) == 0
    answers = capsys.readouterr().out.splitlines()
    assert answers[0] == "[base]"
    assert "[tuned]" in answers
    assert main(["merge", *named, "--output_dir", str(tmp_path / "merged"), "--prompts", "2"]) == 0
    folded = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval())
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(adapter)).eval()
    torch.testing.assert_close(folded, logits(tuned), rtol=0, atol=1e-4)
    assert (folded - logits(AutoModelForCausalLM.from_pretrained(model).eval())).abs().max() > 1e-2
    assert not list(adapter.parent.glob("measured*"))


def test_rows_that_were_trained_on_are_found_where_the_training_data_is_named(
    adapter: Path, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--adapter", str(adapter), "--model_name_or_path", str(model), "--prompt", PROMPT, "--data", str(data)]
    assert evaluate(*named) == 0
    assert "--trained_on names the training data" in capsys.readouterr().err
    assert evaluate(*named, "--trained_on", data) == 0
    assert "is not independent of the training data" in capsys.readouterr().err
