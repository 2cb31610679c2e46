"""Quick measurements of scaled weights, for comparing groups of modules: no text is generated but the base's, once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from selfaug.common.store import Store, key_of
from selfaug.evaluation.general_part import GeneralPart, TextPart
from selfaug.evaluation.task_part import TaskPart
from selfaug.scaling.groups import Group, Probe
from selfaug.scaling.items import Batches, Measured
from selfaug.scaling.scales import Scales, changed
from selfaug.shift.measure import Text, measure

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfaug.run.models import Sides

__all__ = ["Probes"]

_TEXTS, _ROWS = 48, 48
_LONGEST, _ANSWER = 256, 48


@dataclass
class Probes:
    """Probes of scaled weights on fixed texts and rows, each taken once.

    Args:
        sides: Base and tuned model.
        store: Store of finished probes.
        texts: Texts whose base distributions are to be kept.
        rows: Token ids of prompts and accepted answers of the task.
        batch_size: Number of rows in a batch.
    """

    sides: Sides
    store: Store
    texts: Sequence[Text]
    rows: Sequence[tuple[Sequence[int], Sequence[int]]]
    batch_size: int

    @classmethod
    def of(
        cls,
        sides: Sides,
        store: Store,
        batches: Mapping[str, Batches],
        first: Mapping[str, Measured],
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
    ) -> Probes:
        """Take texts and rows from the choosing half: general texts, or the base's own answers to general prompts.

        Args:
            sides: Base and tuned model.
            store: Store of finished probes.
            batches: Items of each part.
            first: First measured batch of each part.
            tokenizer: Tokenizer of the prompts.
            batch_size: Number of rows in a batch.
        """
        general = [name for name, one in batches.items() if one.group == "general" and name in first]
        share = math.ceil(_TEXTS / max(1, len(general)))
        texts: list[Text] = []
        prompts: list[str] = []
        rows: list[tuple[list[int], list[int]]] = []
        for name, one in batches.items():
            part = one.choosing[0]
            if isinstance(part, TextPart) and name in general:
                pieces = [piece.ids[:_LONGEST] for piece in part.pieces if piece.context <= 1][:share]
                texts += [Text(ids, ["general_text"] * len(ids)) for ids in pieces if len(ids) > 1]
            elif isinstance(part, GeneralPart) and name in general:
                prompts += [str(sample["prompt"]) for sample in first[name].samples[:share]]
            elif isinstance(part, TaskPart):
                asked = [each for batch in one.choosing if isinstance(batch, TaskPart) for each in batch.prompts.asked]
                rows += [(each.prompt_ids, each.response_ids) for each in asked]
        texts += _answered(sides, prompts, tokenizer, batch_size, store)
        return cls(sides, store, texts, rows[:_ROWS], batch_size)

    def __call__(self, scales: Scales) -> Probe:
        """Return the probe of scaled weights."""
        from selfaug.generation.decoding import continuation_nll

        origin = self.sides.origin
        tuned = scales.weights_hash(origin.tuned_hash)
        key = key_of(
            {
                "tuned": tuned,
                "base": origin.base_hash or origin.base,
                "dtype": self.sides.dtype,
                "texts": [(list(text.input_ids), list(text.regions)) for text in self.texts],
                "rows": [(list(a), list(b)) for a, b in self.rows],
            }
        )
        found = self.store.get("probe", key)
        if found is None:
            with self.sides.changed(tuned, lambda peft: changed(peft, scales)), self.sides.side("tuned") as model:
                shift = measure(model, self.sides.reference(), self.texts, layers=False)
                nll = continuation_nll(model, self.rows, batch_size=self.batch_size)
            found = asdict(
                Probe(
                    float(shift["regions"]["general_text"]["base_to_tuned"]["value"]),
                    math.fsum(nats for nats, _ in nll) / sum(count for _, count in nll),
                )
            )
            self.store.put("probe", key, found)
        return Probe(**found)

    def weigh(self, groups: Sequence[Group], start: Scales, progress: Callable[[int], None]) -> list[Group]:
        """Return each group with what switching it off, among ``start``'s factors, takes from forgetting and gain."""
        whole = self(start)
        weighed = []
        for n, group in enumerate(groups, start=1):
            without = self(Scales("", {**start.factors, **dict.fromkeys(group.modules, 0.0)}))
            weighed.append(
                Group(group.name, group.modules, whole.forgetting - without.forgetting, without.loss - whole.loss)
            )
            progress(n)
        return weighed


def _answered(
    sides: Sides, prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, batch_size: int, store: Store
) -> list[Text]:
    """Return the prompts with the base's own answers, of which only the answers count as general text."""
    if not prompts:
        return []
    from selfaug.data.tokens import text_ids
    from selfaug.generation.decoding import greedy, pad_id

    bos = str(tokenizer.bos_token or "")
    ids = [text_ids(tokenizer, prompt, bos=not (bos and prompt.startswith(bos)))[-_LONGEST:] for prompt in prompts]
    key = key_of({"prompts": ids, "base": sides.origin.base_hash or sides.origin.base, "dtype": sides.dtype})
    answers = store.get("probe-answers", key)
    if answers is None:
        with sides.side("base") as model:
            eos: Any = model.generation_config.eos_token_id if model.generation_config is not None else None
            stops = {tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}
            answers = greedy(
                model,
                ids,
                stops=sorted(stops),
                pad=pad_id(tokenizer),
                max_new_tokens=_ANSWER,
                batch_size=batch_size,
            )
        store.put("probe-answers", key, answers)
    # The last token of the prompt predicts the first one of the answer.
    return [
        Text([*prompt, *answer], ["other"] * (len(prompt) - 1) + ["general_text"] * (len(answer) + 1))
        for prompt, answer in zip(ids, answers, strict=True)
        if answer
    ]
