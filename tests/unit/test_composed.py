"""Are conversations of the base's own put among the training rows at exactly the ratio that was asked for?"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from selfaug.before.generated_rows import composed
from selfaug.common.errors import DataError
from selfaug.data.prompts import Renderer
from selfaug.data.record import Conversation
from selfaug.generation.requests import Reply, Request
from selfaug.generation.store import Store
from selfaug.generation.writer import Writer
from selfaug.methods import get_method
from selfaug.methods.magpie import published_temperature
from selfaug.training.config import SelfAugConfig
from tests.chatting import chat_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")


class Talker:
    """Instructions by the seed, some of them repeated, too long, cut or empty; answers by the question."""

    def __init__(self, faulty: float = 0.0, reply: Callable[[Request], Reply] | None = None) -> None:
        self.faulty, self.asked, self.reply = faulty, list[Request](), reply

    def ask(self, requests: Sequence[Request]) -> Iterator[dict[int, Reply]]:
        for i, request in enumerate(requests):
            self.asked.append(request)
            yield {i: (self.reply or self._reply)(request)}

    def _reply(self, request: Request) -> Reply:
        pick = random.Random(request.seed)
        if not request.temperature:
            return Reply("the answer", True)
        if pick.random() >= self.faulty:
            return Reply(f"question {request.seed}", True)
        return pick.choice([Reply("same", True), Reply("cut", False), Reply("", True), Reply("long " * 200, True)])


def writer(source: Talker, folder: Path) -> Writer:
    tokenizer = chat_tokenizer()
    return Writer(
        source, Store(folder), {}, tokenizer=tokenizer, renderer=Renderer.for_tokenizer(tokenizer),
        max_length=128, length=8, seed=0,
    )  # fmt: skip


def rows(count: int) -> Dataset:
    return Dataset.from_dict(
        {"input_ids": [[1, 2, i % 90] for i in range(count)], "labels": [[-100, -100, i % 90] for i in range(count)]}
    )


def compose(method: str, source: Talker, folder: Path, count: int, **options: float) -> Dataset:
    config = SelfAugConfig(
        output_dir="unused", bf16=False, report_to="none", method=method, method_options=options or None
    )
    wanted = get_method(method).changes(config).compose
    assert wanted is not None
    return composed(rows(count), wanted, writer(source, folder))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 80),
    st.sampled_from([None, 0.25, 1.0, 1.5]),
    st.sampled_from(["magpie", "sa-sft"]),
    st.floats(0, 0.3),
)
def test_the_ratio_is_exact_whatever_was_refused(count: int, ratio: float | None, method: str, faulty: float) -> None:
    """By default 1 : 9. Few attempts may be used up by chance: then nothing is trained, rather than too little."""
    option = "magpie_ratio" if method == "magpie" else "dialogue_ratio"
    with tempfile.TemporaryDirectory() as folder:
        source = Talker(faulty)
        made = compose(method, source, Path(folder), count, **({} if ratio is None else {option: ratio}))
        expected = round(count / 9) if ratio is None else round(ratio * count)
        assert len(made) == count + expected
        assert made[:count]["input_ids"] == rows(count)["input_ids"]
        general = made[count:]["input_ids"] if expected else []
        assert len({tuple(ids) for ids in general}) == expected
        assert all(len(ids) <= 128 for ids in general)
        assert expected == 0 or json.loads((Path(folder) / "counts.json").read_text())[method]["kept"] == expected


def test_nine_training_rows_get_one(tmp_path: Path) -> None:
    for number in (9, 90, 900):
        assert len(compose("magpie", Talker(), tmp_path / str(number), number)) == number + number // 9


def test_magpie_opens_a_users_turn_and_answers_what_was_written(tmp_path: Path) -> None:
    source = Talker(reply=lambda r: Reply("Who <|im_end|> is it?" if r.text else "It is I.", True))
    made = compose("magpie", source, tmp_path, 1, magpie_ratio=1.0, magpie_temperature=0.7, magpie_top_p=0.9)
    asked, answered = source.asked
    assert (asked.text, asked.stop, asked.temperature, asked.top_p) == ("<|im_start|>user\n", "<|im_end|>", 0.7, 0.9)
    assert answered.messages == ({"role": "user", "content": "Who < |im_end|> is it?"},)
    assert answered.temperature == 0
    tokenizer = chat_tokenizer()
    text = tokenizer.decode(made[1]["input_ids"])
    assert text == "<|im_start|>user\nWho < |im_end|> is it?<|im_end|>\n<|im_start|>assistant\nIt is I.<|im_end|>"
    learnt = [token for token in made[1]["labels"] if token != -100]
    assert tokenizer.decode(learnt) == "It is I.<|im_end|>"


@pytest.mark.parametrize(
    ("model", "temperature"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 0.8), ("/models/Llama-3.1-70B-Instruct/", 0.9),
        ("Qwen2.5-7B-Instruct", 0.7),
        ("Qwen/Qwen2.5-72B-Instruct", 0.6), ("Qwen/Qwen2.5-0.5B-Instruct", 1.0),
        ("Qwen/Qwen2.5-Coder-32B-Instruct", 1.0),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 1.0), ("qwen2.5-7b/mine", 1.0), ("", 1.0),
    ],
)  # fmt: skip
def test_magpie_samples_at_the_published_temperature(model: str, temperature: float) -> None:
    """By the defaults in scripts/magpie-*.sh of its repository."""
    assert published_temperature(model) == temperature


def test_magpies_temperature_is_by_the_models_name_unless_one_is_given(tmp_path: Path) -> None:
    source = Talker()
    wanted = get_method("magpie").changes(
        SelfAugConfig(
            output_dir="unused", bf16=False, report_to="none", method="magpie", method_options="magpie_ratio=1"
        )
    )
    named = writer(source, tmp_path)
    named.tokenizer.name_or_path = "Qwen/Qwen2.5-3B-Instruct"
    assert wanted.compose is not None
    composed(rows(9), wanted.compose, named)
    assert source.asked[0].temperature == 0.7


@pytest.mark.parametrize("ended", [True, False])
def test_an_instruction_of_magpie_ends_at_its_first_line_break(ended: bool, tmp_path: Path) -> None:
    source = Talker(reply=lambda r: Reply("Who is it? \nAnd then?", ended) if r.text else Reply("It is I.", True))
    made = compose("magpie", source, tmp_path, 1, magpie_ratio=1.0)
    assert source.asked[1].messages == ({"role": "user", "content": "Who is it?"},)
    assert "And then" not in chat_tokenizer().decode(made[1]["input_ids"])


def test_in_a_dialogue_the_person_speaks_with_the_roles_exchanged(tmp_path: Path) -> None:
    numbers = iter(range(100))
    source = Talker(reply=lambda request: Reply(f"words {next(numbers)}", True))
    made = compose("sa-sft", source, tmp_path, 1, dialogue_ratio=1.0)
    roles = [[message["role"] for message in request.messages] for request in source.asked]
    assert roles == [["user"], ["user"], ["user", "assistant", "user"], ["user", "assistant", "user"]]
    words = [[message["content"] for message in request.messages] for request in source.asked]
    assert words[1] == ["words 0"]
    assert words[2][1:] == ["words 0", "words 1"]
    assert "next message" in words[2][0]
    assert words[3] == ["words 0", "words 1", "words 2"]
    assert [bool(request.temperature) for request in source.asked] == [True, False, True, False]
    tokenizer = chat_tokenizer()
    learnt = tokenizer.decode([token for token in made[1]["labels"] if token != -100])
    assert learnt == "words 1<|im_end|>words 3<|im_end|>"


def test_a_model_that_writes_little_of_use_is_an_error_that_says_why(tmp_path: Path) -> None:
    source = Talker(reply=lambda request: Reply("same", True))
    with pytest.raises(
        DataError, match="of 56 conversations that the model wrote 1 are of use, and 10 are wanted"
    ) as refused:
        compose("magpie", source, tmp_path, 90)
    assert "55 refused repeated" in refused.value.message


def test_what_was_made_can_be_read_as_data(tmp_path: Path) -> None:
    from selfaug.data.read import read_rows

    compose("sa-sft", Talker(), tmp_path, 27)
    items = read_rows(tmp_path / "sa-sft.jsonl", needs_documents=False).items
    assert len(items) == 3
    assert all(isinstance(item, Conversation) for item in items)
