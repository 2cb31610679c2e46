"""`selfaug tune`: rounds within the budget, an adapter that keeps the limit, nothing repeated, mistakes told."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfaug.cli.main import main
from selfaug.common.errors import ConfigError
from tests.cli.conftest import Cli, study_files
from tests.cli.test_compare import in_forks
from tests.models import save_tiny
from tests.runs import finished_run

PROMPT = '{"mode": "plain", "system": "", "abstention": "w96"}'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def words(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    rows, texts = study_files(folder, 24, 12)
    return [
        "tune", "--rates", "0.02", "0.2", "--alphas", "2", "0.5", "--budget_steps", "60",
        "--general_data", str(texts), "--data", str(rows), "--max_new_tokens", "2",
        "--score", "task:answer_nll", "--model_name_or_path", str(model), "--dataset_name", str(rows),
        "--probe", str(rows), "--per_device_train_batch_size", "4", "--report_to", "none",
        "--use_cpu", "true", "--prompt", PROMPT,
    ]  # fmt: skip


def value(command: list[str], flag: str) -> str:
    return command[command.index(flag) + 1]


def played(monkeypatch: pytest.MonkeyPatch, model: Path, *, breaks: float = 0.0) -> list[list[str]]:
    """In place of trainings: adapters of random weights, and logs in which a higher rate learns and moves more.

    Runs at the rate ``breaks`` end with an error.
    """
    commands: list[list[str]] = []

    def run(command: list[str], stdout: Any, **_: Any) -> SimpleNamespace:
        assert command[3] == "train"
        commands.append(command)
        rate, alpha, steps = (float(value(command, flag)) for flag in ("--learning_rate", "--alpha", "--max_steps"))
        if rate == breaks:
            stdout.write("error: the loss is not finite\n")
            return SimpleNamespace(returncode=2)
        folder = Path(value(command, "--output_dir"))
        finished_run(folder, model, perturb=0.05)
        gain, shift = 10 * rate, 4 * rate / alpha
        events = [{"step": 0, "eval_nll": 5.0}, {"step": 0, "probe_kl": 0.0}, {"step": steps, "probe_kl": shift},
                  {"step": steps, "eval_nll": 5.0 - gain}]  # fmt: skip
        (folder / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr("selfaug.study.run.subprocess", SimpleNamespace(run=run))
    return commands


def test_rounds_end_in_an_adapter_that_keeps_the_limit_and_are_not_repeated(
    words: list[str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = played(monkeypatch, model)
    line = [*words, "--max_drop", "text:texts=3", "--allowed_shift", "0.1", "--output_dir", str(tmp_path / "out")]
    assert main(line) == 0
    out = capsys.readouterr().out
    steps = [int(value(command, "--max_steps")) for command in commands]
    assert steps == [5] * 4 + [10] * 2 + [20]
    assert sum(steps) <= 60
    found = json.loads((tmp_path / "out" / "tune.json").read_text())
    assert found["steps"] == 60
    # 0.2: a gain of 2 at shifts of 0.4 (alpha 2) and 1.6: by hand 2 sqrt(1/4) = 1 and 2 sqrt(1/16) = 0.5.
    by_hand = {(0.02, 2.0): 0.2, (0.02, 0.5): 0.2 * (0.1 / 0.16) ** 0.5, (0.2, 2.0): 1.0, (0.2, 0.5): 0.5}
    first = {(row["learning_rate"], row["alpha"]): row["score"] for row in found["tried"][:4]}
    assert first == pytest.approx(by_hand)
    assert [(row["learning_rate"], row["alpha"]) for row in found["tried"][4:]] == [(0.2, 2.0), (0.2, 0.5), (0.2, 2.0)]
    assert found["chosen"] == "selfaug_learning_rate=0.2_max_steps=20_alpha=2_seed=42"
    assert found["exit_code"] == 0
    adapter = tmp_path / "out" / "adapter"
    assert (adapter / "adapter_config.json").is_file()
    assert found["adapter"] == str(adapter)
    assert [words[-1] for words in map(str.split, out.splitlines()[1:8])] == [
        "no",
        "no",
        "yes",
        "yes",
        "yes",
        "no",
        "yes",
    ]
    assert "confirming" in out, "the table of the scaling"

    assert main(line) == 0
    assert len(commands) == 7


def test_a_limit_that_no_scale_keeps_gives_the_gates_code_and_no_adapter(
    words: list[str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played(monkeypatch, model, breaks=0.2)
    earlier = tmp_path / "out" / "adapter"
    earlier.mkdir(parents=True)
    (earlier / "scale.json").write_text("{}")  # of a call with other limits
    limits = ["--max_drop", "text:texts=3", "--min_gain", "task:answer_nll=50"]
    assert main([*words, *limits, "--output_dir", str(tmp_path / "out")]) == 1
    found = json.loads((tmp_path / "out" / "tune.json").read_text())
    assert (found["exit_code"], found["adapter"]) == (1, None)
    assert not (tmp_path / "out" / "adapter").exists()
    failed = [row for row in found["tried"] if "score" not in row]
    assert {row["learning_rate"] for row in failed} == {0.2}, "runs that diverge are left behind"
    assert found["chosen"].startswith("selfaug_learning_rate=0.02_")


@pytest.mark.nightly
def test_real_runs_killed_at_the_end_go_on_where_they_were(
    words: list[str], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = in_forks(cli, monkeypatch)
    line = [*words, "--max_drop", "text:texts=3", "--output_dir", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr("selfaug.cli.scale.run", lambda call: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(line) == 130
    assert len(commands) == 7
    assert main(line) in (0, 1, 3)
    assert len(commands) == 7
    found = json.loads((tmp_path / "out" / "tune.json").read_text())
    assert all(row["before"] != row["after"] and row["shift"] > 0 for row in found["tried"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ((), "no limit on forgetting"),
        (("--max_drop", "general"), "does not say what may change"),
        (("--max_drop", "text:textes=3"), "Did you mean 'text:texts'"),
        (("--max_drop", "general=2pt"), "text:texts is measured in nats"),
        (("--max_drop", "general=2pt", "--general", "quik"), "Did you mean 'quick'"),
        (("--max_drop", "general=3", "--score", "taks"), "--score taks: nothing that is measured"),
        (("--max_drop", "general=3", "--batch_size", "0"), "batch_size is 0"),
        (("--max_drop", "general=3", "--use_peft", "false"), "use_peft=false trains whole models"),
        (("--max_drop", "general=3", "--resume_from_checkpoint", "true"), "the same command again goes on"),
        (("--max_drop", "general=3", "--dry_run", "true"), "--dry_run is about one training"),
        (("--max_drop", "general=3", "--use_dora", "true"), "use_dora: DoRA also trains the length"),
        (("--max_drop", "general=3", "--data", "chats.jsonl"), "holds conversations, and answers are scored"),
        (("--max_drop", "general=2pt", "--budget_steps", "59"), "leaves 4 steps"),
        (("--max_drop", "general=2pt", "--alphas", "0"), "alphas are [0.0]"),
        (("--max_drop", "general=2pt", "--rates", "-1"), "rates are [-1.0]"),
        (("--max_drop", "general=2pt", "--allowed_shift", "0"), "allowed_shift=0.0"),
        (("--max_drop", "general=2pt", "--max_steps", "9"), "--max_steps is what tuning chooses"),
        (("--max_drop", "general=2pt", "--alpha", "1"), "--alpha is what tuning chooses"),
        (("--max_drop", "general=2pt", "--learning_rat", "1"), "--learning_rat"),
        (("--max_drop", "general=2pt", "--data", "./none.jsonl"), "data './none.jsonl' does not exist"),
        (("--max_drop", "general=2pt", "--dataset_name", "./none.jsonl"), "none.jsonl' does not exist"),
        (("--max_drop", "general=2pt", "--processes", "0"), "processes=0"),
    ],
)
def test_mistakes_are_told_before_any_training(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    change: tuple[str, ...], says: str,
) -> None:  # fmt: skip
    (tmp_path / "chats.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "w3"}, {"role": "assistant", "content": "w4"}]}) + "\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main([*words, *change, "--output_dir", str(tmp_path / "none")]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert "hint:" in err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("limits", "allowed"),
    [
        (("--max_drop", "text:texts=3", "--max_drop", "general=0.5"), 0.5),
        (("--max_drop", "text:texts=3", "--max_drop", "task:answer_nll=0.01"), 3.0),
        (("--max_drop", "text:texts=3", "--min_gain", "task:answer_nll=0.01"), 3.0),
        (("--max_drop", "text:texts=50%"), 0.05),
        (("--max_drop", "text:texts=3", "--allowed_shift", "0.2"), 0.2),
    ],
)
def test_limits_on_texts_in_nats_alone_say_which_shift_is_allowed(
    words: list[str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: list[str], allowed: float
) -> None:
    given: list[float] = []

    def best(found: Any, count: int, shift: float) -> Any:
        given.append(shift)
        raise ConfigError("enough", "none")

    played(monkeypatch, model)
    monkeypatch.setattr("selfaug.study.ladder.best", best)
    assert main([*words, *limits, "--output_dir", str(tmp_path / "out")]) == 2
    assert given == [allowed]


def test_an_adapter_of_somebody_else_is_no_place_for_the_result(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert main([*words, "--max_drop", "general=3", "--output_dir", str(tmp_path)]) == 2
    assert "holds other files (adapter_config.json), which would be lost" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists(), "told before any training"
