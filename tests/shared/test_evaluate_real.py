"""On a real model and real data: are the numbers those of an oracle, of lm_eval itself, and of the models apart?"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from selfaug.cli.main import main
from selfaug.data.metrics import exact_match, token_f1
from selfaug.data.read import read_rows
from selfaug.data.record import Record
from selfaug.evaluation.results import read_results, read_samples
from selfaug.run.folder import RunFolder
from selfaug.run.models import Sides, check_origin
from tests.oracles import squad
from tests.runs import finished_run

pytestmark = pytest.mark.shared

MAX_GEN = 128
# IFEval's checks that ask NLTK for data which is not to be had offline.
NEEDS_NLTK = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, stories260k: Path) -> RunFolder:
    return finished_run(tmp_path_factory.mktemp("runs") / "perturbed", stories260k, perturb=0.03)


def test_em_and_f1_agree_with_the_oracle_on_500_answers(shared: Path) -> None:
    records = [r for r in read_rows(shared / "data" / "squad" / "dev-v1.1.json").items if isinstance(r, Record)]
    records = records[:: len(records) // 500][:500]
    assert len(records) == 500
    exact = partial = none = 0
    for i, record in enumerate(records):
        text, first = record.documents[0].text, record.answers[0]
        at = max(text.find(first), 0)
        response = (
            record.answers[-1],
            f"The answer is: {first.upper()}!",
            text[max(at - 12, 0) : at + len(first) + 12],
            records[(i * 7 + 1) % 500].answers[0],
            " ".join(first.split()[::-1]),
            text[: 40 * (i % 9)],
        )[i % 6]
        em, f1 = exact_match(response, record.answers), token_f1(response, record.answers)
        assert em == squad.em(response, list(record.answers)), (response, record.answers)
        assert f1 == pytest.approx(squad.f1(response, list(record.answers)), abs=1e-15), (response, record.answers)
        exact, partial, none = exact + (em == 1), partial + (0 < f1 < 1), none + (f1 == 0)
    assert min(exact, partial, none) > 60  # every kind of answer was there


def _arc_as_on_the_hub(shared: Path, path: Path) -> Path:
    """The local ARC file in the columns of the hub's data set, for lm_eval's own task."""
    with path.open("w", encoding="utf-8") as file:
        for line in (shared / "data" / "arc-challenge" / "arc_challenge_test.jsonl").open(encoding="utf-8"):
            row = json.loads(line)
            labels, texts = ([option[key] for option in row["options"]] for key in ("label", "text"))
            hub = {"id": row["id"], "question": row["question"], "answerKey": row["answer"]}
            file.write(json.dumps({**hub, "choices": {"label": labels, "text": texts}}) + "\n")
    return path


@functools.cache
def _manager() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _directly(
    model: Path, adapter: Path | None, task: str, file: Path, places: list[int], batch_size: int
) -> Mapping[str, Any]:
    """lm_eval by its own means: it loads model and adapter itself, and none of our code takes part."""
    import lm_eval
    from langdetect import DetectorFactory
    from lm_eval.tasks._yaml_loader import load_yaml

    DetectorFactory.seed = 0  # langdetect guesses at random
    settings = load_yaml(_manager().task_index[task].yaml_path, resolve_func=True)
    split = settings["test_split"]
    kept = {k: v for k, v in settings.items() if k not in ("tag", "dataset_name", "training_split", "validation_split")}
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), **({} if adapter is None else {"peft": str(adapter)})},
        tasks=[{**kept, "dataset_path": "json", "dataset_kwargs": {"data_files": {split: str(file)}}}],
        samples={task: places},
        task_manager=_manager(),
        batch_size=batch_size,
        device="cpu",
        gen_kwargs={"max_gen_toks": MAX_GEN} if task == "ifeval" else None,
    )
    return dict(found["results"][task])


def _compare(run: RunFolder, stories260k: Path, shared: Path, tmp_path: Path, limit: int, batch_size: int) -> None:
    ifeval = shared / "data" / "ifeval" / "input_data.jsonl"
    arc = shared / "data" / "arc-challenge" / "arc_challenge_test.jsonl"
    words = [
        "--no_task",
        "--general",
        f"ifeval={ifeval}",
        f"multiple_choice_file={arc}",
        "--max_gen_toks",
        str(MAX_GEN),
    ]
    words += ["--general_limit", str(limit), "--batch_size", str(batch_size), "--store", str(tmp_path / "store")]
    assert main(["evaluate", str(run.path), *words]) == 0
    results = read_results(run.path / "results.json")
    samples = list(read_samples(run.path / "samples.jsonl"))

    prompts = [json.loads(line) for line in ifeval.open(encoding="utf-8")][:limit]
    places = [i for i, row in enumerate(prompts) if not set(row["instruction_id_list"]) & NEEDS_NLTK]
    part = results["parts"]["general:ifeval"]
    assert 0 < len(prompts) - len(places) == sum(part["left_out"].values())
    assert part["items"] == len(places)
    hub = _arc_as_on_the_hub(shared, tmp_path / "arc.jsonl")
    count = min(limit, len(hub.read_text(encoding="utf-8").splitlines()))
    for name, task, file, chosen in (
        ("general:ifeval", "ifeval", ifeval, places),
        ("general:multiple_choice_file", "arc_challenge", hub, list(range(count))),
    ):
        mine = [sample for sample in samples if sample["part"] == name]
        # Precondition: the adapter changes what the model says, so equal numbers are not one model's twice.
        assert sum(sample["base"]["response"] != sample["tuned"]["response"] for sample in mine) > len(mine) // 2
        metrics = results["parts"][name]["metrics"]
        assert len(metrics) >= 2
        for side, adapter in (("base", None), ("tuned", run.adapter)):
            wanted = _directly(stories260k, adapter, task, file, chosen, batch_size)
            for label, entry in metrics.items():
                assert entry[side]["value"] == wanted[f"{label},none"]
                assert entry[side]["n"] == len(chosen)
                stderr = wanted[f"{label}_stderr,none"]
                assert stderr == "N/A" or entry[side]["stderr"] == stderr
        assert all(entry["difference"]["interval"] is not None for entry in metrics.values())


@pytest.mark.nightly
def test_a_part_of_arc_and_ifeval_gives_lm_evals_own_numbers(
    run: RunFolder, stories260k: Path, shared: Path, tmp_path: Path
) -> None:
    _compare(run, stories260k, shared, tmp_path, limit=16, batch_size=16)


@pytest.mark.study
@pytest.mark.timeout(7200)
def test_the_whole_of_arc_and_ifeval_gives_lm_evals_own_numbers(
    run: RunFolder, stories260k: Path, shared: Path, tmp_path: Path
) -> None:
    _compare(run, stories260k, shared, tmp_path, limit=10_000, batch_size=64)


@pytest.mark.nightly
def test_an_adapter_of_zero_steps_changes_nothing(tmp_path: Path, stories260k: Path, shared: Path) -> None:
    run = finished_run(tmp_path / "zero", stories260k, perturb=0)
    data = shared / "data"
    words = ["--data", str(data / "squad" / "dev-v1.1.json"), "--limit", "12", "--max_new_tokens", "12"]
    words += ["--general_data", str(data / "tinystories" / "tinystories_1000.json"), "--general_limit", "8"]
    words += ["--general", f"multiple_choice_file={data / 'arc-challenge' / 'arc_challenge_test.jsonl'}"]
    assert main(["evaluate", str(run.path), *words]) == 0
    entries = [
        (name, label, entry)
        for name, part in read_results(run.path / "results.json")["parts"].items()
        for label, entry in part["metrics"].items()
    ]
    assert len(entries) >= 7
    assert any(entry["base"]["value"] not in (0, 1, -1) for _, _, entry in entries)
    for name, label, entry in entries:
        assert entry["base"] == entry["tuned"], (name, label)
        assert entry["difference"]["value"] == 0, (name, label)
        assert entry["difference"]["interval"] == [0, 0], (name, label)
    for sample in read_samples(run.path / "samples.jsonl"):
        assert sample["base"] == sample["tuned"]


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(1, 40)[None]).logits
    return found


@pytest.mark.parametrize("kind", ["lora", "biases trained too", "whole model"])
def test_base_and_tuned_are_what_they_claim_to_be(tmp_path: Path, stories260k: Path, kind: str) -> None:
    from peft import PeftModel

    more = {"bias": "lora_only", "target_modules": ["q_proj", "v_proj"]} if kind == "biases trained too" else {}
    run = finished_run(tmp_path / "run", stories260k, perturb=0.1, full=kind == "whole model", **more)
    base = AutoModelForCausalLM.from_pretrained(stories260k)
    wanted = {"base": _logits(base)}
    if kind == "whole model":
        wanted["tuned"] = _logits(AutoModelForCausalLM.from_pretrained(run.model))
    else:
        wanted["tuned"] = _logits(PeftModel.from_pretrained(base, run.adapter).eval())
    assert not torch.allclose(wanted["base"], wanted["tuned"], atol=1e-2)
    sides = Sides(check_origin(run))
    seen = []
    for _ in range(3):
        for side in sides.order():
            seen.append(side)
            with sides.side(side) as model:
                assert torch.equal(_logits(model), wanted[side])
    assert sorted(seen) == ["base"] * 3 + ["tuned"] * 3
    # One load where the adapter is switched; else one a change of sides, and none between two parts.
    assert sides.loads == (1 if kind == "lora" else 4)
