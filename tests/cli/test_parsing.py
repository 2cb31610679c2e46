from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfaug.cli.config import build_parser, read_words, resolved
from selfaug.cli.options import AUTO, DIFFERENT_DEFAULTS, TRAIN
from selfaug.cli.parsing import build, options, parse
from selfaug.common.errors import ConfigError


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_every_flag_of_trl_sft_is_here_and_holds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    from trl.scripts.sft import make_parser

    theirs, known = make_parser(), options()
    ours = build_parser(TRAIN, known)
    actions = [action for action in theirs._actions if action.dest != "help"]
    assert len({action.dest for action in actions}) > 150
    taken = 0
    for action in actions:
        words = [
            [],
            ["3"],
            ["0.5"],
            ["true"],
            ["no"],
            ["none"],
            ["all"],
            ["underflow_overflow"],
            ["a", "b"],
            ["2", "3"],
        ]
        words += [[str(choice)] for choice in action.choices or ()]
        for flag in action.option_strings:
            for typed in words:
                try:
                    expected = getattr(theirs.parse_args([flag, *typed]), action.dest)
                except SystemExit:
                    continue
                found, rest = read_words(ours, known, [flag, *typed])
                assert (found, rest) == ({action.dest: expected}, []), (flag, typed)
                taken += 1
    assert taken > 2 * len(actions)
    capsys.readouterr()


def test_every_setting_of_a_file_is_that_of_its_flag() -> None:
    known = options()
    parser = build_parser(TRAIN, known)
    taken = 0
    for name, option in known.items():
        lists = [["a"], [2, 3]] if option.elements else []
        for value in (3, 0.5, "a", "true", "underflow_overflow", *lists, *option.choices):
            words = [str(one) for one in (value if isinstance(value, list) else [value])]
            try:
                typed, _ = read_words(parser, known, [f"--{name}", *words])
                read = option.read(value, "settings.yaml")
            except ConfigError:
                continue
            assert read == typed[name], (name, value)
            taken += 1
    assert taken > 2 * len(known)


def test_defaults_are_those_of_trl_but_for_the_table() -> None:
    from trl.scripts.sft import make_parser

    theirs, ours = vars(make_parser().parse_args([])), resolved(options(), {}, {})
    assert set(theirs) <= set(ours)
    assert {name for name in theirs if theirs[name] != ours[name]} == {*DIFFERENT_DEFAULTS} - {"bf16"}
    for name, different in DIFFERENT_DEFAULTS.items():
        assert theirs[name] == different.trl, name


def test_a_script_reads_our_settings_with_trls_own_parser() -> None:
    from trl import TrlParser

    from selfaug.training.config import SelfAugConfig

    parser = TrlParser((SelfAugConfig,))
    (read,) = parser.parse_args_and_config(["--align_fraction", "0.5", "--objective", "plain", "--bf16", "false"])
    assert (read.align_fraction, read.objective, read.align_direction) == (0.5, "plain", "base_to_tuned")
    assert "Weight of the alignment" in parser.format_help()


def test_defaults_of_ours() -> None:
    values = parse([]).values
    assert (values["use_peft"], values["lora_target_modules"], values["max_length"]) == (True, ["all-linear"], AUTO)
    built = build({**values, "max_length": 64})
    assert built.model.lora_target_modules == "all-linear"
    assert built.training.alpha == 2.0


@pytest.mark.parametrize(
    ("flags", "expected"), [([], 0.5), (["--alpha", "3"], 3.0), (["--alpha=4"], 4.0), (["--alpha", "none"], None)]
)
def test_a_flag_wins_over_the_file(tmp_path: Path, flags: list[str], expected: float | None) -> None:
    file = write(tmp_path / "a.yaml", "alpha: 0.5\nlogging_steps: 7\n")
    arguments = parse(["--config", str(file), *flags])
    assert arguments.values["alpha"] == expected
    assert arguments.values["logging_steps"] == 7
    assert {"alpha", "logging_steps"} <= arguments.given


