from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from selfaug.run.checkpoint import last_whole
from selfaug.training.callbacks import kept_entries

from .conftest import ENVIRONMENT, TRAIN, Cli, Result, records, write_rows


def words(model: Path, data: Path, run: Path, steps: int) -> list[str]:
    given = ["--model_name_or_path", model, "--dataset_name", data, "--output_dir", run, "--max_steps", steps, *TRAIN]
    return ["train", *map(str, given)]


def weights(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def test_the_run_folder_is_complete_and_stdout_names_the_adapter(trained: tuple[Path, Result]) -> None:
    run, result = trained
    assert sorted(path.name for path in run.iterdir()) == [
        "adapter", "checkpoints", "config.yaml", "log.jsonl", "manifest.json",
    ]  # fmt: skip
    assert result.out == f"{run / 'adapter'}\n"
    assert "rows kept" in result.err.split("step 1/6")[0]
    assert not list((run / "adapter").glob("*.bin"))
    assert {"adapter_model.safetensors", "selfaug_renderer.json", "tokenizer.json", "README.md"} <= {
        path.name for path in (run / "adapter").iterdir()
    }


def test_the_log_is_json_and_the_numbers_are_there(trained: tuple[Path, Result]) -> None:
    entries = [json.loads(line) for line in (trained[0] / "log.jsonl").read_text().splitlines()]
    steps = [entry for entry in entries if "loss" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4, 5, 6]
    for entry in steps:
        assert entry["loss"] == pytest.approx(entry["nll"] + 2.0 * entry["alignment"], rel=1e-4)
    # Otherwise the equation above would hold of two equal models.
    assert steps[-1]["alignment"] > 1e-3


def test_the_manifest_says_what_was_trained_on(trained: tuple[Path, Result], data: Path, model: Path) -> None:
    manifest = json.loads((trained[0] / "manifest.json").read_text())
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    assert manifest["data"]["train"]["files"] == [
        {"path": str(data), "bytes": data.stat().st_size, "hash": f"sha256:{digest}"}
    ]
    assert manifest["data"]["train"]["rows"] == 12
    assert manifest["model"]["name"] == str(model)
    assert manifest["seeds"]["seed"] == 42
    assert manifest["finished"]["steps"] == 6
    assert manifest["lengths"]["train"]["kept"] == 12


def test_the_adapter_loads_and_the_renderer_gives_the_trained_prompt(trained: tuple[Path, Result], model: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from selfaug.data.prompts import Renderer
    from selfaug.data.record import Document, Record

    base = AutoModelForCausalLM.from_pretrained(model)
    tuned = PeftModel.from_pretrained(base, str(trained[0] / "adapter")).eval()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        on = tuned(input_ids=ids).logits
        with tuned.disable_adapter():
            off = tuned(input_ids=ids).logits
    assert (on - off).abs().max() > 1e-2

    row = records(1)[0]
    document = row["documents"][0]
    record = Record(row["question"], (Document(document["text"], document["title"]),), (row["answer"],))
    saved = Renderer.load(trained[0] / "adapter")
    saved_tokenizer = AutoTokenizer.from_pretrained(trained[0] / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(model)
    trained_on = Renderer.for_tokenizer(tokenizer).prompt_ids(tokenizer, record)
    assert saved.prompt_ids(saved_tokenizer, record) == trained_on
    text = tokenizer.decode(trained_on)
    assert document["text"] in text
    assert row["question"] in text


def test_the_card_names_base_data_and_settings_but_no_folder(
    trained: tuple[Path, Result], data: Path, model: Path
) -> None:
    card = (trained[0] / "adapter" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "peft"
    assert data.name in card
    assert model.name in card
    assert str(model.parent) not in card


def test_the_saved_settings_train_the_same_adapter(cli: Cli, trained: tuple[Path, Result], tmp_path: Path) -> None:
    result = cli("train", "--config", trained[0] / "config.yaml", "--output_dir", tmp_path / "again")
    assert result.code == 0, result.err
    assert weights(tmp_path / "again") == weights(trained[0])


@pytest.mark.nightly
def test_a_resumed_run_ends_as_the_uninterrupted_one(cli: Cli, trained: tuple[Path, Result], tmp_path: Path) -> None:
    """SIGINT at step 4, which no setting would have saved, then `--resume_from_checkpoint`."""
    run = tmp_path / "run"
    plant = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    settings = yaml.safe_load((trained[0] / "config.yaml").read_text())
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPING_AT.format(step=4, plant=plant), "train", "--config",
         str(trained[0] / "config.yaml"), "--output_dir", str(run)],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert out == ""
    assert not (run / "adapter").exists()
    whole = last_whole(run / "checkpoints")
    assert whole is not None
    assert whole.name == "checkpoint-4"
    assert settings["save_steps"] == 3  # so the signal made this checkpoint
    result = cli("train", "--config", run / "config.yaml", "--resume_from_checkpoint")
    assert result.code == 0, result.err
    assert weights(run) == weights(trained[0])
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines() if '"loss"' in line]
    assert steps == [1, 2, 3, 4, 5, 6]
    manifest = json.loads((run / "manifest.json").read_text())
    assert [entry["checkpoint"] for entry in manifest["resumed"]] == ["checkpoint-4"]


# Runs `selfaug`; when step N begins, something happens to its process.
STOPPING_AT = """
import sys
from transformers import TrainerCallback
import selfaug.training.callbacks as callbacks
install = callbacks.install
class Plant(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == {step} - 1:
            {plant}
def planted(trainer, log):
    stop = install(trainer, log)
    trainer.add_callback(Plant())
    return stop
callbacks.install = planted
from selfaug.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def started(command: list[str]) -> subprocess.Popen[str]:
    """A real training, once its third step is logged."""
    process = subprocess.Popen(
        [sys.executable, "-m", "selfaug", *command],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("step 3/"):
            return process
    raise AssertionError("".join(said))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.nightly), (signal.SIGTERM, 143)]
)
def test_a_signal_saves_and_ends(model: Path, data: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = started(words(model, data, tmp_path / "run", 100_000))
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert out == ""
    assert "Traceback" not in err
    assert "--resume_from_checkpoint" in err
    whole = last_whole(tmp_path / "run" / "checkpoints")
    assert whole is not None
    assert int(whole.name.split("-")[1]) < 100_000
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.distributed
def test_a_signal_ends_both_of_two_processes(model: Path, data: Path, tmp_path: Path) -> None:
    process = started([*words(model, data, tmp_path / "run", 100_000), "--num_processes", "2"])
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    whole = last_whole(tmp_path / "run" / "checkpoints")
    assert whole is not None
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["device"]["processes"] == 2
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path / "run") not in left


@pytest.mark.nightly
def test_a_second_signal_ends_at_once(model: Path, data: Path, tmp_path: Path) -> None:
    plant = "import os, signal; os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGINT)"
    done = subprocess.run(
        [sys.executable, "-c", STOPPING_AT.format(step=2, plant=plant), *words(model, data, tmp_path / "run", 50)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=300,
    )
    assert done.returncode == 130, done.stderr
    assert last_whole(tmp_path / "run" / "checkpoints") is None
    assert "step 2/" not in done.stderr


def test_a_non_finite_loss_ends_the_run_with_a_hint(cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
    result = cli(*words(model, data, tmp_path / "run", 50), "--learning_rate", "1e30", "--max_grad_norm", "0")
    assert result.code == 2, result.err
    assert "Traceback" not in result.err
    assert "not finite" in result.err
    assert "hint: lower --learning_rate" in result.err


def test_an_export_without_weights_fails_and_the_checkpoint_exports_later(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from selfaug import SelfAugTrainer
    from selfaug.cli.main import main

    run, save = tmp_path / "run", SelfAugTrainer.save_model

    def without_weights(trainer: SelfAugTrainer, output_dir: str | None = None, _internal_call: bool = False) -> None:
        save(trainer, output_dir, _internal_call)
        if not _internal_call:
            (Path(str(output_dir)) / "adapter_model.safetensors").unlink()

    with monkeypatch.context() as broken:
        broken.setattr(SelfAugTrainer, "save_model", without_weights)
        assert main(words(model, data, run, 3)) == 2
    assert "is not whole (it has no weights)" in capsys.readouterr().err
    assert not (run / "adapter").exists()
    checkpoint = last_whole(run / "checkpoints")
    assert checkpoint == run / "checkpoints" / "checkpoint-3"
    assert main([*words(model, data, run, 3), "--resume_from_checkpoint", "true"]) == 0
    assert weights(run) == (checkpoint / "adapter_model.safetensors").read_bytes()


def test_held_out_records_are_evaluated_and_not_trained_on(cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = cli(*words(model, data, run, 3), "--held_out", "0.25")
    assert result.code == 0, result.err
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["data"]["train"]["rows"], manifest["data"]["eval"]["rows"]) == (9, 3)
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    evaluations = [entry for entry in entries if "eval_loss" in entry]
    assert evaluations
    for entry in evaluations:
        assert entry["eval_loss"] == pytest.approx(entry["eval_nll"] + 2.0 * entry["eval_alignment"], rel=1e-6)


def test_an_eval_file_that_leaks_is_told(cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
    leaking = write_rows(tmp_path / "eval.jsonl", records(2))
    result = cli(*words(model, data, tmp_path / "run", 1), "--eval_dataset", leaking)
    assert result.code == 0, result.err
    assert "not independent" in result.err
    assert "leak: 2 rows of 2 are also rows of the training data (2 letter by letter)" in result.err
    assert result.err.index("leak:") < result.err.index("step 1/1"), "said before the first step"


def test_a_hub_style_folder_trains_its_training_shards_and_evaluates_its_test_shards(
    cli: Cli, model: Path, tmp_path: Path
) -> None:
    rows, folder = records(12), tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    write_rows(folder / "train-00000-of-00002.jsonl", rows[:4])
    write_rows(folder / "train-00001-of-00002.jsonl", rows[4:9])
    write_rows(folder / "test-00000-of-00001.jsonl", rows[9:])
    run = tmp_path / "run"
    result = cli(*words(model, folder.parent, run, 1), "--eval_strategy", "steps", "--eval_steps", "1")
    assert result.code == 0, result.err
    data = json.loads((run / "manifest.json").read_text())["data"]
    assert [Path(file["path"]).name[:11] for file in data["train"]["files"]] == ["train-00000", "train-00001"]
    assert (data["train"]["rows"], data["eval"]["rows"]) == (9, 3)
    assert "Not read: test (data/test-00000-of-00001.jsonl)" in result.err
    (folder / "train-00000-of-00002.jsonl").unlink()
    result = cli(*words(model, folder.parent, tmp_path / "run2", 1))
    assert result.code == 2
    assert "data/train-00000-of-00002 is missing" in result.err
    assert not (tmp_path / "run2").exists()


def test_full_fine_tuning_saves_a_model(cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    run = tmp_path / "run"
    result = cli(*words(model, data, run, 2), "--use_peft", "false", "--reference", model)
    assert result.code == 0, result.err
    assert result.out == f"{run / 'model'}\n"
    tuned = AutoModelForCausalLM.from_pretrained(run / "model").state_dict()
    base = AutoModelForCausalLM.from_pretrained(model).state_dict()
    assert any(not tuned[name].equal(base[name]) for name in base)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "What did Tom find?", "completion": " a red ball"},
        {"messages": [{"role": "user", "content": "Who sleeps?"}, {"role": "assistant", "content": "the cat"}]},
    ],
)
def test_formats_of_trl_train_too(cli: Cli, model: Path, tmp_path: Path, row: dict) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [row] * 8)
    result = cli(*words(model, file, tmp_path / "run", 2))
    assert result.code == 0, result.err
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert entries[0]["aligned_tokens"] > 0


def test_an_overwritten_run_leaves_nothing_of_the_old_one(cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli(*words(model, data, run, 3)).code == 0
    old = weights(run)
    result = cli(*words(model, data, run, 2), "--seed", "7", "--overwrite_output_dir", "true")
    assert result.code == 0, result.err
    assert weights(run) != old
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert '"step": 3' not in (run / "log.jsonl").read_text()


def test_kept_entries_are_those_of_steps_that_stand() -> None:
    lines = [json.dumps({"step": step}) for step in (1, 2, 2, 3)]
    text = "\n".join([*lines, '{"step": 2, "lo'])
    assert kept_entries(text, 2) == lines[:3]
    assert kept_entries(text, 0) == []
    assert kept_entries("", 5) == []


@pytest.mark.shared
def test_a_real_model_and_real_stories(cli: Cli, stories260k: Path, shared: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    data = shared / "data" / "mctest" / "mc160.dev.tsv"
    result = cli(*words(stories260k, data, run, 4), "--learning_rate", "2e-3", env={"HF_HUB_OFFLINE": "1"})
    assert result.code == 0, result.err
    losses = [json.loads(line)["nll"] for line in (run / "log.jsonl").read_text().splitlines() if '"loss"' in line]
    assert losses[-1] < losses[0]
    assert weights(run)


def test_a_target_of_the_shift_is_named_beside_what_was_reached(
    cli: Cli, model: Path, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    result = cli(*words(model, data, run, 3), "--align_target", "0.05")
    assert result.code == 0, result.err
    metrics = json.loads((run / "manifest.json").read_text())["finished"]["metrics"]
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [entry for entry in entries if "nll" in entry][:3]
    assert [entry["step"] for entry in steps] == [1, 2, 3]
    assert len({2.0, *(entry["alpha"] for entry in steps)}) > 2, "the weight moves"
    for before, entry in zip([2.0, *(entry["alpha"] for entry in steps)], steps, strict=False):
        assert entry["loss"] == pytest.approx(entry["nll"] + before * entry["alignment"], rel=1e-4)
    assert (metrics["align_target"], metrics["alpha"]) == (0.05, steps[-1]["alpha"])
    assert f"shift of the prompts: {metrics['shift']:.3g} nats a token" in result.err
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert (resolved["alpha"], resolved["align_target"]) == (None, 0.05)
