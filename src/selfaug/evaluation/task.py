"""The evaluation of records: prompts as in training, greedy answers, the NLL of accepted answers, and scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from selfaug.data.fit import Truncate, fit_documents
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
"""Unit of each metric of the task, and whether higher is better; :func:`score` returns its values item by item."""


@dataclass(frozen=True)
class Asked:
    """One record with its prompt.

    Args:
        index: Index of the record in the data.
        record: Record as it was read.
        documents: Documents in the prompt.
        prompt: Prompt without the response, as in training.
        prompt_ids: Token ids of the prompt.
        response_ids: Token ids of the first accepted answer (or the abstention text) and its end, as in training.
    """

    index: int
    record: Record
    documents: tuple[Document, ...]
    prompt: str
    prompt_ids: list[int]
    response_ids: list[int]


@dataclass(frozen=True)
class Prompts:
    """The prompts of the records that fit, and the number of records left out by reason.

    Args:
        asked: Records that fit.
        left_out: Number of records left out, by reason.
        answers_lost: Number of ``asked`` whose accepted answers all stand in documents that did not fit.
    """

    asked: list[Asked]
    left_out: dict[str, int] = field(default_factory=dict)
    answers_lost: int = 0


@dataclass(frozen=True)
class Answer:
    """A model's answer to one prompt.

    Args:
        text: Greedy answer without special tokens and without a thought before it, stripped.
        finished: Whether the answer ended by itself, and not at the limit.
        nll: NLL of the accepted answer (not of ``text``): the sum in nats, and the number of tokens.
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
    truncate: Truncate = "by_score",
    progress: Progress | None = None,
) -> Prompts:
    """Render the prompts of the records with the run's renderer, with the documents that fit.

    Args:
        items: Records and conversations. Conversations are left out and counted, since they have no accepted answers.
        tokenizer: Tokenizer of the run.
        renderer: Renderer of the run.
        max_length: Largest number of tokens of prompt and accepted answer in training; ``None`` for no limit.
        context: Longest sequence of the model in tokens; prompt and generated answer must fit it.
        max_new_tokens: Largest number of tokens of the generated answer.
        truncate: What decides which documents are dropped; see :func:`selfaug.data.fit.fit_documents`.
        progress: Function called with the number of items done.
    """
    asked: list[Asked] = []
    left_out: Counter[str] = Counter()
    lost = 0
    # prompt + answer <= max_length and prompt + max_new_tokens <= context, written as one limit on a padded length.
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
            fitted = fit_documents(item.documents, tokens, tokenizer, limit, truncate=truncate)
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
    """Generate the model's greedy answers, and compute the NLL of the accepted ones.

    Args:
        model: Model in evaluation mode.
        tokenizer: Tokenizer of the run.
        renderer: Renderer of the run.
        asked: Records with prompts, as :func:`ask` returns them.
        max_new_tokens: Longest answer in tokens.
        batch_size: Number of prompts in a batch.
        progress: Function called with the number of passes done; each prompt has two.
    """
    from selfaug.generation.decoding import continuation_nll, greedy, pad_id, stop_ids, without_stop

    stops = stop_ids(model, tokenizer, renderer)
    generated = greedy(
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
    for ids, nll in zip(generated, nlls, strict=True):
        kept, finished = without_stop(ids, stops)
        # The thought before an answer is not scored; the prompt may have opened it.
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
    """Return the values of each item by metric: a number, ``[numerator, denominator]``, or ``None`` if not counted.

    Abstaining is the only correct response to a question without an answer.

    Args:
        asked: Records with prompts.
        answers: Answer to each record.
        abstention: Text that was trained for questions without an answer.
        verdicts: Verdicts of a judge, ``None`` for those it did not give; without them rules give the CRAG verdicts.
        forms: Forms of abstention that count; ``None`` for the package's own.
    """
    values = []
    for place, (one, reply) in enumerate(zip(asked, answers, strict=True)):
        record = one.record
        refused = abstains(reply.text, abstention, forms)
        accepted = [split_thought(answer).words.strip() for answer in record.answers] if record.answerable else []
        verdict = crag_verdict(reply.text, accepted, abstention, forms) if verdicts is None else verdicts[place]
        grounded, total = grounded_tokens(reply.text, [document.text for document in one.documents])
        values.append(
            {
                "answer_match": answer_match(reply.text, accepted) if record.answerable else float(refused),
                "answer_f1": answer_f1(reply.text, accepted) if record.answerable else float(refused),
                "exact_match": exact_match(reply.text, accepted) if record.answerable else float(refused),
                "f1": token_f1(reply.text, accepted) if record.answerable else float(refused),
                "crag": None if verdict is None else POINTS[verdict],
                "abstention_precision": float(not record.answerable) if refused else None,
                "abstention_recall": None if record.answerable else float(refused),
                "groundedness": None if refused or not one.documents else [grounded, total],
                "answer_nll": list(reply.nll),
            }
        )
    return values


def task_metrics(samples: Sequence[Mapping[str, Any]], *, judged: bool, seed: int) -> dict[str, Any]:
    """Return the metrics of a part from its samples, without those that no item counts for.

    Args:
        samples: Samples with ``values`` under ``base`` and ``tuned``.
        judged: Whether a judge gave the CRAG verdicts. If so, the CRAG score is the primary metric, else ``answer_f1``.
        seed: Seed of the bootstrap.
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
    """Return the number of questions without an answer, and of cut, empty and abstaining responses of each side."""
    return {
        "questions_without_answer": sum(not one.record.answerable for one in asked),
        "cut_at_max_new_tokens": {side: sum(not a.finished for a in answers[side]) for side in SIDES},
        "empty": {side: sum(not a.text for a in answers[side]) for side in SIDES},
        "abstained": {side: sum(abstains(a.text, abstention, forms) for a in answers[side]) for side in SIDES},
    }
