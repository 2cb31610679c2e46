"""Does a real run train on what its base wrote, make it once, go on after a kill, and refuse what cannot work?"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from selfaug.common.errors import ConfigError
from selfaug.generation.store import FOLDER
from selfaug.model.libraries import lora_pairs
from tests.chatting import chat_model, chat_tokenizer
from tests.integration.generating_run import make_trainer, records, start
from tests.server import Server, completed

SAMPLES = "samples-0.jsonl"


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FOLDER / SAMPLES).read_text().splitlines()]


def counts(folder: Path) -> Any:
    return json.loads((folder / FOLDER / "counts.json").read_text())


def texts(trainer: Any, *, learnt: bool = False) -> list[str]:
    rows = trainer._rows
    kept = [[t for t in (row["labels"] if learnt else row["input_ids"]) if t != -100] for row in rows]
    return [str(trainer._tokenizer.decode(ids)) for ids in kept]


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("magpie", {"magpie_ratio": 0.25}),
        ("sa-sft", {"dialogue_ratio": 0.25, "dialogue_turns": 1}),
        ("cfs", {"cfs_ratio": 0.25}),
        ("sdft", None),
    ],
)
def test_a_run_of_each(method: str, options: Any, tmp_path: Path) -> None:
    """The loaded model writes; 18 rows at 0.25 get round(4.5) = 4."""
    trainer = make_trainer(tmp_path, method=method, method_options=options)
    trainer.train()
    assert trainer.state.global_step == 2
    assert any(pair.B.abs().max() > 0 for pair in lora_pairs(trainer.model))
    found = counts(tmp_path)[method]
    assert len(trainer._rows) == len(trainer.train_dataset) == (18 if method == "sdft" else 22)
    if method == "sdft":
        assert sum(found.values()) == 18
    else:
        assert found["kept"] == 4
        assert sum(len(row["input_ids"]) > 0 for row in trainer.train_dataset) == 22


def test_what_is_trained_is_what_the_untuned_model_wrote(tmp_path: Path) -> None:
    """The dense model without any adapter, one token after the other, gives the answers that are learnt."""
    trainer = make_trainer(tmp_path, method_options={"magpie_ratio": 0.2})
    trainer.train()
    model, tokenizer = chat_model(), chat_tokenizer()
    controls = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    made = [json.loads(line)["messages"] for line in (tmp_path / FOLDER / "magpie.jsonl").read_text().splitlines()]
    assert len(made) == 4
    for question, answer in made:
        text = f"<|im_start|>user\n{question['content']}<|im_end|>\n<|im_start|>assistant\n"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        said: list[int] = []
        while len(said) < 24 and not controls & set(said):
            said.append(int(model(input_ids=torch.tensor([ids + said])).logits[0, -1].argmax()))
        assert tokenizer.decode(said, skip_special_tokens=True).strip() == answer["content"]
        assert f"{text}{answer['content']}<|im_end|>" in texts(trainer)


def test_context_free_texts_are_drawn_from_the_untuned_model_after_its_start_token_alone(tmp_path: Path) -> None:
    """Each token of a text is the draw that its own seed gives from the dense model's whole distribution."""
    trainer = make_trainer(tmp_path, method="cfs", method_options={"cfs_ratio": 0.25})
    trainer.train()
    model, tokenizer = chat_model(), chat_tokenizer()
    start = tokenizer.convert_tokens_to_ids(tokenizer.bos_token or tokenizer.eos_token)
    rows = [row for row in trainer._rows if row["labels"][0] == -100 and row["labels"][1] != -100]
    assert len(rows) == 4
    scribe_seeds = [random.Random(f"{trainer.args.seed}\0{('cfs', n)}").getrandbits(62) for n in range(8)]
    drawn = {tuple(draw_text(model, [start], seed, 24)) for seed in scribe_seeds}
    for row in rows:
        assert row["input_ids"][0] == start
        assert row["labels"][1:] == row["input_ids"][1:]
        text = tokenizer.decode(row["input_ids"][1:], skip_special_tokens=True)
        assert any(text == tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in drawn), text


def draw_text(model: Any, ids: list[int], seed: int, length: int) -> list[int]:
    """Gumbel-max draws, one token after the other, up to a control token."""
    generator = torch.Generator().manual_seed(seed)
    controls = {number for number, token in chat_tokenizer().added_tokens_decoder.items() if token.special}
    found: list[int] = []
    while len(found) < length and not controls & set(found):
        scores = model(input_ids=torch.tensor([ids + found])).logits[0, -1].float()
        noise = torch.empty_like(scores).exponential_(generator=generator).log()
        found.append(int((scores - noise).argmax()))
    return found


