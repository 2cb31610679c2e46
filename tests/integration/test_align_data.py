"""Are texts beside the prompts held to the base by the step's own plan, whoever wrote them, and trained nowhere?"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from selfaug.before.align_rows import beside, share_of
from selfaug.common.errors import ConfigError, DataError
from selfaug.generation.store import FOLDER
from selfaug.planning.plan import draw
from selfaug.training.config import SelfAugConfig
from tests.chatting import chat_model, chat_tokenizer
from tests.integration.generating_run import make_trainer
from tests.integration.steps import SEQUENCES, TOLERANCE, oracle_step, run
from tests.oracles.step import IGNORED, Sequence_, relative_distance

CHOSEN = SEQUENCES["single-turn"] + SEQUENCES["multi-turn"][:2]  # eight
LAYOUTS: dict[str, dict[str, Any]] = {
    "padding": {"per_device_train_batch_size": 4},
    "packing": {"packing": True, "max_length": 48, "per_device_train_batch_size": 1},
    "padding-free": {"padding_free": True, "per_device_train_batch_size": 4},
}
END = 2  # trl ends a plain text with its tokenizer's end-of-text token


def words(count: int, seed: int) -> list[int]:
    drawn = random.Random(seed)
    return [drawn.randrange(3, 97) for _ in range(count)]


def write_texts(path: Path, texts: list[list[int]]) -> list[Sequence_]:
    """The texts as a file, and the sequences that a step should see of them: no label anywhere."""
    path.write_text("".join(json.dumps({"text": " ".join(f"w{i}" for i in ids)}) + "\n" for ids in texts))
    return [([*ids, END], [IGNORED] * (len(ids) + 1)) for ids in texts]


def seen(ran: Any, step: int = 0) -> list[tuple[int, ...]]:
    """The documents of a step, without padding."""
    found = []
    for batch in ran.batches[step]:
        for row in range(len(batch["input_ids"])):
            ids = batch["input_ids"][row].tolist()
            if "position_ids" not in batch:
                found.append(tuple(t for t, real in zip(ids, batch["attention_mask"][row], strict=True) if real))
                continue
            starts = [at for at, place in enumerate(batch["position_ids"][row].tolist()) if place == 0]
            found += [tuple(ids[a:b]) for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_is_the_oracles_with_the_texts_as_rows_without_labels(layout: str, tmp_path: Path) -> None:
    """KL over all aligned tokens, prompts' and texts', by one divisor; NLL by the responses' alone."""
    texts = write_texts(tmp_path / "texts.jsonl", [words(6, 1), words(21, 2), words(2, 3), words(11, 4)])
    settings = {**LAYOUTS[layout], "gradient_accumulation_steps": 12, "align_data_share": 1 / 3}
    ran = run(CHOSEN, tmp_path / "run", align_data=str(tmp_path / "texts.jsonl"), **settings)
    every = [*CHOSEN, *texts]
    assert sorted(seen(ran)) == sorted(tuple(ids) for ids, _ in every), "a text is missing or was changed"
    loss, expected = oracle_step(every).gradient()
    assert relative_distance(oracle_step(CHOSEN).gradient()[1], expected) > 0.05, "the texts do not matter here"
    assert relative_distance(ran.gradient, expected) < TOLERANCE[torch.float64]
    assert ran.losses == pytest.approx([loss], rel=1e-6)


def test_texts_that_are_learnt_or_divided_by_apart_would_be_seen(tmp_path: Path) -> None:
    """Two planted mistakes: labels on the texts, and a mean for each of the two kinds of rows."""
    texts = write_texts(tmp_path / "texts.jsonl", [words(6, 1), words(21, 2)])
    settings = {"per_device_train_batch_size": 10, "align_data_share": 0.2}
    ran = run(CHOSEN, tmp_path / "run", align_data=str(tmp_path / "texts.jsonl"), **settings)
    learnt = oracle_step([*CHOSEN, *((ids, [IGNORED, *ids[1:]]) for ids, _ in texts)]).gradient()[1]
    assert relative_distance(ran.gradient, learnt) > 0.05
    prompts, alone = oracle_step(CHOSEN).gradient()[1], oracle_step(texts).gradient()[1]
    apart = {name: prompts[name] + alone[name] for name in prompts}
    assert relative_distance(ran.gradient, apart) > 0.05