def test_yaml_values_become_what_the_flag_would_hold(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.yaml",
        "learning_rate: 1e-4\neval_strategy: no\nlora_target_modules: [q_proj, v_proj]\nresume_from_checkpoint: true\n"
        "model_revision: 3\npacking: 1\nmax_length: null\nreport_to: none\nprompt: {order: best_first}\n",
    )
    values = parse(["--config", str(file)]).values
    expected = {
        "learning_rate": 1e-4,
        "eval_strategy": "no",
        "lora_target_modules": ["q_proj", "v_proj"],
        "resume_from_checkpoint": "true",
        "model_revision": "3",
        "packing": True,
        "max_length": None,
        "report_to": "none",
        "prompt": {"order": "best_first"},
    }
    assert {name: values[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("alpa: 1", ["'alpa'", "Did you mean 'alpha'?"]),
        ("num_procesess: 2", ["Did you mean 'num_processes'?"]),
        ("alpha: [1]", ["alpha is [1]", "a number"]),
        ("learning_rate: true", ["learning_rate is True", "a number"]),
        ("per_device_train_batch_size: 1.5", ["1.5", "a whole number"]),
        ("packing: maybe", ["'maybe'", "true or false"]),
        ("seed: null", ["seed is None"]),
        ("eval_strategy: sometimes", ["one of no, steps, epoch"]),
        ("align_direction: base_to_tund", ["one of", "Did you mean 'base_to_tuned'?"]),
        ("alpha: 1\nalpha: 2", ["line 2", "'alpha' stands twice"]),
        ("alpha: 1\nb: c: d", ["line 2"]),
        ("- alpha", ["no mapping"]),
        ("env: 3", ["env is 3"]),
        ("num_processes: many", ["num_processes", "'many'"]),
        ("use_fsdp: 3", ["true or false"]),
    ],
)
def test_a_wrong_file_is_named_with_key_and_value(tmp_path: Path, text: str, words: list[str]) -> None:
    file = write(tmp_path / "wrong.yaml", text + "\n")
    with pytest.raises(ConfigError) as error:
        parse(["--config", str(file)])
    for word in words:
        assert word in error.value.message
    assert error.value.hint


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--learning_rat", "1"], ["'--learning_rat'", "Did you mean '--learning_rate'?"]),
        (["--learning-rat", "1"], ["'--learning-rat'", "Did you mean '--learning_rate'?"]),
        (["--num_procesess", "2"], ["Did you mean '--num_processes'?"]),
        (["--learning_rate", "fast"], ["--learning_rate", "'fast'"]),
        (["--eval_strategy", "x"], ["--eval_strategy", "'x'"]),
        (["data.jsonl"], ["'data.jsonl'"]),
        (["--num_processes"], ["--num_processes needs a value"]),
        (["--accelerate_config", "zero33"], ["'zero33'", "Did you mean 'zero3'?"]),
        (["--config"], ["--config"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml does not exist"]),
        (["--module", "x"], ["'--module'"]),
    ],
)
def test_a_wrong_flag_is_named(flags: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        parse(flags)
    for word in words:
        assert word in error.value.message


def test_no_abbreviation_is_guessed() -> None:
    with pytest.raises(ConfigError, match=r"--gradient_acc"):
        parse(["--gradient_acc", "4"])


def test_launch_flags_are_the_same_from_file_and_command_line(tmp_path: Path) -> None:
    text = "num_processes: 2\nuse_fsdp: true\nuse_deepspeed: false\naccelerate_config: zero3\n"
    from_file = parse(["--config", str(write(tmp_path / "a.yaml", text))]).launch
    from_flags = parse(["--num_processes=2", "--use_fsdp", "--accelerate_config", "zero3"]).launch
    assert from_file == from_flags
    assert from_flags[:3] == ["--num_processes", "2", "--use_fsdp"]
    assert Path(from_flags[-1]).is_file()
    assert Path(from_flags[-1]).name == "zero3.yaml"


def test_environment_of_the_file_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SELFAUG_TEST_VARIABLE", raising=False)
    parse(["--config", str(write(tmp_path / "a.yaml", "env: {SELFAUG_TEST_VARIABLE: 3}\n"))])
    assert os.environ["SELFAUG_TEST_VARIABLE"] == "3"


def test_resume_without_a_value_means_the_last() -> None:
    assert parse(["--resume_from_checkpoint"]).values["resume_from_checkpoint"] == "true"
    assert parse(["--resume_from_checkpoint", "--packing"]).values["resume_from_checkpoint"] == "true"
    assert parse(["--resume_from_checkpoint", "run/checkpoint-3"]).values["resume_from_checkpoint"].endswith("-3")


@pytest.mark.parametrize("word", ["base", "initial"])
def test_a_folder_does_not_take_a_word_of_the_reference(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / word).mkdir()
    assert parse(["--reference", word]).values["reference"] == word
    assert parse(["--reference", f"./{word}"]).values["reference"] == str(tmp_path / word)


def test_secrets_and_one_call_choices_are_not_in_the_resolved_settings() -> None:
    values = parse(["--hub_token", "SECRET", "--resume_from_checkpoint", "--overwrite_output_dir", "true"]).values
    values["model_init_kwargs"] = {"token": "SECRET", "revision": "a"}
    resolved = build({**values, "max_length": 64}).resolved
    assert "SECRET" not in yaml.safe_dump(resolved)
    assert resolved["model_init_kwargs"] == {"revision": "a"}
    assert not {"hub_token", "resume_from_checkpoint", "overwrite_output_dir"} & resolved.keys()


def test_a_preset_is_resolved_to_what_it_sets() -> None:
    resolved = build({**parse(["--preset", "paper"]).values, "max_length": 64}).resolved
    assert (resolved["alpha"], resolved["align_direction"], resolved["align_boundary"]) == (0.5, "tuned_to_base", True)


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--alpha", "-1"], "alpha"),
        (["--alpha", "nan"], "alpha"),
        (["--align_fraction", "0"], "align_fraction"),
        (["--align_fraction", "2"], "align_fraction"),
        (["--held_out", "1"], "held_out"),
        (["--held_out", "0.1", "--eval_dataset", "x"], "held_out"),
        (["--load_in_4bit", "--load_in_8bit"], "8 bit and 4 bit"),
        (["--prompt", "{"], "prompt"),
        (["--load_best_model_at_end", "--eval_strategy", "epoch"], "load_best_model_at_end"),
    ],
)
def test_data_classes_refuse_with_a_hint(flags: list[str], word: str) -> None:
    with pytest.raises(ConfigError) as error:
        build({**parse(flags).values, "max_length": 64})
    assert word in error.value.message


