"""What are the parts of an evaluation: what decides each, what does it ask of a model, what comes of both answers?

A part is computed per side (base, tuned) into a payload of plain JSON, which is stored; from the two payloads its entry
in the results and its lines in the sample log are made, which costs nothing and is done anew each time.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from selfaug.evaluation.general import general_metrics, side_samples
from selfaug.evaluation.harness import SEEDS, Harness, file_facts
from selfaug.evaluation.results import SIDES, items_of, metric
from selfaug.evaluation.store import key_of
from selfaug.evaluation.suites import GeneralTask
from selfaug.evaluation.task import Answer, Prompts, answer, score, task_counts, task_metrics
from selfaug.evaluation.text import Window, text_nll
from selfaug.provenance import text_hash

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from selfaug.data.prompts import Renderer
    from selfaug.evaluation.judge import Judge

__all__ = ["Finished", "GeneralPart", "Part", "TaskPart", "TextPart"]

_LONGEST_PROMPT = 4000
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Finished:
    """A part's entry in the results (without key and times), and its lines in the sample log (without its name)."""

    entry: dict[str, Any]
    samples: list[dict[str, Any]]


class Part(Protocol):
    """One part of an evaluation."""

    name: str

    @property
    def needs_model(self) -> bool:
        """Whether the loaded model computes it; else another program loads its own."""

    def deciding(self) -> dict[str, Any]:
        """Everything besides the weights and the libraries' versions that decides the payloads."""

    def size(self) -> int:
        """Steps of one side that progress counts to; 0 where they are not known."""

    def compute(self, side: str, model: PreTrainedModel | None, progress: Progress) -> Any:
        """The payload of one side."""

    def finish(self, payloads: Mapping[str, Any], seed: int) -> Finished:
        """What comes of both sides."""


@dataclass
class TaskPart:
    """Records of the run's task."""

    name: str
    prompts: Prompts
    data: dict[str, Any]
    bad_rows: int
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer
    max_new_tokens: int
    batch_size: int
    judge: Judge | None = None
    needs_model: bool = True

    def _prompts_hash(self) -> str:
        return key_of({"prompts": [(one.prompt_ids, one.response_ids) for one in self.prompts.asked]})

    def deciding(self) -> dict[str, Any]:
        """Prompts, accepted answers' tokens and limits."""
        return {"prompts": self._prompts_hash(), "max_new_tokens": self.max_new_tokens, "batch_size": self.batch_size}

    def size(self) -> int:
        """Each prompt is answered once and scored once."""
        return 2 * len(self.prompts.asked)

    def compute(self, side: str, model: PreTrainedModel | None, progress: Progress) -> Any:  # noqa: D102
        assert model is not None
        answers = answer(
            model,
            self.tokenizer,
            self.renderer,
            self.prompts.asked,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            progress=progress,
        )
        return [dataclasses.asdict(one) for one in answers]

    def finish(self, payloads: Mapping[str, Any], seed: int) -> Finished:  # noqa: D102
        asked, abstention = self.prompts.asked, self.renderer.abstention
        answers = {
            side: [Answer(a["text"], a["finished"], (a["nll"][0], int(a["nll"][1]))) for a in payloads[side]]
            for side in SIDES
        }
        counts = task_counts(asked, answers, abstention)
        verdicts: dict[str, Any] = dict.fromkeys(SIDES)
        if self.judge is not None:
            verdicts, judged = self._judged(answers)
            counts |= judged
        values = {side: score(asked, answers[side], abstention, verdicts[side]) for side in SIDES}
        samples = [
            {
                "id": one.record.id if one.record.id is not None else str(one.index),
                "index": one.index,
                "question": one.record.question,
                "expected": list(one.record.answers),
                "answerable": one.record.answerable,
                **_shown(one.prompt),
                **{
                    side: {"response": answers[side][i].text, "values": values[side][i], **_verdict(verdicts[side], i)}
                    for side in SIDES
                },
            }
            for i, one in enumerate(asked)
        ]
        left_out = dict(self.prompts.left_out)
        if self.bad_rows:
            left_out["rows that could not be used"] = self.bad_rows
        entry = {
            "group": "task",
            "name": self.name,
            "settings": {
                "max_new_tokens": self.max_new_tokens,
                "batch_size": self.batch_size,
                "decoding": "greedy",
                "crag": "rules" if self.judge is None else f"judge {self.judge.model}",
            },
            "data": self.data,
            "prompts": self._prompts_hash(),
            "items": len(asked),
            "left_out": left_out,
            "counts": counts,
            "metrics": task_metrics(samples, judged=self.judge is not None, seed=seed),
        }
        return Finished(entry, samples)

    def _judged(self, answers: Mapping[str, Sequence[Answer]]) -> tuple[dict[str, Any], dict[str, Any]]:
        assert self.judge is not None
        verdicts: dict[str, Any] = {}
        unparsed: dict[str, int] = {}
        for side in SIDES:
            rows = [
                (one.record.question, one.record.answers if one.record.answerable else (), said.text)
                for one, said in zip(self.prompts.asked, answers[side], strict=True)
            ]
            verdicts[side] = self.judge.verdicts(rows, self.renderer.abstention)
            unparsed[side] = sum(verdict is None for verdict in verdicts[side])
        # What one side has no verdict on is compared on neither.
        both = [all(verdicts[side][i] is not None for side in SIDES) for i in range(len(self.prompts.asked))]
        verdicts = {side: [v if ok else None for v, ok in zip(verdicts[side], both, strict=True)] for side in SIDES}
        counts = {
            "judge_unparsed": unparsed,
            "judge_left_out": both.count(False),
            "judge_replies_not_understood": [reply[:200] for reply in self.judge.unparsed[:3]],
        }
        return verdicts, counts


@dataclass
class TextPart:
    """Plain texts."""

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
                **_shown(self.texts[number]),
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
        """Only where lm_eval does not load its own."""
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

    def size(self) -> int:
        """lm_eval shows its own bars."""
        return 0

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
        )

    def finish(self, payloads: Mapping[str, Any], seed: int) -> Finished:  # noqa: D102
        base, tuned = payloads["base"], payloads["tuned"]
        samples = side_samples(base, tuned)
        metrics, subtasks = general_metrics(self.task, base, tuned, samples, seed)
        prompts = key_of({"prompts": [sample["prompt_hash"] for sample in samples]})
        for sample in samples:
            sample |= _shown(sample["prompt"])
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


def _shown(prompt: str) -> dict[str, str]:
    """The prompt for the sample log, its middle left out where it is long, and the hash of the whole."""
    whole = str(text_hash(prompt))
    if len(prompt) > _LONGEST_PROMPT:
        half = _LONGEST_PROMPT // 2
        prompt = f"{prompt[:half]}\n[… {len(prompt) - 2 * half} characters …]\n{prompt[-half:]}"
    return {"prompt": prompt, "prompt_hash": whole}


def _verdict(verdicts: Sequence[Any] | None, place: int) -> dict[str, Any]:
    return {} if verdicts is None else {"verdict": verdicts[place]}