@pytest.mark.parametrize("case", range(4))
def test_any_texts_share_layout_and_draw(case: int, tmp_path: Path) -> None:
    """Random cases: texts drawn, repeated and cut, sequences drawn, boundary in or out."""
    rng = random.Random(case)
    texts = write_texts(tmp_path / "t.jsonl", [words(rng.randrange(1, 40), n) for n in range(rng.randrange(1, 9))])
    share, fraction, boundary = rng.choice([0.1, 0.3, 0.6]), rng.choice([1.0, 0.5]), rng.random() < 0.5
    layout = LAYOUTS[rng.choice(list(LAYOUTS))]
    longest = rng.choice([26, 64])
    settings = {**layout, "max_length": longest, "align_fraction": fraction, "align_boundary": boundary, "seed": case}
    ran = run(
        CHOSEN, tmp_path / "run", align_data=str(tmp_path / "t.jsonl"), align_data_share=share,
        gradient_accumulation_steps=32, **settings,
    )  # fmt: skip
    documents = seen(ran)
    labels = {tuple(ids): labels for ids, labels in CHOSEN}
    known = {tuple(ids[:longest]) for ids, _ in texts}
    taken = Counter(ids for ids in documents if ids not in labels)
    assert taken.total() == round(share / (1 - share) * len(CHOSEN))
    assert taken.keys() <= known
    every = [(list(ids), labels.get(ids, [IGNORED] * len(ids))) for ids in documents]
    drawn = tuple(i for i, (ids, _) in enumerate(every) if draw(case, 0, torch.tensor(ids), fraction))
    step = oracle_step(every, align_fraction=fraction, align_boundary=boundary, drawn=drawn)
    assert relative_distance(ran.gradient, step.gradient()[1]) < TOLERANCE[torch.float64]


def test_the_share_is_exact_and_texts_are_taken_equally_often() -> None:
    rows = Dataset.from_list([{"input_ids": [1, 2], "labels": [-100, 2]}] * 20)
    texts = Dataset.from_list([{"input_ids": [90, i], "labels": [-100, -100]} for i in range(7)])
    for share, count in ((0.2, 5), (0.5, 20), (0.6, 30), (0.01, 0)):
        assert share_of(20, share) == count
        table = beside(rows, texts, share, seed=3)
        taken = Counter(row["input_ids"][1] for row in table if row["input_ids"][0] == 90)
        assert taken.total() == len(table) - 20 == count
        assert not taken or max(taken.values()) - min(taken[i] for i in range(7)) <= 1
        assert table[:20] == rows[:20]
    assert beside(rows, texts, 0.2, 3)[:] == beside(rows, texts, 0.2, 3)[:] != beside(rows, texts, 0.2, 4)[:]


