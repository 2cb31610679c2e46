"""Are general rows mixed in at the ratio that was asked for, whatever their format?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from selfaug.before.mixing import Mix, mixed
from selfaug.common.errors import DataError
from tests.integration.small import WORDS, lora, model, tokenizer
from tests.integration.small import rows as small_rows
from tests.integration.steps import SEQUENCES, run


def others(count: int) -> Dataset:
    return Dataset.from_list([{"input_ids": [90, i], "labels": [-100, i], "extra": i} for i in range(count)])


@pytest.mark.parametrize(("ratio", "count"), [(0.1, 2), (1 / 9, 2), (0.5, 10), (1.0, 20), (0.0, 0), (0.02, 0)])
def test_the_ratio_is_exact_and_no_row_is_taken_twice(ratio: float, count: int) -> None:
    task = Dataset.from_list([{"input_ids": [1, 2], "labels": [-100, 2]}] * 20)
    table = mixed(task, others(20), Mix(Path("general"), ratio), seed=3)
    general = [row["input_ids"][1] for row in table if row["input_ids"][0] == 90]
    assert len(table) == 20 + count
    assert len(set(general)) == len(general) == count
    assert table[:20] == task[:20]


def test_the_draw_is_the_seeds(tmp_path: Path) -> None:
    task = Dataset.from_list([{"input_ids": [1, 2], "labels": [-100, 2]}] * 20)

    def drawn(seed: int) -> list[Any]:
        return mixed(task, others(50), Mix(Path("general"), 0.5), seed)[:]["input_ids"]  # type: ignore[no-any-return]

    assert drawn(1) == drawn(1) != drawn(2)
    with pytest.raises(DataError, match="has 5 rows that fit") as refused:
        mixed(task, others(5), Mix(Path("general"), 0.5), seed=0)
    assert "at most 0.25" in refused.value.hint


FORMATS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]},
    "record": {"question": "w1 w2", "documents": [], "answer": "w3"},
    "prompt and completion": {"prompt": "w1 w2", "completion": " w3"},
}


@pytest.mark.parametrize("kind", FORMATS)
def test_general_rows_of_any_format_are_trained_on(kind: str, tmp_path: Path) -> None:
    from selfaug.training.config import SelfAugConfig
    from selfaug.training.trainer import SelfAugTrainer

    file = tmp_path / "general.jsonl"
    file.write_text("".join(json.dumps(FORMATS[kind]) + "\n" for _ in range(4)))
    args = SelfAugConfig(
        output_dir=str(tmp_path / "out"), method="replay", bf16=False, report_to=[], use_cpu=True,
        method_options={"replay_data": str(file), "replay_ratio": 0.5}, disable_tqdm=True, max_length=256,
    )  # fmt: skip
    trainer = SelfAugTrainer(
        model(), args, train_dataset=Dataset.from_list(small_rows(8)), processing_class=tokenizer(), peft_config=lora()
    )
    assert trainer.train_dataset is not None
    assert len(trainer.train_dataset) == 12
    learnt = [
        [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
        for row in trainer.train_dataset
    ]
    answer = WORDS.index("w3") + 4
    assert sum(tokens[0] == answer and len(tokens) <= 2 for tokens in learnt[8:]) == 4


def test_without_a_ratio_a_step_is_the_base_lines(tmp_path: Path) -> None:
    chosen = SEQUENCES["single-turn"][:4]
    ran = run(chosen, tmp_path / "replay", method="replay", method_options="replay_ratio=0")
    plain = run(chosen, tmp_path / "sft", method="sft")
    assert all(torch.equal(ran.gradient[name], plain.gradient[name]) for name in plain.gradient)
