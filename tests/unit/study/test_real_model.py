"""Does the study of the real model go on where it was, never repeat a run, and tell what its results say?"""

from __future__ import annotations

import importlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from peft import LoraConfig, get_peft_model

from selfaug.common.store import Store
from tests.models import tiny

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "docs" / "studies" / "real-model"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def plan() -> Any:
    return importlib.import_module("real_model_plan")


@pytest.fixture
def study() -> Any:
    return importlib.import_module("real_model")


def body(setting: Any, train: float = 0.0, measure: float = 36.0, **parts: Any) -> dict[str, Any]:
    return {"setting": setting.to_json(), "seconds": {"train": train, "measure": measure}, "parts": parts}


def session(study: Any, folder: Path, seconds: float = 1e6) -> Any:
    return study.Session(
        folder / "work", Store(folder / "results"), folder, time.monotonic() + seconds, say=lambda _: None
    )


# --- what a run is called ---------------------------------------------------------------------------------------------


def test_every_run_has_a_key_and_a_file_of_its_own(plan: Any) -> None:
    order = plan.order()
    assert len(order) > 50
    assert len({each.key for each in order}) == len({each.name for each in order}) == len(order)


def test_a_key_is_a_function_of_the_settings_alone(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one, key = plan.selfaug(1e-3), plan.selfaug(1e-3).key
    again = plan.Setting.from_json(json.loads(json.dumps(one.to_json())))
    assert again == one
    assert again.key == key
    assert plan.selfaug(1e-3, seed=1).key != key
    monkeypatch.setitem(plan.TRAINING, "lora_r", 8)
    assert plan.selfaug(1e-3).key != key


def test_a_scaled_update_is_trained_by_the_run_that_it_scales(plan: Any) -> None:
    scaled = plan.lora(1e-3, scale=0.5)
    assert scaled.training == plan.lora(1e-3)
    assert scaled.key != scaled.training.key
    assert plan.tokens(scaled) == 0 < plan.tokens(scaled.training)


# --- going on ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def did(study: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that were made, each by writing its result."""
    names: list[str] = []

    def one(at: Any, setting: Any, lock: int) -> None:
        assert lock > 0
        names.append(setting.name)
        at.results.put(setting.name, setting.key, body(setting))

    monkeypatch.setattr(study, "one", one)
    monkeypatch.setattr(study, "prepare", lambda _: None)
    return names


def test_what_is_done_is_never_repeated(study: Any, plan: Any, tmp_path: Path, did: list[str]) -> None:
    at = session(study, tmp_path)
    first, third = plan.order()[0], plan.order()[2]
    for setting in (first, third):
        at.results.put(setting.name, setting.key, body(setting))
    assert study.work_through(at)
    assert did == [each.name for each in plan.order() if each not in (first, third)]
    assert study.work_through(at)
    assert len(did) == len(plan.order()) - 2


def test_a_result_of_other_settings_is_no_result(study: Any, plan: Any, tmp_path: Path, did: list[str]) -> None:
    at = session(study, tmp_path)
    setting = plan.order()[1]
    at.results.put(setting.name, setting.key, body(setting))
    path = at.results.path(setting.name, setting.key)
    path.write_text(path.read_text().replace(setting.key, "sha256:0"))
    assert study.work_through(at)
    assert setting.name in did


def test_it_stops_where_the_budget_is_spent(study: Any, tmp_path: Path, did: list[str]) -> None:
    with pytest.raises(study.Stopped):
        study.work_through(session(study, tmp_path, seconds=-1))
    assert did == []


def test_another_session_s_run_is_left_to_it(study: Any, plan: Any, tmp_path: Path, did: list[str]) -> None:
    at, other = session(study, tmp_path), session(study, tmp_path)
    taken = plan.lora(1e-3)
    with other.alone(taken.name) as lock:
        assert lock is not None
        assert not study.work_through(at)
    theirs = {each.name for each in plan.order() if each.training == taken}
    assert len(theirs) > 1, "a run that needs its adapter waits too"
    assert set(did) == {each.name for each in plan.order()} - theirs


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_training_goes_on_from_its_checkpoint(
    study: Any, plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: bool
) -> None:
    said: list[list[str]] = []
    logs: set[Path] = set()

    def spawn(at: Any, words: list[str], log: Path, folder: Path, lock: int) -> int:
        said.append(words)
        logs.add(log)
        (folder / "adapter").mkdir(parents=True, exist_ok=True)
        return 0

    at = session(study, tmp_path)
    at.model = "model"
    monkeypatch.setattr(study, "_spawn", spawn)
    monkeypatch.setattr(study.RunFolder, "has_checkpoint", lambda _: checkpoint)
    folder = tmp_path / "run"
    assert study.train(at, plan.lora(1e-3), folder, 3) == folder / "adapter"
    assert ("--resume_from_checkpoint" in said[0]) == checkpoint
    assert ("--overwrite_output_dir" in said[0]) != checkpoint
    study.train(at, plan.lora(1e-3), folder, 3)
    assert len(said) == 1, "a finished adapter is not trained again"
    study.train(at, plan.lora(2e-3), tmp_path / "run-lr0.002", 3)
    study.train(at, plan.lora(4e-3), tmp_path / "run-lr0.004", 3)
    assert len(logs) == 3, "each training has a log of its own, dots in its name or not"


@pytest.mark.parametrize(("code", "raised"), [(143, "Stopped"), (2, "SystemExit")])
def test_a_stopped_training_is_no_failed_one(
    study: Any, plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, raised: str
) -> None:
    at = session(study, tmp_path)
    at.model = "model"
    monkeypatch.setattr(study, "_spawn", lambda *_: code)
    with pytest.raises((study.Stopped, SystemExit)) as caught:
        study.train(at, plan.lora(1e-3), tmp_path / "run", 3)
    assert caught.type.__name__ == raised


def test_the_deadline_tells_a_training_to_stop_and_its_time_is_added_up(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nexec sleep 600\n")
    slow.chmod(0o755)
    monkeypatch.setattr(study.sys, "executable", str(slow))
    folder = tmp_path / "run"
    folder.mkdir()
    at = session(study, tmp_path, seconds=0.0)
    walls = []
    for _ in range(2):
        assert study._spawn(at, ["train"], tmp_path / "log", folder, 0) == -15
        walls.append(json.loads((folder / "seconds.json").read_text())["wall"])
    assert 0 < walls[0] < walls[1] < 600


def test_the_words_of_each_method_are_words_of_train(study: Any, plan: Any, tmp_path: Path) -> None:
    from selfaug.cli.parsing import parse

    at = session(study, tmp_path)
    at.model = "model"
    kinds = {tuple(name for name, _ in each.options): each for each in plan.order() if each.method != "base"}
    assert len(kinds) == 8, "LoRA, SelfAug and six rivals with options of their own"
    for setting in kinds.values():
        verb, *words = study.train_words(at, setting)
        values = parse([*words, "--output_dir", str(tmp_path / "run")]).values
        assert verb == "train"
        assert (values["method"], values["learning_rate"]) == (setting.method, setting.rate)


# --- what it says -----------------------------------------------------------------------------------------------------


def test_status_reckons_by_what_was_measured(study: Any, plan: Any, tmp_path: Path) -> None:
    results = Store(tmp_path)
    lora, slower = plan.lora(1e-3), plan.selfaug(1e-3)
    assert "0 of" in study.status(results)
    done = {
        plan.BASE: body(plan.BASE, measure=360.0),
        lora: body(lora, train=plan.tokens(lora) / 100, measure=360.0),
        slower: body(slower, train=plan.tokens(slower) / 50, measure=360.0),
    }
    for setting, found in done.items():
        results.put(setting.name, setting.key, found)
    read = plan.finished(results)
    assert set(read) == set(done)
    assert math.isclose(plan.hours(plan.lora(4e-3, 2), read), (2 * plan.TOKENS[1] / 100 + 360) / 3600)
    assert math.isclose(plan.hours(plan.selfaug(4e-3), read), (plan.TOKENS[1] / 50 + 360) / 3600)
    assert math.isclose(plan.hours(plan.lora(4e-3, scale=0.5), read), 0.1)
    others = 2 * plan.TOKENS[1] / (plan.TOKENS[1] / 100 + plan.TOKENS[1] / 50)
    assert math.isclose(plan.hours(plan.rival("ewc", 4e-3), read), (plan.TOKENS[1] / others + 360) / 3600)
    told = study.status(results)
    spent = (3 * 360 + plan.TOKENS[1] * 0.03) / 3600
    left = sum(plan.hours(each, read) for each in plan.order() if each not in read)
    assert f"3 of {len(plan.order())} runs are done; they took {spent:.1f} hours" in told
    assert f"all that is left: {left:.1f} hours" in told


def columns(f1: float, kl: float | None, shift: float = 0.0) -> dict[str, Any]:
    task = {
        "answerable": [1, 1, 1, 0], "exact_match": [0, 1, 1, 1], "f1": [f1, f1, f1, 1.0],
        "nll": [2.0] * 4, "tokens": [4] * 4, "words": [1] * 4,
    }  # fmt: skip
    groups = {"ifeval": 2, "science": 1, "maths": 1, "wikitext": 2, "prompt": 2}
    kept: dict[str, Any] = {"groups": groups, "tokens": [10] * 8, "nll": [10.0 + 10 * shift] * 8}
    if kl is not None:
        kept["kl"] = [10 * kl] * 2 + [20 * kl] * 2 + [0.0] * 4
    return {"validation": task, "test": task, "kept": kept}


def test_the_table_says_what_the_results_say(plan: Any) -> None:
    shown = importlib.import_module("real_model_shown")
    done = {
        plan.BASE: body(plan.BASE, **columns(0.0, None)),
        plan.lora(1e-3): body(plan.lora(1e-3), **columns(0.5, 0.25, 0.125)),
        plan.lora(1e-3, seed=1): body(plan.lora(1e-3, seed=1), **columns(0.7, 0.75, 0.125)),
    }
    text = shown.tables(done)
    base, lora = (next(line for line in text.splitlines() if line.startswith(name)) for name in ("base", "sft"))
    assert base.split()[-5:] == ["0", "0", "1.000", "1.000", "0"]
    f1 = 0.25 + 0.75 * 0.6
    assert lora.split()[:9] == ["sft", "0.001", "1", "2", "0.75", f"{f1:.2f}", "0.500", "1.00", "+0.500"]
    assert lora.split()[11] == "+1.000", "questions drift twice as far"
    assert lora.split()[14] == lora.split()[17] == "+0.125"


def test_a_rate_is_chosen_without_the_test_rows(plan: Any) -> None:
    shown = importlib.import_module("real_model_shown")
    good_there, good_here = plan.lora(1e-3), plan.lora(4e-3)
    done = {
        plan.BASE: body(plan.BASE, **columns(0.0, None)),
        good_there: body(good_there, **{**columns(0.2, 0.1), "validation": columns(0.9, 0.1)["validation"]}),
        good_here: body(good_here, **{**columns(0.9, 0.1), "validation": columns(0.2, 0.1)["validation"]}),
    }
    assert shown.chosen(done, "sft") == good_there
    assert good_there.name in shown.tables(done)
    assert shown.chosen(done, "selfaug") is None


def test_the_picture_has_a_curve_for_each_method(plan: Any, tmp_path: Path) -> None:
    shown = importlib.import_module("real_model_shown")
    done = {plan.BASE: body(plan.BASE, **columns(0.0, None))}
    for rate in (1e-3, 4e-3):
        done |= {each(rate): body(each(rate), **columns(0.5, rate)) for each in (plan.lora, plan.selfaug)}
    shown.draw(done, tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").read_text().count('id="line2d_') > 4


def test_the_committed_results_are_whole_and_of_the_study(plan: Any) -> None:
    done = plan.finished(Store(RESULTS))
    files = sorted(RESULTS.glob("*.json"))
    assert len(done) == len(files), "each file belongs to a run of the study"
    for setting, found in done.items():
        assert plan.Setting.from_json(found["setting"]) == setting
        assert found["commit"]
        kept = found["parts"]["kept"]
        assert len(kept["tokens"]) == len(kept["nll"]) == sum(kept["groups"].values())
        assert ("kl" in kept) == (setting.method != "base")
        assert found["answers"] == done[plan.Setting("base", documents=setting.documents)]["answers"]
        for part in ("validation", "test"):
            assert len({len(column) for column in found["parts"][part].values()}) == 1


# --- what is measured -------------------------------------------------------------------------------------------------


def test_kept_values_are_those_of_dense_logits() -> None:
    measured = importlib.import_module("real_model_measure")
    base = tiny("llama", dtype=torch.float32)
    torch.manual_seed(0)  # of the adapter
    tuned = get_peft_model(
        tiny("llama", dtype=torch.float32), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)
    )
    items = [measured.Item("a", [5, 6, 7], [8, 9]), measured.Item("a", [4], [9]), measured.Item("b", [], [7, 8, 9, 3])]
    states = [hidden for hidden, _ in measured.hidden_states(base, items)]
    model = tuned.merge_and_unload().eval()
    found = measured.kept_values(model, items, states)
    assert found["groups"] == {"a": 2, "b": 1}
    assert found["tokens"] == [2, 1, 3]
    for place, item in enumerate(items):
        ids = torch.tensor([[*item.context, *item.scored]])
        start = max(len(item.context), 1)
        with torch.no_grad():
            logs = [F.log_softmax(m(input_ids=ids).logits[0, start - 1 : -1].double(), -1) for m in (base, model)]
        kl = (logs[0].exp() * (logs[0] - logs[1])).sum()
        nll = F.nll_loss(logs[1], ids[0, start:], reduction="sum")
        assert kl > 0.01, "base and tuned differ"
        assert math.isclose(found["kl"][place], float(kl), abs_tol=2e-3)
        assert math.isclose(found["nll"][place], float(nll), abs_tol=2e-3)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_merged_adapter_is_the_scaled_update(tmp_path: Path, scale: float, made: Callable[[Path], None]) -> None:
    measured = importlib.import_module("real_model_measure")
    made(tmp_path)
    name = "model.layers.0.self_attn.q_proj"
    base = measured.merged(str(tmp_path / "base"), None).get_submodule(name).weight
    full = measured.merged(str(tmp_path / "base"), tmp_path / "adapter").get_submodule(name).weight
    got = measured.merged(str(tmp_path / "base"), tmp_path / "adapter", scale).get_submodule(name).weight
    assert (full - base).abs().max() > 1e-3
    torch.testing.assert_close(got - base, scale * (full - base), atol=1e-6, rtol=1e-5)


@pytest.fixture
def made() -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        tiny("llama", dtype=torch.float32).save_pretrained(folder / "base")
        peft = get_peft_model(
            tiny("llama", dtype=torch.float32), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)
        )
        peft.save_pretrained(folder / "adapter")

    return make


@pytest.mark.nightly
@pytest.mark.shared
def test_no_article_is_on_two_sides(shared: Path, smollm2: Path) -> None:
    from transformers import AutoTokenizer

    data = importlib.import_module("real_model_data")
    parts = data.task_rows(shared, AutoTokenizer.from_pretrained(smollm2), 1)
    titles = {part: {document.title for row in rows for document in row.documents} for part, rows in parts.items()}
    assert {part: len(rows) for part, rows in parts.items()} == data.PARTS
    assert not titles["train"] & titles["validation"]
    assert not titles["train"] & titles["test"]
    assert not titles["validation"] & titles["test"]
    assert sum(not row.answerable for row in parts["train"]) == len(parts["train"]) // data.UNANSWERABLE
    rows = {part: [row.to_row() for row in own] for part, own in parts.items()}
    assert data.digest({**rows, "replay": data.replay_rows(shared)}) == data.DIGESTS[1]
    shown = {row["id"] for row in data.general_prompts(shared)}
    asked = {row["prompt"] for row in data.general_prompts(shared)}
    assert len(shown) == data.IFEVAL + data.SCIENCE + data.MATHS
    assert not asked & {row["messages"][0]["content"] for row in data.replay_rows(shared)}
