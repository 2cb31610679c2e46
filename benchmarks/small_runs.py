"""What is one run of the benchmarks on small models: which model and rows, which training, which losses after it?

Shapes: B rows of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own name for it

from selfaug import SelfAugConfig, SelfAugTrainer
from selfaug.data.encode import encode
from selfaug.data.prompts import Renderer
from selfaug.data.read import read_rows
from selfaug.data.record import Record
from selfaug.lab.item import chat
from selfaug.lab.shipped import resolve
from selfaug.lab.skills import SKILLS, items
from selfaug.lab.task import rows
from selfaug.lab.words import Part
from selfaug.lab.world import World

__all__ = [
    "LORA",
    "METHODS",
    "PROMPT",
    "SOURCES",
    "TRAINING",
    "Data",
    "base_model",
    "fitting",
    "load",
    "nll",
    "train",
    "trainer_of",
]

METHODS: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft"},
    "selfaug": {"method": "selfaug", "alpha": 2.0},
    "selfaug 1/8": {"method": "selfaug", "alpha": 2.0, "align_fraction": 0.125},
    "selfaug 1/8 of tokens": {"method": "selfaug", "alpha": 2.0, "align_token_fraction": 0.125},
    "selfaug 1/64": {"method": "selfaug", "alpha": 2.0, "align_fraction": 0.125, "align_token_fraction": 0.125},
}
TRAINING: dict[str, Any] = {
    "learning_rate": 2e-3,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 16,
    "lr_scheduler_type": "linear",
    "bf16": False,
    "gradient_checkpointing": False,
}
LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all-linear"}
CONTEXT = 512
STORIES = 150
PARTS: tuple[Part, Part] = ("train", "test")
LAB_ROWS: dict[Part, int] = {"train": 400, "test": 150}
LAB_ITEMS = 30  # of each skill
# stories260k knows neither instructions nor headings: the story, the question, the cue.
PROMPT: dict[str, Any] = {"system": "", "document_untitled": ""}


@dataclass(frozen=True)
class Row:
    """Token ids, and labels that are -100 where nothing is predicted."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Data:
    """A model, training rows, held-out answers, and what the model could do before: stories, or the lab's skills."""

    checkpoint: Path
    tokenizer: Any
    train: list[Row]
    answers: list[Row]
    general: list[Row]

    @property
    def prompts(self) -> list[int]:
        """Tokens that the reference pass reads of each training row: its prompt up to the last aligned position."""
        return [row.labels.count(-100) - 1 for row in self.train]


def _mctest(shared: Path, part: Part) -> list[Record]:
    parts = ("train",) if part == "train" else ("dev", "test")
    files = [shared / "data" / "mctest" / f"{source}.{name}.tsv" for source in ("mc160", "mc500") for name in parts]
    return [record for file in files for record in read_rows(file).items if isinstance(record, Record)]


def _squad(shared: Path, part: Part) -> list[Record]:
    # One file has answers: every second article is held out. One question of each paragraph, as long as rows last.
    records = [r for r in read_rows(shared / "data" / "squad" / "dev-v1.1.json").items if isinstance(r, Record)]
    titles = list(dict.fromkeys(record.documents[0].title for record in records))
    held_out = set(titles[1::2])
    first = {record.documents[0].text: record for record in reversed(records)}
    return [r for r in reversed(first.values()) if (r.documents[0].title in held_out) == (part == "test")]


def _lab(shared: Path, part: Part) -> list[Record]:
    # As `selfaug lab task` makes them: terse answers, some unanswerable, four documents.
    made = rows(part, LAB_ROWS[part], World.make())
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.write("".join(json.dumps(row) + "\n" for row in made))
        file.flush()
        return [record for record in read_rows(Path(file.name)).items if isinstance(record, Record)]


SOURCES: dict[str, Callable[[Path, Part], list[Record]]] = {"mctest": _mctest, "squad": _squad, "lab": _lab}
"""Question sets by name: their records of a part; no story, article or land is in both parts."""


def fitting(shared: Path, tokenizer: Any, source: str, part: Part, prompt: dict[str, Any]) -> list[tuple[Record, Row]]:
    """Records that fit whole, and their tokens; a document cut short would ask for answers no longer in it."""
    renderer = Renderer.for_tokenizer(tokenizer, **prompt)
    records = SOURCES[source](shared, part)
    encoded = encode(records, tokenizer, renderer, max_length=None).rows
    pairs = [(record, Row(**row)) for record, row in zip(records, encoded, strict=True)]
    return [(record, row) for record, row in pairs if len(row.input_ids) <= CONTEXT]


