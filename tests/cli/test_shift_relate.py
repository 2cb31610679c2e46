"""Do `selfaug shift` and `selfaug relate` measure, write, resume and refuse as real processes?"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from .conftest import TRAIN, Cli, Result, records, save_model, write_rows

STORY = "Anna has a blue boat. She sails on the lake every day. The cat dreams of a big fish. " * 8


@pytest.fixture
def run(trained: tuple[Path, Result], tmp_path: Path) -> Path:
    """A copy of the trained run: tests write into it."""
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


@pytest.fixture
def story(tmp_path: Path) -> Path:
    path = tmp_path / "story.txt"
    path.write_text(STORY)
    return path


def shift_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "shift.json").read_text()))


def finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def test_every_checkpoint_is_measured_and_the_table_goes_to_stdout(cli: Cli, run: Path, story: Path) -> None:
    result = cli("shift", run, "--general_text", story, "--checkpoints", "all")
    assert result.code == 0, result.err
    found = shift_of(run)
    assert finite(found)
    assert [entry["name"] for entry in found["checkpoints"]] == ["checkpoint-3", "checkpoint-6", "final"]
    early, late, final = found["checkpoints"]
    # The finished weights are those of the last checkpoint: measured once, and the earlier ones are others.
    assert late["weights"] == final["weights"] != early["weights"]
    assert late["totals"] == final["totals"] != early["totals"]
    assert final["totals"]["prompt"]["base_to_tuned"]["value"] > 1e-3
    assert set(final["regions"]) == {
        "system", "documents", "question", "other", "boundary", "response", "general_text",
    }  # fmt: skip
    assert final["regions"]["boundary"]["tokens"] == 12
    total = sum(entry["tokens"] for entry in final["regions"].values())
    assert sum(part["tokens"] for kind in final["positions"].values() for part in kind) == total
    assert [layer["layer"] for layer in final["layers"]] == [1, 2]
    shown = f"{final['regions']['documents']['base_to_tuned']['value']:.4f}"
    assert shown in next(line for line in result.out.splitlines() if line.split()[:2] == ["final", "documents"])
    assert result.out.startswith("checkpoint")
    assert str(run / "shift.json") in result.err


def test_the_shift_of_the_run_is_that_of_dense_logits(cli: Cli, run: Path, data: Path) -> None:
    """The whole way from the run folder to the number, once more with PEFT and dense logits alone."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    result = cli("shift", run, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out) == shift_of(run)
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    model = AutoPeftModelForCausalLM.from_pretrained(run / "adapter").eval()
    settings = json.loads((run / "adapter" / "selfaug_renderer.json").read_text())
    assert settings["mode"] == "plain"
    total, tokens = 0.0, 0
    for line in data.read_text().splitlines():
        row = json.loads(line)
        prompt = (
            f"{settings['system']}\n\nDocument 1: Tom\n{row['documents'][0]['text']}\n\n"
            f"Question: {row['question']}\nAnswer:"
        )
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            tuned = model(ids).logits[0].double().log_softmax(-1)
            with model.disable_adapter():
                base = model(ids).logits[0].double().log_softmax(-1)
        kl = (base.exp() * (base - tuned)).sum(-1)[:-1]  # without the boundary
        total, tokens = total + float(kl.sum()), tokens + len(kl)
    entry = shift_of(run)["checkpoints"][-1]["totals"]["prompt"]
    assert entry["tokens"] == tokens
    assert entry["base_to_tuned"]["value"] == pytest.approx(total / tokens, rel=1e-4)
    assert total / tokens > 1e-3


def test_what_is_measured_is_not_measured_again(cli: Cli, run: Path, story: Path) -> None:
    words = ["shift", run, "--general_text", story]
    assert cli(*words).code == 0
    # A number that no measurement gives: where it comes back, nothing was measured.
    found = shift_of(run)
    found["checkpoints"][0]["totals"]["prompt"]["base_to_tuned"]["value"] = 123.456
    (run / "shift.json").write_text(json.dumps(found))
    assert "123.456" in cli(*words).out
    # An interrupted call with more checkpoints keeps it too, and adds the rest.
    more = cli(*words, "--checkpoints", "all")
    assert more.code == 0, more.err
    kept = {
        entry["name"]: entry["totals"]["prompt"]["base_to_tuned"]["value"] for entry in shift_of(run)["checkpoints"]
    }
    assert kept["final"] == kept["checkpoint-6"] == 123.456  # the same weights
    assert kept["checkpoint-3"] != 123.456
    # Back to the last one: the checkpoints' measurements stay in the file.
    assert cli(*words).code == 0
    assert len(shift_of(run)["checkpoints"]) == 3
    # With other settings or texts it is measured anew, and that is said.
    other = cli(*words, "--limit", 5)
    assert "measured anew" in other.err
    assert "123.456" not in other.out
    story.write_text(STORY[:-40])
    assert "sources" in cli(*words, "--limit", 5).err
    (run / "shift.json").write_text("{")
    damaged = cli(*words)
    assert damaged.code == 0
    assert "damaged" in damaged.err


