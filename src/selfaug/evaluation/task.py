"""The evaluation of records: prompts as in training, greedy answers, answer NLL, and every score of the answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from selfaug.data.fit import fit_documents
from selfaug.data.lost_answers import lost_in_documents
from selfaug.data.metrics import (
    POINTS,
    Verdict,
    abstains,
    answer_f1,
    answer_match,
    crag_verdict,
    exact_match,
    grounded_tokens,
    token_f1,
)
from selfaug.data.record import Conversation, Document, Record
from selfaug.data.thoughts import split_thought
from selfaug.data.tokens import record_tokens
from selfaug.evaluation.results import SIDES, items_of, metric

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from selfaug.data.forms import Forms
    from selfaug.data.prompts import Renderer

__all__ = ["Answer", "Asked", "Prompts", "answer", "ask", "score", "task_counts", "task_metrics"]

Progress = Callable[[int], None]

METRICS = {
    "answer_match": ("fraction", True),
    "answer_f1": ("fraction", True),
    "exact_match": ("fraction", True),
    "f1": ("fraction", True),
    "crag": ("score", True),
    "abstention_precision": ("fraction", True),
    "abstention_recall": ("fraction", True),
    "groundedness": ("fraction", True),
    "answer_nll": ("nats/token", False),
}
"""Unit of each metric of the task, and whether higher is better; :func:`score` gives its values item by item."""


@dataclass(frozen=True)
class Asked:
    """One record as it is put to the models.

    Args:
        index: Its place in the data.
        record: What was read.
        documents: Those that stand in the prompt.
        prompt: The inference prompt, as in training.
        prompt_ids: Its token ids.
        response_ids: The first accepted answer (or the abstention text) and its end, as in training.
    """

    index: int
    record: Record
    documents: tuple[Document, ...]
    prompt: str
    prompt_ids: list[int]
    response_ids: list[int]


@dataclass(frozen=True)
class Prompts:
    """The records that fit, and how many do not, by reason.

    Args:
        asked: Those that fit.
        left_out: Counts of the others.
        answers_lost: How many of ``asked`` have an accepted answer in their documents, and none in what fits of them.
    """

    asked: list[Asked]
    left_out: dict[str, int] = field(default_factory=dict)
    answers_lost: int = 0


@dataclass(frozen=True)
class Answer:
    """What a model made of one prompt.

    Args:
        text: Its greedy answer without special tokens and without a thought before it, stripped.
        finished: Whether it ended by itself, and not at the limit.
        nll: NLL of the accepted answer (not of ``text``): its sum in nats, and its number of tokens.
    """

    text: str
    finished: bool
    nll: tuple[float, int]


def ask(
    items: Sequence[Record | Conversation],
    tokenizer: PreTrainedTokenizerBase,
    renderer: Renderer,
    *,
    max_length: int | None,
    context: int | None,
    max_new_tokens: int,
    progress: Progress | None = None,
) -> Prompts:
    """The prompts of the records, by the run's own renderer, documents dropped as in training where they do not fit.

    Args:
        items: Conversations are left out and counted: their answers are not a few accepted strings.
        tokenizer: Saved with the run.
        renderer: Saved with the run.
        max_length: Tokens of prompt and accepted answer in training; ``None`` for no limit.
        context: Longest sequence of the model; prompt and generated answer must fit it.
        max_new_tokens: Of the generated answer.
        progress: Called with the number of items done.
    """
    asked: list[Asked] = []
    left_out: Counter[str] = Counter()
    lost = 0
    # Prompt + answer <= max_length and prompt + max_new_tokens <= context, said as one limit on a padded length.
    limits = [limit for limit in (max_length, context) if limit is not None]
    limit = min(limits, default=None)
    spare = 0 if context is None or limit is None else context - limit
    for index, item in enumerate(items):
        if isinstance(item, Conversation):
            left_out["a conversation, not a record with accepted answers"] += 1
            continue

        def tokens(documents: Sequence[Document], record: Record = item) -> tuple[list[int], list[int]]:
            prompt, response = record_tokens(renderer, tokenizer, record, documents)
            room = len(response) if context is None else max(len(response), max_new_tokens - spare)
            return prompt + [0] * room, [-100] * len(prompt) + [0] * room

        if item.documents:
            fitted = fit_documents(item.documents, tokens, tokenizer, limit)
            documents = None if fitted is None else fitted.kept_documents
        else:
            documents = () if limit is None or len(tokens(())[0]) <= limit else None
        if documents is None:
            left_out["question and answer do not fit beside the beginning of one document"] += 1
        else:
            prompt, response = record_tokens(renderer, tokenizer, item, documents)
            text = renderer.prompt_text(tokenizer, item, documents)
            lost += documents != item.documents and lost_in_documents(item.answers, item.documents, documents)
            asked.append(Asked(index, item, documents, text, prompt, response))
        if progress is not None:
            progress(index + 1)
    return Prompts(asked, dict(left_out), lost)


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    renderer: Renderer,
    asked: Sequence[Asked],
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress | None = None,
) -> list[Answer]:
    """The model's answers, greedily, and how likely it finds the accepted ones.

    Args:
        model: In evaluation mode.
        tokenizer: Saved with the run.
        renderer: Saved with the run.
        asked: Of :func:`ask`.
        max_new_tokens: Longest answer.
        batch_size: Prompts at a time.
        progress: Called with the number of prompts done, from 0 to twice their number.
    """
    from selfaug.generation.decoding import continuation_nll, greedy, pad_id, stop_ids, without_stop

    stops = stop_ids(model, tokenizer, renderer)
    said = greedy(
        model,
        [one.prompt_ids for one in asked],
        stops=stops,
        pad=pad_id(tokenizer),
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
    )
    nlls = continuation_nll(
        model,
        [(one.prompt_ids, one.response_ids) for one in asked],
        batch_size=batch_size,
        progress=None if progress is None else lambda done: progress(len(asked) + done),
    )
    answers = []
    for ids, nll in zip(said, nlls, strict=True):
        kept, finished = without_stop(ids, stops)
        # What is scored is what comes after a thought, which the prompt may have opened.
        text = split_thought(tokenizer.decode(kept, skip_special_tokens=True)).words
        answers.append(Answer(text.strip(), finished, nll))
    return answers


def score(
    asked: Sequence[Asked],
    answers: Sequence[Answer],
    abstention: str,
    verdicts: Sequence[Verdict | None] | None = None,
    forms: Forms | None = None,
) -> list[dict[str, Any]]:
    """The values of each item by metric: numbers, ``(numerator, denominator)``, or ``None`` where it does not count.

    A question without an answer is answered exactly by abstaining, and by nothing else.

    Args:
        asked: The records.
        answers: One each.
        abstention: The text that was trained for questions without an answer.
        verdicts: A judge's, with ``None`` where it gave none; without it CRAG verdicts are by rules.
        forms: The forms of abstention that count; ``None`` for the package's own.
    """
    found = []
    for place, (one, said) in enumerate(zip(asked, answers, strict=True)):
        record = one.record
        refused = abstains(said.text, abstention, forms)
        accepted = [split_thought(answer).words.strip() for answer in record.answers] if record.answerable else []
        verdict = crag_verdict(said.text, accepted, abstention, forms) if verdicts is None else verdicts[place]
        grounded, total = grounded_tokens(said.text, [document.text for document in one.documents])
        found.append(
            {
                "answer_match": answer_match(said.text, accepted) if record.answerable else float(refused),
                "answer_f1": answer_f1(said.text, accepted) if record.answerable else float(refused),
                "exact_match": exact_match(said.text, accepted) if record.answerable else float(refused),
                "f1": token_f1(said.text, accepted) if record.answerable else float(refused),
                "crag": None if verdict is None else POINTS[verdict],
                "abstention_precision": float(not record.answerable) if refused else None,
                "abstention_recall": None if record.answerable else float(refused),
                "groundedness": None if refused or not one.documents else [grounded, total],
                "answer_nll": list(said.nll),
            }
        )
    return found


def task_metrics(samples: Sequence[Mapping[str, Any]], *, judged: bool, seed: int) -> dict[str, Any]:
    """The metrics of a part from its samples; those that no item counts for are left out.

    Args:
        samples: With ``values`` under ``base`` and ``tuned``.
        judged: A judge gave the CRAG verdicts: then the CRAG score stands for the part, else ``answer_f1``.
        seed: Of the bootstrap.
    """
    chosen = "crag" if judged else "answer_f1"
    metrics = {}
    for name, (unit, higher) in METRICS.items():
        base, tuned = items_of(samples, name)
        if name == "abstention_precision" and not any(sample.get("answerable") is False for sample in samples):
            continue  # without unanswerable questions every abstention is wrong; the counts say how many there are
        entry = metric(base, tuned, unit=unit, higher_is_better=higher, primary=name == chosen, seed=seed)
        if entry is not None:
            metrics[name] = entry
    return metrics


def task_counts(
    asked: Sequence[Asked], answers: Mapping[str, Sequence[Answer]], abstention: str, forms: Forms | None = None
) -> dict[str, Any]:
    """How many answers, per side, were cut at the limit, empty, or none."""
    return {
        "questions_without_answer": sum(not one.record.answerable for one in asked),
        "cut_at_max_new_tokens": {side: sum(not a.finished for a in answers[side]) for side in SIDES},
        "empty": {side: sum(not a.text for a in answers[side]) for side in SIDES},
        "abstained": {side: sum(abstains(a.text, abstention, forms) for a in answers[side]) for side in SIDES},
    }