def _stories(shared: Path, tokenizer: Any) -> list[Row]:
    texts = json.loads((shared / "data" / "tinystories" / "tinystories_1000.json").read_text())[:STORIES]
    return [Row(ids, ids) for ids in (tokenizer(text)["input_ids"][:CONTEXT] for text in texts)]


def _skills(tokenizer: Any) -> list[Row]:
    """Right answers to the lab's own test items; their prompts are not scored."""
    found = []
    for item in (item for skill in SKILLS for item in items(skill, "test", LAB_ITEMS, World.make())):
        prompt, answer = (tokenizer(text)["input_ids"] for text in (chat(item.turns), f"{item.answer}<|im_end|>"))
        found.append(Row(prompt + answer, [-100] * len(prompt) + answer))
    return found


def load(shared: Path, source: str = "mctest") -> Data:
    """All rows of a question set that fit, and what its model could do before."""
    from transformers import AutoTokenizer

    checkpoint = Path(resolve("lab")) if source == "lab" else shared / "models" / "stories260k"
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    prompt = {} if source == "lab" else PROMPT
    train, answers = ([row for _, row in fitting(shared, tokenizer, source, part, prompt)] for part in PARTS)
    general = _skills(tokenizer) if source == "lab" else _stories(shared, tokenizer)
    return Data(checkpoint, tokenizer, train, answers, general)


@torch.no_grad()
def nll(model: Any, rows: Sequence[Row], batch: int = 16) -> list[tuple[float, int]]:
    """Of each row: the sum of its labelled tokens' NLL in nats, and their number. Dense logits, no code of ours."""
    model.eval()
    found: dict[int, tuple[float, int]] = {}
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids))
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        longest = max(len(rows[i].input_ids) for i in places)
        ids_BT = torch.zeros(len(places), longest, dtype=torch.int64)
        labels_BT = torch.full_like(ids_BT, -100)
        for b, i in enumerate(places):
            ids_BT[b, : len(rows[i].input_ids)] = torch.tensor(rows[i].input_ids)
            labels_BT[b, : len(rows[i].labels)] = torch.tensor(rows[i].labels)
        # Padding stands behind a causal model's text, where it changes nothing before it.
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits[:, :-1].float()
        loss_BT = F.cross_entropy(logits_BTV.transpose(1, 2), labels_BT[:, 1:], reduction="none")
        counts_B = (labels_BT[:, 1:] != -100).sum(dim=1)
        for b, i in enumerate(places):
            found[i] = (float(loss_BT[b].double().sum()), int(counts_B[b]))
    return [found[i] for i in range(len(rows))]


def base_model(data: Data) -> Any:
    """The model as it came, float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(data.checkpoint, dtype=torch.float32)


@contextmanager
def trainer_of(data: Data, settings: Mapping[str, Any], seed: int) -> Iterator[SelfAugTrainer]:
    """A trainer of these settings over the plain training, ready to start; its folder goes with it."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback, set_seed

    set_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        quiet: dict[str, Any] = {"logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
        config = SelfAugConfig(
            output_dir=folder, seed=seed, max_length=CONTEXT, use_cpu=True, **{**quiet, **TRAINING, **settings}
        )
        trainer = SelfAugTrainer(
            base_model(data),
            config,
            train_dataset=Dataset.from_list([asdict(row) for row in data.train]),
            processing_class=data.tokenizer,
            peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
        )
        trainer.remove_callback(PrinterCallback)
        yield trainer


def train(data: Data, method: str, seed: int, **training: Any) -> dict[str, Any]:
    """One run: both losses after it, and the reference tokens that it logged."""
    start = time.perf_counter()
    with trainer_of(data, {**METHODS[method], **training}, seed) as trainer:
        trainer.train()
    seconds = time.perf_counter() - start
    logs = [line for line in trainer.state.log_history if "reference_tokens" in line]
    return {
        "general": nll(trainer.model, data.general),
        "answers": nll(trainer.model, data.answers),
        "reference_tokens": sum(line["reference_tokens"] for line in logs),
        "steps": trainer.state.global_step,
        "seconds": seconds,
    }