def test_an_adapter_of_zero_steps_shows_no_shift(cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "still"
    words = ["train", "--model_name_or_path", model, "--dataset_name", data, "--output_dir", run, "--max_steps", 1]
    assert cli(*words, *TRAIN, "--learning_rate", 0).code == 0
    result = cli("shift", run)
    assert result.code == 0, result.err
    (final,) = shift_of(run)["checkpoints"]
    for entry in final["regions"].values():
        assert abs(entry["base_to_tuned"]["value"]) < 1e-6
        assert abs(entry["tuned_to_base"]["value"]) < 1e-6
        assert entry["base_nll"]["value"] == entry["tuned_nll"]["value"]


def test_a_run_that_trained_the_whole_model(cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "full"
    words = ["--dataset_name", data, "--output_dir", run, "--use_peft", "false", "--reference", model]
    more = [*TRAIN[:4], "--save_steps", 1, "--max_steps", 2, "--learning_rate", "1e-3"]
    trained = cli("train", "--model_name_or_path", model, *words, *more)
    assert trained.code == 0, trained.err
    result = cli("shift", run, "--checkpoints", "all")
    assert result.code == 0, result.err
    one, two, final = shift_of(run)["checkpoints"]
    assert 1e-5 < one["totals"]["data"]["base_to_tuned"]["value"] != two["totals"]["data"]["base_to_tuned"]["value"]
    assert two["totals"] == final["totals"]


def test_a_part_held_out_is_what_is_measured_on(cli: Cli, model: Path, tmp_path: Path) -> None:
    run, data = tmp_path / "held", write_rows(tmp_path / "rows.jsonl", records(10))
    words = ["train", "--model_name_or_path", model, "--dataset_name", data, "--output_dir", run, "--max_steps", 1]
    trained = cli(*words, *TRAIN, "--held_out", 0.3)
    assert trained.code == 0, trained.err
    assert "held out: 3 of 10" in trained.err
    result = cli("shift", run)
    assert result.code == 0, result.err
    assert shift_of(run)["sources"]["data"]["rows"] == 3


def test_a_file_of_settings_and_flags_that_go_before_it(cli: Cli, run: Path, tmp_path: Path) -> None:
    config = tmp_path / "shift.yaml"
    config.write_text("limit: 4\nlayers: false\nseed: 3\n")
    result = cli("shift", run, "--config", config, "--limit", 2)
    assert result.code == 0, result.err
    found = shift_of(run)
    assert (found["settings"]["limit"], found["settings"]["seed"]) == (2, 3)
    assert found["checkpoints"][0]["layers"] == []
    config.write_text("limt: 4\n")
    wrong = cli("shift", run, "--config", config)
    assert wrong.code == 2
    assert "Did you mean 'limit'" in wrong.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--general_text", "{folder}/stry.txt"], "Did you mean 'story.txt'"),
        (["--general_text", "{folder}/list.json"], "something else than texts"),
        (["--general_text", "{folder}/empty.txt"], "holds no text"),
        (["--general_text", "{folder}"], "it is a folder"),
        (["--limit", "-1"], "--limit is -1"),
        (["--max_length", "12"], "fits max_length=12"),
        (["--dataset_name", "{folder}/rows.jsn"], "rows.jsn"),
        (["--dataset_name", "{folder}/pairs.jsonl"], "trl's own formats"),
        (["--checkpoint", "all"], "--checkpoints"),
    ],
)
def test_mistakes_are_named(cli: Cli, run: Path, tmp_path: Path, story: Path, words: list[str], says: str) -> None:
    (tmp_path / "list.json").write_text('{"a": 1}')
    (tmp_path / "empty.txt").write_text(" \n")
    write_rows(tmp_path / "pairs.jsonl", [{"prompt": "a", "completion": "b"}])
    result = cli("shift", run, *(word.format(folder=tmp_path) for word in words))
    assert result.code == 2
    assert says in result.err
    assert "\n\nhint: " in result.err
    assert "Traceback" not in result.err
    assert result.out == ""
    assert not (run / "shift.json").exists()


