"""Plain texts and lm_eval tasks as parts of an evaluation."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from selfaug.common.store import key_of
from selfaug.evaluation.general import general_metrics, side_samples
from selfaug.evaluation.harness import SEEDS, Harness, file_facts
from selfaug.evaluation.parts import Finished, Progress, shown
from selfaug.evaluation.results import SIDES, items_of, metric
from selfaug.evaluation.suites import GeneralTask
from selfaug.evaluation.text import Window, text_nll

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["GeneralPart", "TextPart"]


@dataclass
class TextPart:
    """Plain texts, measured by their NLL."""

    name: str
    texts: list[str]
    pieces: list[Window]
    data: dict[str, Any]
    batch_size: int
    needs_model: bool = True

    def _prompts_hash(self) -> str:
        return key_of({"windows": [(piece.text, piece.ids, piece.context) for piece in self.pieces]})

    def deciding(self) -> dict[str, Any]:  # noqa: D102
        return {"windows": self._prompts_hash(), "batch_size": self.batch_size}

    def items(self) -> dict[str, int]:  # noqa: D102
        return {self.name: len({piece.text for piece in self.pieces})}

    def only(self, places: Mapping[str, Sequence[int]]) -> TextPart:  # noqa: D102
        measured = sorted({piece.text for piece in self.pieces})
        new = {measured[place]: n for n, place in enumerate(sorted(places[self.name]))}
        pieces = [dataclasses.replace(piece, text=new[piece.text]) for piece in self.pieces if piece.text in new]
        return dataclasses.replace(self, texts=[self.texts[old] for old in new], pieces=pieces)

    def look_ahead(self) -> None:
        """Do nothing: the texts have been read already."""

    def size(self) -> int:  # noqa: D102
        return len(self.pieces)

    def compute(self, side: str, model: PreTrainedModel | None, progress: Progress) -> Any:  # noqa: D102
        assert model is not None
        return text_nll(model, self.pieces, batch_size=self.batch_size, progress=progress)

    def finish(self, payloads: Mapping[str, Any], seed: int) -> Finished:  # noqa: D102
        measured = sorted({piece.text for piece in self.pieces})
        samples = [
            {
                "id": str(number),
                "index": number,
                "expected": [],
                **shown(self.texts[number]),
                **{side: {"response": "", "values": {"nll": list(payloads[side][i])}} for side in SIDES},
            }
            for i, number in enumerate(measured)
        ]
        base, tuned = items_of(samples, "nll")
        entry = metric(base, tuned, unit="nats/token", higher_is_better=False, primary=True, seed=seed)
        left_out = len(self.texts) - len(measured)
        return Finished(
            {
                "group": "general",
                "name": self.name.partition(":")[2],
                "settings": {"window": max(len(piece.ids) for piece in self.pieces), "batch_size": self.batch_size},
                "data": self.data,
                "prompts": self._prompts_hash(),
                "items": len(measured),
                "left_out": {"a single token": left_out} if left_out else {},
                "counts": {"tokens": int(base.denominator_n.sum())},
                "metrics": {} if entry is None else {"nll": entry},
            },
            samples,
        )


@dataclass
class GeneralPart:
    """A task or group of lm_eval."""

    name: str
    task: GeneralTask
    harness: Harness
    tokenizer: PreTrainedTokenizerBase
    batch_size: int
    max_length: int | None
    allow_code_execution: bool
    backend: str = "hf"
    backend_args: Mapping[str, Mapping[str, Any]] | None = None

    @property
    def needs_model(self) -> bool:
        """Whether the loaded model is used; other backends of lm_eval load their own."""
        return self.backend_args is None

    def deciding(self) -> dict[str, Any]:  # noqa: D102
        return {
            "task": self.task.settings(),
            "yaml": str(self.harness.settings(self.task.task)),
            "file": file_facts(self.task),
            "batch_size": self.batch_size,
            "max_length": self.max_length,
            "backend": self.backend,
            "lm_eval": importlib.metadata.version("lm_eval"),
            "seeds": SEEDS,
        }

    def items(self) -> dict[str, int]:  # noqa: D102
        return self.harness.items(self.task)

    def only(self, places: Mapping[str, Sequence[int]]) -> GeneralPart:  # noqa: D102
        items = {name: sorted(chosen) for name, chosen in places.items()}
        return dataclasses.replace(self, task=dataclasses.replace(self.task, limit=None, items=items))

    def look_ahead(self) -> None:
        """Load the task's data and code, and fill its templates with its first item, or each one of a local file.

        Raises:
            UserError: If the data is missing or cannot be read, or a package is missing.
        """
        if self.task.items is None:  # some items of a task that has been looked at
            self.harness.look_ahead(self.task, self.max_length)

    def size(self) -> int | None:
        """Return ``None``: lm_eval reports the number once it has built its requests."""
        return None

    def compute(self, side: str, model: PreTrainedModel | None, progress: Progress) -> Any:  # noqa: D102
        chosen = self.backend if model is None else model
        return self.harness.run(
            self.task,
            chosen,
            self.tokenizer,
            model_args=None if self.backend_args is None else self.backend_args[side],
            batch_size=self.batch_size,
            max_length=self.max_length,
            allow_code_execution=self.allow_code_execution,
            progress=progress,
        )

    def finish(self, payloads: Mapping[str, Any], seed: int) -> Finished:  # noqa: D102
        base, tuned = payloads["base"], payloads["tuned"]
        samples = side_samples(base, tuned)
        metrics, subtasks = general_metrics(self.task, base, tuned, samples, seed)
        prompts = key_of({"prompts": [sample["prompt_hash"] for sample in samples]})
        for sample in samples:
            sample |= shown(sample["prompt"])
        entry: dict[str, Any] = {
            "group": "general",
            "name": self.task.task,
            "settings": {
                **self.task.settings(),
                "chat_template": base["chat_template"],
                "versions": base["versions"],
                "shots": base["shots"],
                "batch_size": self.batch_size,
                "backend": self.backend,
                "seeds": SEEDS,
            },
            "data": {"file": file_facts(self.task), "items_hash": prompts},
            "prompts": prompts,
            "items": len(samples),
            "left_out": base["left_out"],
            "counts": {},
            "metrics": metrics,
        }
        if subtasks:
            entry["subtasks"] = subtasks
        return Finished(entry, samples)
