"""What trl, transformers, peft and lm_eval refuse is refused before any weight is read: one error, one hint, code 2.

The model of these cases holds weights of another shape than its configuration says: whoever reads them fails
differently, as the first test shows.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import ENVIRONMENT, Cli, Result, records, write_rows
from .test_bad_input import assert_refused, snapshot


@pytest.fixture(scope="module")
def unreadable(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights are whole files and do not fit its configuration."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(model, tmp_path_factory.mktemp("unreadable") / "model"))
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor.flatten()[:7].clone() for name, tensor in weights.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    return folder


def refused(cli: Cli, model: Path, data: Path, folder: Path, *words: object, says: tuple[str, ...]) -> None:
    names = [word for word in words if isinstance(word, str)]
    chosen = {"--model_name_or_path": model, "--dataset_name": data, "--output_dir": folder / "run", "--max_steps": 1}
    flags = [word for name, value in chosen.items() if name not in names for word in (name, value)]
    before = snapshot(folder)
    result = cli("train", *flags, *words, cwd=folder)
    assert_refused(result, *says)
    assert "mismatch" not in result.err, "the weights were read"
    assert snapshot(folder) == before


def test_whoever_reads_the_weights_fails_otherwise(cli: Cli, unreadable: Path, data: Path, tmp_path: Path) -> None:
    words = ["--model_name_or_path", unreadable, "--dataset_name", data, "--output_dir", tmp_path / "run"]
    result = cli("train", *words, "--max_steps", 1)
    assert result.code != 0
    assert "mismatch" in result.err


EVAL = ["--eval_strategy", "steps", "--held_out", "0.3"]
SETTINGS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    # Packages that are not installed here.
    "report_to": (["--report_to", "wandb"], ("--report_to wandb", "pip install wandb")),
    "report_to unknown": (["--report_to", "nonsense"], ("--report_to nonsense", "not supported")),
    "liger": (["--use_liger_kernel", "true"], ("use_liger_kernel", "pip install liger-kernel")),
    "8-bit optimizer": (["--optim", "adamw_8bit"], ("--optim adamw_8bit", "bitsandbytes")),
    "GaLore": (["--optim", "galore_adamw", "--optim_target_modules", "q_proj"], ("galore_adamw", "galore_torch")),
    "LOMO": (["--optim", "lomo"], ("--optim lomo", "lomo-optim")),
    "schedule-free": (["--optim", "schedule_free_adamw"], ("schedule_free_adamw", "schedulefree")),
    "torchao": (["--optim", "adamw_torch_4bit"], ("adamw_torch_4bit", "torchao")),
    "4 bit": (["--load_in_4bit"], ("--load_in_4bit", "bitsandbytes")),
    "8 bit": (["--load_in_8bit"], ("--load_in_8bit", "bitsandbytes")),
    "flash attention": (["--attn_implementation", "flash_attention_2"], ("--attn_implementation flash_attention_2",)),
    "kernels of the hub": (["--attn_implementation", "kernels-community/flash-attn"], ("kernels",)),
    "deepspeed": (["--deepspeed", "zero3.json"], ("--deepspeed zero3.json", "deepspeed")),
    "fp8": (["--mixed_precision", "fp8"], ("fp8", "torchao")),
    # Names that nothing has.
    "attention": (["--attn_implementation", "nonsense"], ("--attn_implementation nonsense",)),
    "compiler": (["--torch_compile_backend", "nonsense"], ("nonsense",)),
    "compiler's mode": (["--torch_compile_mode", "nonsense"], ("--torch_compile_mode nonsense",)),
    "loading": (["--model_init_kwargs", '{"devcie_map": "auto"}'], ("devcie_map", "Did you mean 'device_map'?")),
    "device map": (["--model_init_kwargs", '{"device_map": "nonsense"}'], ("device_map", "nonsense")),
    "token among settings": (["--model_init_kwargs", '{"token": "abc"}'], ("token", "HF_TOKEN")),
    "schedule": (["--lr_scheduler_kwargs", '{"foo": 1}'], ("--lr_scheduler_kwargs", "foo")),
    "schedule lacks": (["--lr_scheduler_type", "cosine_with_min_lr"], ("cosine_with_min_lr", "min_lr")),
    "schedule no mapping": (["--lr_scheduler_kwargs", "foo"], ("lr_scheduler_kwargs", "JSON")),
    "checkpointing": (["--gradient_checkpointing_kwargs", '{"reentrant": true}'], ("reentrant", "'use_reentrant'")),
    "optimizer's arguments": (["--optim_args", "foo"], ("--optim_args foo",)),
    "padding": (["--pad_token", "nonsense"], ("pad_token", "nonsense")),
    "task type": (["--lora_task_type", "NONSENSE"], ("--lora_task_type NONSENSE", "CAUSAL_LM")),
    "best metric": ([*EVAL, "--save_strategy", "best", "--metric_for_best_model", "acc"],
                    ("metric_for_best_model", "nll")),
    "best of nothing": (["--save_strategy", "best"], ("metric_for_best_model",)),
    "data settings": (["--dataset_kwargs", "foo"], ("dataset_kwargs", "JSON")),
    # Modules.
    "target": (["--lora_target_modules", "q_prj"], ("'q_prj'", "Did you mean 'q_proj'?", "k_proj")),
    "one target of two": (["--lora_target_modules", "q_proj", "v_prj"], ("'v_prj'", "Did you mean 'v_proj'?")),
    "pattern": (["--lora_target_modules", "layers.*q_proj"], ("pattern", "full names")),
    "broken pattern": (["--lora_target_modules", "(q_proj"], ("(q_proj", "regular expression")),
    "all-linear beside": (["--lora_target_modules", "all-linear", "q_proj"], ("all-linear",)),
    "mistyped all-linear": (["--lora_target_modules", "all_linear"], ("all_linear", "all-linear")),
    "saved module": (["--lora_modules_to_save", "nrm"], ("'nrm'", "Did you mean 'norm'?")),
    "target parameter": (["--lora_target_parameters", "nonsense"], ("lora_target_parameters", "'nonsense'")),
    "quantised alone": (["--load_in_4bit", "true", "--use_peft", "false"], ("no adapter", "--use_peft true")),
    # What this machine or process lacks.
    "activation offloading": (["--activation_offloading", "true"], ("activation_offloading", "CPU")),
    "fp16 on a CPU": (["--fp16", "true"], ("fp16", "CPU", "bf16")),
    "fsdp in one process": (["--fsdp", "full_shard"], ("fsdp",)),
    "several GPUs": (["--multi_gpu"], ("multi_gpu", "--num_processes")),
    "workers that stay": (["--dataloader_persistent_workers", "true"], ("dataloader_num_workers",)),
    "upload without hub": (["--push_to_hub", "true"], ("push_to_hub", "HF_HUB_OFFLINE")),
}  # fmt: skip

NUMBERS = [
    ("per_device_train_batch_size", "0"), ("per_device_train_batch_size", "-1"), ("per_device_eval_batch_size", "0"),
    ("gradient_accumulation_steps", "0"), ("gradient_accumulation_steps", "-1"), ("num_train_epochs", "0"),
    ("num_train_epochs", "nan"), ("max_steps", "0"), ("max_steps", "-5"), ("learning_rate", "-1"),
    ("learning_rate", "nan"), ("learning_rate", "inf"), ("weight_decay", "-1"),
    ("weight_decay", "nan"), ("adam_beta1", "1.5"), ("adam_beta2", "-0.5"), ("adam_epsilon", "-1"),
    ("max_grad_norm", "-1"), ("max_grad_norm", "nan"), ("warmup_steps", "-1"), ("neftune_noise_alpha", "-1"),
    ("logging_steps", "-1"), ("save_steps", "0"), ("save_total_limit", "-1"), ("eval_steps", "0"),
    ("eval_accumulation_steps", "0"), ("eval_delay", "-1"), ("dataloader_num_workers", "-1"), ("seed", "-1"),
    ("data_seed", "-1"), ("dataset_num_proc", "0"), ("pad_to_multiple_of", "0"), ("pad_to_multiple_of", "-8"),
    ("ddp_timeout", "-1"), ("lora_r", "0"), ("lora_alpha", "0"), ("lora_alpha", "-3"), ("lora_dropout", "1.5"),
    ("lora_dropout", "-0.1"), ("num_processes", "0"), ("num_machines", "-1"),
]  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS)
def test_settings(cli: Cli, unreadable: Path, data: Path, tmp_path: Path, case: str) -> None:
    words, says = SETTINGS[case]
    refused(cli, unreadable, data, tmp_path, *words, says=says)


@pytest.mark.parametrize(("name", "value"), NUMBERS)
def test_numbers(cli: Cli, unreadable: Path, data: Path, tmp_path: Path, name: str, value: str) -> None:
    refused(cli, unreadable, data, tmp_path, f"--{name}={value}", says=(name, "give "))


OUTPUTS: dict[str, tuple[Callable[[Path], str], tuple[str, ...]]] = {
    "inside a file": (lambda folder: str(folder / "file" / "run"), ("lies inside of", "file")),
    "not writable": (lambda _: "/proc/run", ("/proc/run", "cannot be written")),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_outputs(cli: Cli, unreadable: Path, data: Path, tmp_path: Path, case: str) -> None:
    (tmp_path / "file").write_text("mine")
    make, says = OUTPUTS[case]
    refused(cli, unreadable, data, tmp_path, "--output_dir", make(tmp_path), says=says)


@pytest.mark.parametrize("what", ["nothing", "model", "file"])
def test_resuming_from_something_else(cli: Cli, unreadable: Path, data: Path, tmp_path: Path, what: str) -> None:
    place = {"nothing": tmp_path / "nothing", "model": unreadable, "file": data}[what]
    refused(cli, unreadable, data, tmp_path, "--resume_from_checkpoint", place, says=(str(place),))


def test_one_word_names_modules(cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
    words = ["--model_name_or_path", model, "--dataset_name", data, "--output_dir", tmp_path / "run"]
    result = cli("train", *words, "--max_steps", 1, "--lora_target_modules", "q_proj")
    assert result.code == 0, result.err
    from safetensors import safe_open

    with safe_open(tmp_path / "run" / "adapter" / "adapter_model.safetensors", framework="pt") as file:
        adapted = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in file.keys()}  # noqa: SIM118
    assert adapted == {"q_proj"}


# ---- tokens without an embedding ------------------------------------------------------------------------------


def with_tokens(model: Path, folder: Path, *tokens: str, **special: str) -> Path:
    """The model with tokens added to its tokenizer alone."""
    from transformers import AutoTokenizer

    copy = Path(shutil.copytree(model, folder / "model"))
    tokenizer = AutoTokenizer.from_pretrained(copy)
    before = len(tokenizer)
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    for name, token in special.items():
        setattr(tokenizer, name, token)
    tokenizer.save_pretrained(copy)
    assert len(tokenizer) == before + len(tokens)
    assert json.loads((copy / "config.json").read_text())["vocab_size"] == before
    return copy


def test_tokens_that_are_not_used_need_no_embedding(cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
    folder = with_tokens(model, tmp_path, "<never>", "<used>")
    words = ["--model_name_or_path", folder, "--dataset_name", data, "--output_dir", tmp_path / "run"]
    result = cli("train", *words, "--max_steps", 1)
    assert result.code == 0, result.err


ROWS: dict[str, tuple[list[dict], tuple[str, ...]]] = {
    "a text of trl": ([{"text": "plain"}, {"text": "a<used>b"}], ("row 2", "<used>")),
    "ids": ([{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]},
             {"input_ids": [5, 6, 7, 9999], "labels": [-100, -100, 7, 8]}],
            ("row 2", "id 9999")),
    "labels": ([{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 9999]}], ("a label", "id 9999")),
    "negative labels": ([{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, -1]}], ("labels", "-1")),
    "negative ids": ([{"input_ids": [5, 6, -7, 8], "labels": [-100, -100, 7, 8]}], ("input_ids", "-7")),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
def test_tokens_without_an_embedding(cli: Cli, unreadable: Path, tmp_path: Path, case: str) -> None:
    rows, says = ROWS[case]
    folder = with_tokens(unreadable, tmp_path, "<never>", "<used>")
    path = write_rows(tmp_path / "rows.jsonl", rows)
    refused(cli, folder, path, tmp_path, says=says)


def test_a_chat_template_of_tokens_without_an_embedding(cli: Cli, unreadable: Path, data: Path, tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}<|turn|>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<|turn|>{% endif %}"
    )
    folder = with_tokens(unreadable, tmp_path, "<|turn|>", chat_template=template)
    refused(cli, folder, data, tmp_path, says=("row 1", "<|turn|>", "no embedding", "resize"))


def test_a_padding_token_without_an_embedding(cli: Cli, unreadable: Path, data: Path, tmp_path: Path) -> None:
    folder = with_tokens(unreadable, tmp_path, "[PAD]", pad_token="[PAD]")
    refused(cli, folder, data, tmp_path, says=("padding token '[PAD]'", "--pad_token"))


# ---- evaluate -------------------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_general_tasks_that_cannot_be_run_are_named_at_once(
    cli: Cli, trained: tuple[Path, Result], data: Path, tmp_path: Path
) -> None:
    good = {"question": "q", "options": [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}], "answer": "B"}
    path = write_rows(tmp_path / "choices.jsonl", [good, good | {"options": ["x", "y"]}])
    words = ["--data", data, "--general", f"multiple_choice_file={path}", "arc_easy", "hellaswag"]
    result = cli("evaluate", trained[0], *words, "--store", tmp_path / "store")
    assert_refused(result, "row 2", str(path), "options are", '"options"')
    assert_refused(result, "general:arc_easy", "general:hellaswag", "HF_HUB_OFFLINE")
    assert not (tmp_path / "store").exists(), "a part was measured before"


def test_a_backend_that_is_not_installed(cli: Cli, trained: tuple[Path, Result], tmp_path: Path) -> None:
    words = ["--no_task", "--general", "arc_easy", "--backend", "vllm", "--store", tmp_path / "store"]
    assert_refused(cli("evaluate", trained[0], *words), "vllm", "pip install")


# ---- secrets --------------------------------------------------------------------------------------------------

TOKEN, KEY = "hf_" + "Q" * 30, "sk-" + "z" * 30


def test_no_secret_is_written_and_nothing_else_is_hidden(cli: Cli, model: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--model_name_or_path", model, "--dataset_name", data, "--output_dir", run, "--eos_token", "</s>"]
    environment = {"HF_TOKEN": TOKEN, "OPENAI_API_KEY": KEY}
    trained = cli("train", *words, "--max_steps", 1, "--hub_token", TOKEN, env=environment)
    assert trained.code == 0, trained.err
    measured = cli("evaluate", run, "--data", data, "--limit", 2, "--max_new_tokens", 4, env=environment)
    assert measured.code == 0, measured.err
    files = [path for path in run.rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in files), "no checkpoint holds the settings"
    for secret in (TOKEN, KEY):
        assert [path for path in files if secret.encode() in path.read_bytes()] == []
        assert secret not in trained.err + measured.err
    assert json.loads((run / "manifest.json").read_text())["command"][-2:] == ["--hub_token", "***"]
    results = json.loads((run / "results.json").read_text())
    assert results["command"][-2:] == ["--max_new_tokens", "4"]
    assert results["config"]["max_new_tokens"] == 4
    assert "eos_token: </s>" in (run / "config.yaml").read_text()


def test_an_address_with_a_password_is_refused_and_not_repeated(
    cli: Cli, trained: tuple[Path, Result], data: Path
) -> None:
    url = "http://me:hunter2@localhost:1/v1"
    result = cli("evaluate", trained[0], "--data", data, "--judge_url", url, "--judge_model", "x")
    assert_refused(result, "judge_url", "judge_key_env")
    assert "hunter2" not in result.err


# ---- a locale that knows ASCII alone --------------------------------------------------------------------------


@pytest.mark.nightly
def test_a_strict_locale(model: Path, tmp_path: Path) -> None:
    """The commands as typed: one trains on and reads back what the locale has no letters for, one is a mistake."""
    rows = [row | {"question": f"Wer ist Zoë {n}? 北京", "answer": f"{n} Bälle"} for n, row in enumerate(records(4))]
    data = tmp_path / "dät.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    strict = ENVIRONMENT | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    encodings = "import sys, locale; print(sys.getfilesystemencoding(), sys.stdout.errors, locale.getencoding())"
    real = subprocess.run([sys.executable, "-c", encodings], capture_output=True, text=True, env=strict, check=True)
    assert real.stdout.split() == ["ascii", "strict", "ANSI_X3.4-1968"], "the locale is not strict"

    def run(*words: object) -> Result:
        command = [sys.executable, "-m", "selfaug", *map(str, words)]
        done = subprocess.run(command, capture_output=True, env=strict, cwd=tmp_path, timeout=300)
        return Result(done.returncode, done.stdout.decode("ascii"), done.stderr.decode("ascii"))

    result = run(
        "train", "--model_name_or_path", model, "--dataset_name", data, "--output_dir", "rün", "--max_steps", 1
    )
    assert result.code == 0, result.err
    assert json.loads(f'"{result.out.strip()}"') == os.fspath(tmp_path / "rün" / "adapter")
    assert_refused(run("evaluate", "rän"), "r\\u00e4n", "r\\u00fcn")
