from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
STORIES = [
    "Tom found a red ball in the park. He gave it to Anna.",
    "The cat sleeps in the house. It dreams of a big fish.",
    "Anna has a blue boat. She sails on the lake every day.",
    "What did Tom find? Who sleeps in the house? Where does Anna sail?",
    "Answer the question with the help of the documents. If they do not hold the answer, reply: I don't know",
]


@dataclass
class Result:
    code: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """``cli(*words, cwd=...)``: run `selfaug` in a process of its own."""
    folder = tmp_path_factory.mktemp("output")
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("zygote.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert server.stdin is not None
    assert server.stdout is not None

    def run(*words: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> Result:
        out, err = folder / "out", folder / "err"
        job = {
            "argv": [str(word) for word in words],
            "cwd": str(cwd or folder),
            "env": env or {},
            "stdout": str(out),
            "stderr": str(err),
        }
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return Result(code, out.read_text(), err.read_text())

    yield run
    server.stdin.close()
    server.wait(timeout=30)


def save_model(folder: Path, *, vocab_text: list[str] = STORIES, positions: int = 256) -> Path:
    """A random Llama of 2 layers with a byte-level tokenizer trained on a few sentences, in ``folder``."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        vocab_text,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<pad>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=positions
    )
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def records(count: int = 12) -> list[dict]:
    return [
        {
            "id": f"r{number}",
            "question": f"What did Tom find on day {number}?",
            "documents": [{"title": "Tom", "text": f"On day {number} Tom found {number} red balls in the park."}],
            "answer": f"{number} red balls",
        }
        for number in range(count)
    ]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "records.jsonl", records())


TRAIN = ["--per_device_train_batch_size", "4", "--logging_steps", "1", "--save_steps", "3"]
TRAIN += ["--learning_rate", "2e-2", "--lora_r", "4"]


@pytest.fixture(scope="session")
def trained(cli: Cli, model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A finished run of 6 steps, and what its process said."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    words = ["--model_name_or_path", model, "--dataset_name", data, "--output_dir", run, "--max_steps", 6]
    result = cli("train", *words, *TRAIN)
    assert result.code == 0, result.err
    return run, result


def study_files(folder: Path, count: int, words: int) -> tuple[Path, Path]:
    """Records with a document of so many words, and texts, for verbs that train and measure several runs."""
    rows, texts = [], []
    for i in range(count):
        text = " ".join(f"w{3 + (i * 7 + j) % 90}" for j in range(words))
        rows.append({"id": f"q{i}", "question": f"w{i + 3}", "documents": [{"text": text}], "answer": [f"w{i + 5}"]})
        texts.append({"text": " ".join(f"w{3 + (i * 11 + j) % 90}" for j in range(15))})
    return write_rows(folder / "rows.jsonl", rows), write_rows(folder / "texts.jsonl", texts)
