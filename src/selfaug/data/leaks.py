"""Is something of the held-out examples in the training data?"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from selfaug.data.split import Example, documents_of, question_of
from selfaug.data.words import normalise, shingles

__all__ = ["Leaks", "check_leaks"]

_NEAR = 0.8  # Of the shorter text's runs of words: DPR's neighbouring passages overlap by half and are not reported.
_SHOWN = 5


@dataclass(frozen=True)
class Leaks:
    """What both sides share; each list holds texts of the held-out side, without repetitions.

    Args:
        documents: Documents that are, up to case, spacing and punctuation, also in the training data.
        questions: What is asked (:func:`selfaug.data.split.question_of`), likewise.
        near_duplicates: Pairs (held-out document, training document) that are not equal, but of which the shorter one
            shares at least 4/5 of its runs of 8 words with the other.
    """

    documents: list[str]
    questions: list[str]
    near_duplicates: list[tuple[str, str]]

    def __bool__(self) -> bool:
        return bool(self.documents or self.questions or self.near_duplicates)

    def as_dict(self) -> dict[str, Any]:
        """Counts, and the first few of each, cut short."""
        return {
            "shared_documents": _summary([(text,) for text in self.documents]),
            "shared_questions": _summary([(text,) for text in self.questions]),
            "near_duplicate_documents": _summary(self.near_duplicates),
        }

    def lines(self) -> list[str]:
        """The leaks for people; one line where there is none."""
        found = (
            (len(self.documents), "documents of held-out examples are also in the training data"),
            (len(self.questions), "questions of held-out examples are also asked in the training data"),
            (len(self.near_duplicates), "documents of held-out examples are nearly equal to one in the training data"),
        )
        return [f"leak: {count} {what}" for count, what in found if count] or [
            "no leak: no shared document or question"
        ]


def check_leaks(train: Sequence[Example], held_out: Sequence[Example]) -> Leaks:
    """Documents, questions and near duplicates of documents that both sides hold; see :class:`Leaks`."""
    trained_documents = _by_text(text for example in train for text in documents_of(example))
    held_documents = _by_text(text for example in held_out for text in documents_of(example))
    trained_questions = {normalise(question_of(example)) for example in train}
    held_questions = _by_text(question_of(example) for example in held_out)
    return Leaks(
        documents=[text for key, text in held_documents.items() if key in trained_documents],
        questions=[text for key, text in held_questions.items() if key in trained_questions],
        near_duplicates=_near(held_documents, trained_documents),
    )


def _by_text(texts: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        found.setdefault(normalise(text), text)
    return found


def _near(held: dict[str, str], trained: dict[str, str]) -> list[tuple[str, str]]:
    # Only the held-out side is indexed: it is the small one, and the other streams past it.
    sizes: dict[str, int] = {}
    index: defaultdict[int, list[str]] = defaultdict(list)
    for key, text in held.items():
        if key in trained:
            continue
        runs = shingles(text)
        sizes[key] = len(runs)
        for run in runs:
            index[run].append(key)
    pairs = []
    for text in trained.values():
        runs = shingles(text)
        common = Counter(other for run in runs for other in index.get(run, ()))
        for other, count in common.items():
            if count >= _NEAR * min(len(runs), sizes[other]):
                pairs.append((held[other], text))
    return pairs


def _summary(found: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    return {"count": len(found), "first": [[text[:200] for text in texts] for texts in found[:_SHOWN]]}