@pytest.mark.nightly
def test_killed_while_it_writes_a_run_goes_on_and_makes_nothing_twice(tmp_path: Path) -> None:
    options = {"method_options": {"magpie_ratio": 0.5}}
    whole = start(tmp_path / "whole", **options)
    killed = start(tmp_path / "killed", kill_at=4, **options)
    whole.join()
    killed.join()
    assert whole.exitcode == 0, (tmp_path / "whole" / "talk.txt").read_text()[-2000:]
    assert killed.exitcode == -9
    before = (tmp_path / "killed" / FOLDER / SAMPLES).read_bytes()
    assert len(before.splitlines()) == 6  # three batches of two
    again = start(tmp_path / "killed", **options)
    again.join()
    assert again.exitcode == 0, (tmp_path / "killed" / "talk.txt").read_text()[-2000:]
    after = (tmp_path / "killed" / FOLDER / SAMPLES).read_bytes()
    assert after.startswith(before)
    keys = [line["key"] for line in lines(tmp_path / "killed")]
    assert len(set(keys)) == len(keys)
    # Each reply is its request's alone: the killed run wrote what the other did, and so learnt the same.
    assert {line["key"]: line["text"] for line in lines(tmp_path / "killed")} == {
        line["key"]: line["text"] for line in lines(tmp_path / "whole")
    }
    adapters = [
        (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("whole", "killed")
    ]
    assert adapters[0] == adapters[1]
    third = start(tmp_path / "killed", **options)
    third.join()
    assert (tmp_path / "killed" / FOLDER / SAMPLES).read_bytes() == after


@pytest.mark.nightly
def test_another_base_length_or_seed_writes_anew(tmp_path: Path) -> None:
    def made(**changes: Any) -> int:
        make_trainer(tmp_path, **changes).train()
        return len(lines(tmp_path))

    first = made()
    assert made() == first
    # Two rows of 18, an instruction and an answer each, and what was refused.
    assert first >= 4
    counted = [first]
    for change in (
        {"moved": 1e-6},
        {"generation_length": 32},
        {"seed": 7},
        {"method_options": "magpie_top_p=0.9"},
    ):
        counted.append(made(**change))
        assert counted[-1] >= counted[-2] + 2, change


def test_served_rewrites_and_conversations_are_mixed_in_one_run(server: Server, tmp_path: Path) -> None:
    """Both at once, by another server: where a rewrite disagrees with the answer it is not learnt."""

    def reply(body: dict[str, Any], n: int) -> tuple[int, bytes]:
        if "prompt" in body:
            return 200, completed(f"instruction {body['seed']}", chat=False)
        asked = body["messages"][-1]["content"]
        if "reference answer" not in asked:
            return 200, completed("an answer of its own")
        return 200, completed("Lily found the dog." if "day 3?" in asked else "Lily found a cat.")

    server.reply = reply
    served = {"generation_url": server.url, "generation_model": "base-1", "generation_batch_size": 4}
    trainer = make_trainer(tmp_path, method="selfaug+sdft+magpie", **served)
    trainer.train()
    learnt = texts(trainer, learnt=True)
    assert learnt[:18] == ["the dog<|im_end|>"] * 3 + ["Lily found the dog.<|im_end|>"] + ["the dog<|im_end|>"] * 14
    assert learnt[18:] == ["an answer of its own<|im_end|>"] * 2
    assert counts(tmp_path) == {"sdft": {"rewritten": 1, "kept": 0, "refused_disagreeing": 17}, "magpie": {"kept": 2}}
    logged = next(entry for entry in trainer.state.log_history if "alignment" in entry)
    assert logged["alignment"] >= 0
    asked = len(server.asked)
    make_trainer(tmp_path, method="selfaug+sdft+magpie", **served).train()
    assert len(server.asked) == asked


@pytest.mark.parametrize(
    "given", [("magpie", "magpie_ratio=0"), ("sa-sft", "dialogue_ratio=0"), ("sdft", "rewrite_share=0")]
)
def test_without_strength_a_run_is_the_base_lines(given: tuple[str, str], tmp_path: Path) -> None:
    made, plain = (
        make_trainer(tmp_path / name, method=name, method_options=options) for name, options in (given, ("sft", None))
    )
    made.train()
    plain.train()
    assert not (tmp_path / given[0] / FOLDER).exists()
    for one, other in zip(lora_pairs(made.model), lora_pairs(plain.model), strict=True):
        assert torch.equal(one.B, other.B)


def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    ids = Dataset.from_list([{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}] * 4)
    with pytest.raises(ConfigError, match="method='sdft' lets the base rewrite answers"):
        make_trainer(tmp_path, method="sdft", rows=ids)
    with pytest.raises(ConfigError, match="a stream"):
        make_trainer(tmp_path, rows=Dataset.from_list(records()).to_iterable_dataset())
    assert make_trainer(tmp_path, rows=ids, method="magpie").method.name == "magpie"
    assert not (tmp_path / FOLDER).exists()


@pytest.mark.parametrize("method", ["magpie", "sa-sft", "sdft"])
def test_a_model_without_a_chat_template_is_refused_by_name(method: str, tmp_path: Path) -> None:
    from selfaug.training.config import SelfAugConfig
    from selfaug.training.trainer import SelfAugTrainer
    from tests.integration import small

    args = SelfAugConfig(
        output_dir=str(tmp_path), method=method, bf16=False, report_to=[], use_cpu=True, max_length=256
    )
    with pytest.raises(ConfigError, match=f"method={method!r} lets the model write.* no chat template"):
        SelfAugTrainer(
            small.model(), args, train_dataset=Dataset.from_list(records()), processing_class=small.tokenizer(),
            peft_config=small.lora(),
        )  # fmt: skip