def test_another_base_or_a_torn_adapter_is_refused(cli: Cli, data: Path, tmp_path: Path) -> None:
    base, run = save_model(tmp_path / "base"), tmp_path / "run"
    words = ["train", "--model_name_or_path", base, "--dataset_name", data, "--output_dir", run, "--max_steps", 1]
    assert cli(*words, *TRAIN).code == 0
    whole = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(whole[:-64] + bytes(64))
    other = cli("shift", run)
    assert other.code == 2
    assert "not those that the run" in other.err
    (base / "model.safetensors").write_bytes(whole)
    settings = run / "adapter" / "adapter_config.json"
    kept = settings.read_text()
    settings.write_text(kept.replace('"r": 4', '"r": 8'))
    assert settings.read_text() != kept
    shaped = cli("shift", run)
    assert shaped.code == 2, shaped.err
    assert "does not fit the base model" in shaped.err
    settings.write_text(kept)
    adapter = run / "adapter" / "adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:1000])
    torn = cli("shift", run)
    assert torn.code == 2, torn.err
    assert "Traceback" not in torn.err
    assert str(run / "adapter") in torn.err
    adapter.unlink()
    gone = cli("shift", run)
    assert gone.code == 2
    assert "no weights" in gone.err


# ---- relate --------------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(cli: Cli, run: Path, story: Path, tmp_path: Path) -> list[Path]:
    """Copies of one measured run, whose numbers lie on a line: forgetting = 2 · shift - 1."""
    assert cli("shift", run, "--general_text", story).code == 0
    found = []
    for number, shift in enumerate([0.5, 1.0, 1.25, 2.0]):
        copy = Path(shutil.copytree(run, tmp_path / f"run-{number}"))
        whole = shift_of(copy)
        whole["run"]["alpha"] = number
        entry = whole["checkpoints"][-1]
        entry["totals"]["prompt"]["base_to_tuned"]["value"] = shift
        general = entry["regions"]["general_text"]
        general["tuned_nll"]["value"] = general["base_nll"]["value"] + 2 * shift - 1
        (copy / "shift.json").write_text(json.dumps(whole))
        found.append(copy)
    return found


def test_runs_are_related_and_drawn(cli: Cli, runs: list[Path], tmp_path: Path) -> None:
    picture = tmp_path / "pictures" / "line.svg"
    result = cli("relate", *runs, "--output", picture, "--resamples", 500)
    assert result.code == 0, result.err
    assert "Pearson 1.00" in result.out
    assert "(4 runs)" in result.out
    assert [line.split()[4:] for line in result.out.splitlines()[1:5]] == [
        ["0.5000", "+0.0000"], ["1.0000", "+1.0000"], ["1.2500", "+1.5000"], ["2.0000", "+3.0000"],
    ]  # fmt: skip
    assert picture.read_text().startswith("<?xml")
    whole = json.loads(cli("relate", *runs, "--json", "--resamples", 500).out)
    assert whole["pearson"]["value"] == pytest.approx(1)
    assert whole["spearman"]["value"] == pytest.approx(1)
    assert [point["run"] for point in whole["of"]] == ["run-0", "run-1", "run-2", "run-3"]


def test_what_cannot_be_related_is_named(
    cli: Cli, runs: list[Path], trained: tuple[Path, Result], tmp_path: Path
) -> None:
    few = cli("relate", *runs[:2])
    twice = cli("relate", *runs, runs[0])
    ending = cli("relate", *runs, "--output", tmp_path / "a.pdf")
    unmeasured = cli("relate", *runs, trained[0])
    whole = shift_of(runs[3])
    whole["sources"]["general_text"]["files"][0]["hash"] = "sha256:other"
    (runs[3] / "shift.json").write_text(json.dumps(whole))
    other = cli("relate", *runs)
    for result, says in (
        (few, "2 runs"), (twice, "named twice"), (ending, ".pdf"), (unmeasured, "is not measured"),
        (other, "general_text"),
    ):  # fmt: skip
        assert result.code == 2, result.err
        assert says in result.err
        assert "Traceback" not in result.err
        assert result.out == ""