def test_a_mixture_names_its_wrong_key(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "datasets:\n- pat: x\n")
    with pytest.raises(ConfigError, match="Did you mean 'path'"):
        build({**parse(["--config", str(file)]).values, "max_length": 64})


SOME_SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "alpha": st.floats(0, 10),
        "align_fraction": st.floats(0.01, 1),
        "align_boundary": st.booleans(),
        "learning_rate": st.floats(1e-7, 1),
        "num_train_epochs": st.integers(1, 9),
        "seed": st.integers(0, 2**31),
        "packing": st.booleans(),
        "max_length": st.one_of(st.none(), st.integers(2, 512)),
        "lora_target_modules": st.lists(st.sampled_from(["q_proj", "v_proj", "no"]), min_size=1, max_size=2),
        "model_name_or_path": st.sampled_from(["owner/name", "1e3", "null", "yes"]),
        "eval_strategy": st.sampled_from(["no", "epoch"]),
        "prompt": st.one_of(st.none(), st.fixed_dictionaries({"system": st.text("aü: #\n'\"{%", max_size=9)})),
        "optim": st.sampled_from(["adamw_torch", "sgd"]),
        "lr_scheduler_kwargs": st.one_of(st.none(), st.just({"num_cycles": 2})),
    },
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(SOME_SETTINGS)
def test_resolved_settings_read_back_are_the_same(tmp_path: Path, chosen: dict[str, Any]) -> None:
    values = {**parse([]).values, "max_length": 64, **chosen}
    resolved = build(values).resolved
    file = write(tmp_path / "config.yaml", yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
    assert build(parse(["--config", str(file)]).values).resolved == resolved


def test_a_map_is_a_mapping_in_yaml_and_words_on_the_command_line(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "map: {question: query, documents: 'ctxs[].text'}\n")
    words = ["question=query", "documents=ctxs[].text"]
    assert parse(["--config", str(file), "--dataset_name", "d.jsonl"]).values["map"] == words
    assert parse(["--map", *words, "--dataset_name", "d.jsonl"]).values["map"] == words


@pytest.mark.parametrize("short", ["--model", "--model_name", "--dataset"])
def test_the_first_word_of_a_flag_is_answered_with_the_flags_that_begin_so(short: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse([short, "x", "--output_dir", "out"])
    whole = "--dataset_name" if short == "--dataset" else "--model_name_or_path"
    assert repr(whole) in str(caught.value)
