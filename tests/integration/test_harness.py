"""Does lm_eval know what our suites and task YAMLs name, and is code that a model writes only run when asked for?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfaug.cli.main import main
from selfaug.common.errors import ConfigError
from selfaug.evaluation import instructions
from selfaug.evaluation.general_part import GeneralPart
from selfaug.evaluation.harness import Harness, backend_args
from selfaug.evaluation.results import read_results, read_samples
from selfaug.evaluation.suites import SUITES, GeneralTask, suite
from selfaug.run.models import check_origin
from selfaug.scaling.items import drawn
from tests.chatting import save_chat_model
from tests.models import save_tiny
from tests.runs import finished_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def harness() -> Harness:
    return Harness()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("name", SUITES)
def test_every_task_of_a_suite_exists_and_has_the_metric_that_stands_for_it(harness: Harness, name: str) -> None:
    known = harness.known()
    for task in suite(name):
        assert task.task in known
        settings = harness.settings(task.task)
        assert settings, task.task
        text = str(settings)
        metric = "pass_at_k" if task.primary == "pass@1" else task.primary
        # A group names its metrics to average; a task its own; MATH's come from its results function.
        assert metric in text or "process_results" in settings, task.task
        if task.generation:
            assert settings["output_type"] == "generate_until"


def test_humaneval_is_parsed_and_its_code_not_run(harness: Harness) -> None:
    task = next(task for task in suite("paper") if task.task == "humaneval_instruct")
    assert harness.settings(task.task)["unsafe_code"] is True
    with pytest.raises(ConfigError, match="runs code that the model writes") as caught:
        harness.check(task, allow_code_execution=False)
    assert "--allow_code_execution" in caught.value.hint
    harness.check(task, allow_code_execution=True)


def test_a_group_takes_no_file(harness: Harness, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no one file"):
        harness.check(GeneralTask("mmlu", data=tmp_path), allow_code_execution=False)


def test_vllm_gets_the_adapter_as_lora(tmp_path: Path, model: Path) -> None:
    run = finished_run(tmp_path / "run", model, r=20)
    args = backend_args("vllm", check_origin(run), "bfloat16")
    assert args["base"]["pretrained"] == args["tuned"]["pretrained"] == str(model)
    assert "lora_local_path" not in args["base"]
    assert args["tuned"]["lora_local_path"] == str(run.adapter)
    assert args["tuned"]["max_lora_rank"] == 32  # at least the rank, and a size that vLLM knows
    assert args["tuned"]["dtype"] == "bfloat16"
    whole = backend_args("vllm", check_origin(finished_run(tmp_path / "whole", model, full=True)), "auto")
    assert whole["tuned"]["pretrained"] == str(tmp_path / "whole" / "model")
    import inspect

    vllm = Path(inspect.getfile(__import__("lm_eval"))).parent / "models" / "vllm_causallms.py"
    text = vllm.read_text(encoding="utf-8")
    for name in args["tuned"]:  # lm_eval still takes every argument by its name
        assert f"{name}:" in text or name == "trust_remote_code", name
    biased = finished_run(tmp_path / "biased", model, bias="lora_only")
    with pytest.raises(ConfigError, match="plain LoRA"):
        backend_args("vllm", check_origin(biased), "auto")


def own_group(tmp_path: Path) -> Path:
    """A folder of task YAMLs: the group `own_group` of two tasks of 4 and 6 items."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name, count in (("first", 4), ("second", 6)):
        rows = [{"question": f"w{i + 3} w5", "a": f"w{i + 7}", "b": f"w{i + 9}"} for i in range(count)]
        (tasks / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        (tasks / f"{name}.yaml").write_text(
            f"""task: own_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tasks / name}.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{[a, b]}}}}"
doc_to_target: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
""",
            encoding="utf-8",
        )
    (tasks / "group.yaml").write_text(
        "group: own_group\ntask: [own_first, own_second]\n"
        "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\n",
        encoding="utf-8",
    )
    return tasks


@pytest.mark.nightly
def test_a_group_of_own_tasks_from_a_folder(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = own_group(tmp_path)
    run = finished_run(tmp_path / "run", model)
    words = ["--no_task", "--general", "own_group", "--include_path", str(tasks)]
    assert main(["evaluate", str(run.path), *words]) == 0
    part = read_results(run.path / "results.json")["parts"]["general:own_group"]
    samples = list(read_samples(run.path / "samples.jsonl"))
    assert part["items"] == len(samples) == 10
    assert {name: entry["acc"]["base"]["n"] for name, entry in part["subtasks"].items()} == {
        "own_first": 4,
        "own_second": 6,
    }
    acc = part["metrics"]["acc"]
    assert acc["primary"] is True
    for side in ("base", "tuned"):
        right = sum(sample[side]["values"]["acc"] for sample in samples)
        assert acc[side]["value"] == pytest.approx(right / 10)
    assert acc["difference"]["interval"] is not None
    capsys.readouterr()
    assert main(["evaluate", str(run.path), "--no_task", "--general", "own_grup", "--include_path", str(tasks)]) == 2
    assert "Did you mean 'own_group'?" in capsys.readouterr().err


@pytest.mark.nightly
def test_faults_of_a_task_are_told_and_what_is_finished_is_kept(tmp_path: Path, model: Path) -> None:
    run = finished_run(tmp_path / "run", model)
    good = tmp_path / "good.jsonl"
    row = {"question": "w5", "options": [{"label": "A", "text": "w6"}, {"label": "B", "text": "w7"}], "answer": "B"}
    good.write_text(json.dumps(row) + "\n" + json.dumps({**row, "question": "w8"}), encoding="utf-8")
    words = ["--no_task", "--general", f"multiple_choice_file={good}"]
    assert main(["evaluate", str(run.path), *words]) == 0
    # gsm8k's data is on the hub, which is not reached; it comes after tasks that work, one of them not measured yet.
    words += ["gsm8k", "lab_facts"]
    ended = subprocess.run(
        [sys.executable, "-m", "selfaug", "evaluate", str(run.path), *words],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert ended.returncode == 2, ended.stderr
    assert "general task gsm8k cannot be run" in ended.stderr
    assert "hint: its data comes from the hub" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    assert set(read_results(run.path / "results.json")["parts"]) == {"general:multiple_choice_file"}
    assert "lab_facts" not in ended.stderr, "a part was measured before the fault was found"


@pytest.mark.nightly
def test_some_items_of_a_group_score_as_they_do_among_all(tmp_path: Path, model: Path) -> None:
    harness = Harness(str(own_group(tmp_path)))
    tokenizer, loaded = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model).eval()
    part = GeneralPart("general:own_group", GeneralTask("own_group"), harness, tokenizer, 4, 512, False)
    assert part.items() == {"own_first": 4, "own_second": 6}
    assert harness.items(GeneralTask("own_group", limit=5)) == {"own_first": 4, "own_second": 5}
    some = part.only({"own_first": [3, 1], "own_second": [5]})
    assert some.deciding() != part.deciding()

    class Quiet:
        def __call__(self, done: int) -> None: ...
        def expect(self, total: int) -> None: ...

    whole, few = (one.compute("base", loaded, Quiet()) for one in (part, some))
    kept = [("own_first", 1), ("own_first", 3), ("own_second", 5)]
    assert [(item["subtask"], item["index"]) for item in few["samples"]] == kept
    among = [item for item in whole["samples"] if (item["subtask"], item["index"]) in kept]
    assert len(whole["samples"]) == 10
    assert [item["prompt_hash"] for item in among] == [item["prompt_hash"] for item in few["samples"]]
    assert [item["values"] for item in among] == [item["values"] for item in few["samples"]]


@pytest.mark.nightly
def test_the_offline_suite_feeds_flips_gate_and_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(instructions, "LEAST", 1)  # the random model writes few words
    model = save_chat_model(tmp_path / "model")
    run = finished_run(tmp_path / "run", model, perturb=0.3)
    words = ["--no_task", "--general", "offline", "--general_limit", "24", "--max_gen_toks", "16"]
    assert main(["evaluate", str(run.path), *words]) == 0
    part = read_results(run.path / "results.json")["parts"]["general:offline_following"]
    samples = list(read_samples(run.path / "samples.jsonl"))
    assert len(samples) == 24
    assert any(sample["base"]["response"] != sample["tuned"]["response"] for sample in samples)
    right = {
        side: [sample[side]["values"]["prompt_level_strict_acc"] for sample in samples] for side in ("base", "tuned")
    }
    assert 0 < sum(right["base"]) < 24, "no check decides anything"
    strict = part["metrics"]["prompt_level_strict_acc"]
    assert strict["primary"]
    lost = sum(before > after for before, after in zip(right["base"], right["tuned"], strict=True))
    assert (strict["flips"]["n"], strict["flips"]["lost"]) == (24, lost)
    single = part["metrics"]["inst_level_loose_acc"]["base"]
    asked = sum(len(sample["expected"][0].split(", ")) for sample in samples)
    assert single["value"] * asked == pytest.approx(
        sum(sample["base"]["values"]["inst_level_loose_acc"][0] for sample in samples)
    )
    assert main(["gate", str(run.path), "--max_lost", f"general={lost}", "--max_drop", "general=100pt"]) in (0, 3)
    assert "offline_following" in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(model)
    whole = GeneralPart("general:offline_following", suite("offline")[0], Harness(), tokenizer, 4, 512, False)
    assert whole.items() == {"offline_following": 368}
    (batches,) = drawn([whole], 2, 0)[0].values()
    assert batches.counts == (184, 184)