def test_a_conversation_is_aligned_in_its_answers_as_well(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "who found it"}, {"role": "assistant", "content": "the dog did"}]
    (tmp_path / "talk.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    trainer = make_trainer(tmp_path, method="selfaug", align_data=str(tmp_path / "talk.jsonl"), align_data_share=0.1)
    added = trainer.train_dataset[18:]
    text = chat_tokenizer().decode(added["input_ids"][0])
    assert len(added["input_ids"]) == 2
    assert "who found it" in text
    assert "the dog did" in text
    assert {label for labels in added["labels"] for label in labels} == {IGNORED}


def test_a_cache_gives_the_losses_of_reference_passes(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts.jsonl", [words(9, n) for n in range(4)])
    settings: dict[str, Any] = {
        "align_data": str(tmp_path / "texts.jsonl"), "align_data_share": 1 / 3, "dtype": torch.float32,
        "gradient_accumulation_steps": 1, "learning_rate": 1e-2, "max_steps": 8, "perturb": lambda model: None,
    }  # fmt: skip
    online = run(CHOSEN, tmp_path / "online", **settings)
    cached = run(CHOSEN, tmp_path / "cached", reference_cache=str(tmp_path / "cache"), **settings)

    def passes(ran: Any) -> float:
        return sum(float(entry.get("reference_tokens", 0)) for entry in ran.trainer.state.log_history)

    assert passes(online) > 0 == passes(cached)
    assert max(abs(entry.get("alignment", 0)) for entry in online.trainer.state.log_history) > 1e-4  # type: ignore[union-attr]
    # A step of texts alone has a loss of 0.05, and float32 rounds as it does beside responses' of 5.
    assert cached.losses == pytest.approx(online.losses, rel=1e-6, abs=1e-6)


# ---- texts that the base writes -------------------------------------------------------------------------------


def ended(ids: list[int]) -> bool:
    controls = {number for number, token in chat_tokenizer().added_tokens_decoder.items() if token.special}
    return bool(controls & set(ids))


def dense_draw(ids: list[int], seed: int, length: int) -> list[int]:
    """Gumbel-max draws from the dense model without an adapter, token by token, up to a control token."""
    model, generator = chat_model(), torch.Generator().manual_seed(seed)
    found: list[int] = []
    while len(found) < length and not ended(found):
        scores = model(input_ids=torch.tensor([ids + found])).logits[0, -1].float()
        found.append(int((scores - torch.empty_like(scores).exponential_(generator=generator).log()).argmax()))
    return found


def written(trainer: Any) -> list[str]:
    tokenizer = chat_tokenizer()
    return [tokenizer.decode(ids) for ids in trainer.train_dataset[18:]["input_ids"]]


def seeds(count: int) -> list[int]:
    return [random.Random(f"align_data\0{number}").getrandbits(62) for number in range(count)]


def test_a_turn_that_the_base_opens_and_answers_itself_is_its_own_draw(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"align_data": "self:4", "align_data_share": 0.2, "generation_length": 64}
    trainer = make_trainer(tmp_path, method="selfaug", **settings)
    found = written(trainer)
    assert len(found) == 4
    tokenizer = chat_tokenizer()

    def ids_of(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def said(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True).strip()

    expected = []
    for seed in seeds(6):
        header = "<|im_start|>user\n"
        turn = dense_draw(ids_of(header), seed, 64)
        if not said(turn):
            continue
        text = header + said(turn)
        if ended(turn):  # else the turn was cut off, and nothing is answered
            text += "<|im_end|>\n<|im_start|>assistant\n"
            text += said(dense_draw(ids_of(text), seed, 64)) + "<|im_end|>"
        expected.append(text)
    assert any("assistant" in text for text in found), "no turn was answered"
    assert sorted(text.strip() for text in found) == sorted(expected[:4])


def test_without_a_chat_the_base_writes_from_its_start_token(tmp_path: Path) -> None:
    from selfaug.data.prompts import Renderer
    from selfaug.training.trainer import SelfAugTrainer
    from tests.integration import small
    from tests.integration.generating_run import records

    tokenizer = chat_tokenizer()
    args = SelfAugConfig(
        output_dir=str(tmp_path), align_data="self:3", align_data_share=0.1, generation_length=24, bf16=False,
        use_cpu=True, report_to=[], max_length=256,
    )  # fmt: skip
    trainer = SelfAugTrainer(
        chat_model(), args, train_dataset=Dataset.from_list(records()), processing_class=tokenizer,
        peft_config=small.lora(), renderer=Renderer.for_tokenizer(tokenizer, mode="plain"),
    )  # fmt: skip
    start = tokenizer.convert_tokens_to_ids(tokenizer.bos_token or tokenizer.eos_token)
    drawn = [tokenizer.decode(dense_draw([start], seed, 24), skip_special_tokens=True).strip() for seed in seeds(16)]
    rows = trainer.train_dataset[18:]["input_ids"]
    assert len(rows) == 2
    for ids in rows:
        assert ids[0] == start
        assert tokenizer.decode(ids[1:], skip_special_tokens=True) in drawn


def test_texts_are_written_once_and_are_the_same_for_every_seed(tmp_path: Path) -> None:
    first = make_trainer(tmp_path, method="selfaug", align_data="self:4", save_strategy="steps", save_steps=1)
    first.train()
    log = tmp_path / FOLDER / "samples-0.jsonl"
    before = log.read_bytes()
    resumed = make_trainer(tmp_path, method="selfaug", align_data="self:4", save_strategy="steps", save_steps=1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert log.read_bytes() == before
    for (name, one), (_, other) in zip(first.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert any("lora_B" in name and p.abs().max() > 0 for name, p in first.model.named_parameters())
    other_seed = make_trainer(tmp_path / "seed", method="selfaug", align_data="self:4", seed=9)
    assert sorted(set(written(other_seed))) == sorted(set(written(first)))
    assert len(set(written(first))) == 4


def test_without_a_number_each_row_has_a_text_of_its_own(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, method="selfaug", align_data="self", align_data_share=0.25)
    assert len(trainer.train_dataset) == 24
    assert len(set(written(trainer))) >= 5  # two short draws may be equal


# ---- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"align_data": "self:0"}, "names no number of texts"),
        ({"align_data": "self:many"}, "names no number of texts"),
        ({"align_data": "self", "align_data_share": 1.0}, "is not a share in"),
        ({"align_data_share": 0.0}, "is not a share in"),
        ({"align_data": "self", "alpha": 0.0}, "has no effect with alpha=0.0"),
        ({"align_data": "self", "method": "sft"}, "has no effect with"),
        ({"align_data": "self", "method": "selfaug+prompt-nll"}, "would learn the texts"),
        ({"align_data": "self", "reference": "initial"}, "adapter as training began"),
        ({"align_data": "self", "dataset_kwargs": {"skip_prepare_dataset": True}}, "skip_prepare_dataset"),
        ({"align_data": "no/such/file.jsonl"}, "no/such/file.jsonl"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_before_a_model_is_loaded(
    settings: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, DataError), match=says):
        SelfAugConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, report_to=[], **settings)


def test_a_file_without_a_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match=r"empty\.jsonl"):
        make_trainer(tmp_path / "a", method="selfaug", align_data=str(tmp_path / "empty.jsonl"))


def test_a_base_that_no_adapter_gives_back_is_refused(tmp_path: Path) -> None:
    """Full fine-tuning has no base to hold to, and is told so before anything is written."""
    from selfaug.training.trainer import SelfAugTrainer
    from tests.integration.generating_run import records

    args = SelfAugConfig(
        output_dir=str(tmp_path), align_data="self:2", bf16=False, use_cpu=True, report_to=[], max_length=256
    )
    with pytest.raises(ConfigError, match="full fine-tuning has none"):
        SelfAugTrainer(
            chat_model(), args, train_dataset=Dataset.from_list(records()), processing_class=chat_tokenizer()
        )
    assert not (tmp_path / FOLDER).exists()


def test_a_stream_has_no_share(tmp_path: Path) -> None:
    from tests.integration.generating_run import records

    with pytest.raises(ConfigError, match="share of the rows"):
        make_trainer(
            tmp_path, method="selfaug", align_data="self:2", rows=Dataset.from_list(records()).to_iterable_dataset()
        )
