"""Records of a run's task as a part of an evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from selfaug.common.store import key_of
from selfaug.evaluation.parts import Finished, Progress, shown
from selfaug.evaluation.results import SIDES
from selfaug.evaluation.task import Answer, Prompts, answer, score, task_counts, task_metrics

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from selfaug.data.forms import Forms
    from selfaug.data.prompts import Renderer
    from selfaug.evaluation.judge import Judge

__all__ = ["TaskPart"]


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
    forms: Forms | None = None
    needs_model: bool = True

    def _prompts_hash(self) -> str:
        return key_of({"prompts": [(one.prompt_ids, one.response_ids) for one in self.prompts.asked]})

    def deciding(self) -> dict[str, Any]:
        """Return a hash of prompts and accepted answers, and the limits."""
        return {"prompts": self._prompts_hash(), "max_new_tokens": self.max_new_tokens, "batch_size": self.batch_size}

    def items(self) -> dict[str, int]:  # noqa: D102
        return {self.name: len(self.prompts.asked)}

    def only(self, places: Mapping[str, Sequence[int]]) -> TaskPart:  # noqa: D102
        asked = [self.prompts.asked[i] for i in sorted(places[self.name])]
        return dataclasses.replace(self, prompts=Prompts(asked))

    def look_ahead(self) -> None:
        """Do nothing: the prompts have been rendered already."""

    def size(self) -> int:
        """Return two steps a prompt: one to answer it, one to score it."""
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
        counts = task_counts(asked, answers, abstention, self.forms) | {"answers_lost": self.prompts.answers_lost}
        verdicts: dict[str, Any] = dict.fromkeys(SIDES)
        if self.judge is not None:
            verdicts, judged = self._judged(answers)
            counts |= judged
        values = {side: score(asked, answers[side], abstention, verdicts[side], self.forms) for side in SIDES}
        samples = [
            {
                "id": one.record.id if one.record.id is not None else str(one.index),
                "index": one.index,
                "question": one.record.question,
                "expected": list(one.record.answers),
                "answerable": one.record.answerable,
                **shown(one.prompt),
                **{
                    side: {
                        "response": answers[side][i].text,
                        "cut": not answers[side][i].finished,
                        "values": values[side][i],
                        **_verdict(verdicts[side], i),
                    }
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
                "abstentions": None if self.forms is None else self.forms.source,
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
                (one.record.question, one.record.answers if one.record.answerable else (), answer.text)
                for one, answer in zip(self.prompts.asked, answers[side], strict=True)
            ]
            verdicts[side] = self.judge.verdicts(rows, self.renderer.abstention)
            unparsed[side] = sum(verdict is None for verdict in verdicts[side])
        # An item without a verdict on one side is left out on both, so that the difference stays paired.
        both = [all(verdicts[side][i] is not None for side in SIDES) for i in range(len(self.prompts.asked))]
        verdicts = {side: [v if ok else None for v, ok in zip(verdicts[side], both, strict=True)] for side in SIDES}
        counts = {
            "judge_unparsed": unparsed,
            "judge_left_out": both.count(False),
            "judge_replies_not_understood": [reply[:200] for reply in self.judge.unparsed[:3]],
        }
        return verdicts, counts


def _verdict(verdicts: Sequence[Any] | None, place: int) -> dict[str, Any]:
    return {} if verdicts is None else {"verdict": verdicts[place]}
