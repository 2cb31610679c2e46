"""Splits examples into a training file and a held-out file that share no document."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from selfaug.common.errors import DataError
from selfaug.data.record import Record
from selfaug.data.retrieve import answers_found, retrieve, search_all
from selfaug.data.split import Example, documents_of, plain, split_by_document

if TYPE_CHECKING:
    from selfaug.data.corpus import Ranked
    from selfaug.data.leaks import Leaks

__all__ = ["Prepared", "Retrieval", "prepare"]


@dataclass(frozen=True)
class Retrieval:
    """Settings of :func:`selfaug.data.retrieve.retrieve`.

    Args:
        corpus: Corpus of the passages.
        top_k: Number of passages for a record without documents.
        distractors: Number of misleading passages for each record.
        processes: Number of processes that search; ``None`` for this one alone.
    """

    corpus: Ranked
    top_k: int
    distractors: int = 0
    processes: int | None = None


@dataclass
class Prepared:
    """The two parts of the examples, and facts for the report.

    Args:
        train: Training examples.
        held_out: Held-out examples; empty without a split.
        groups: Number of groups of examples that share documents or questions; ``None`` without a split.
        leaks: What the two parts share; ``None`` without a split.
        without_documents: Names of the records that were left out because retrieval found no passage for them.
        with_answer: Number of records with an accepted answer in their documents; ``None`` without retrieval.
        against: What the examples of another data set share with both parts; ``None`` without such a data set.
        left_out_shared: Number of examples that were left out because they share something with that data set.
    """

    train: list[Example]
    held_out: list[Example] = field(default_factory=list)
    groups: int | None = None
    leaks: Leaks | None = None
    without_documents: list[str] = field(default_factory=list)
    with_answer: int | None = None
    against: Leaks | None = None
    left_out_shared: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the counts and the names of left-out records as JSON."""
        row: dict[str, Any] = {"train": len(self.train), "held_out": len(self.held_out)}
        if self.leaks is not None:
            row |= {"groups": self.groups, "leaks": self.leaks.as_dict()}
        if self.against is not None:
            sharing = len(self.against.training_places)
            row["against"] = {**self.against.as_dict(), "rows_that_share": sharing, "left_out": self.left_out_shared}
        if self.with_answer is not None:
            row["retrieval"] = {
                "records_with_answer_in_documents": self.with_answer,
                "left_out_without_documents": self.without_documents,
            }
        return row


def prepare(
    examples: Sequence[Example],
    *,
    held_out: float = 0.0,
    seed: int = 0,
    retrieval: Retrieval | None = None,
    on_bad_row: str = "error",
    progress: Callable[[int], None] | None = None,
    keys: Sequence[Collection[str]] = (),
    against: Sequence[Example] | None = None,
    on_shared_row: str = "keep",
) -> Prepared:
    """Split examples, then fill their documents from a corpus, then check for leaks.

    A record without documents is split by its best passage. The split is drawn before other passages are retrieved,
    since distractors would tie all records together. No passage then goes to both sides: it goes to the side that
    ranks it higher, and a record's own documents stay on its side.

    Args:
        examples: Records, conversations, or TRL's rows, of which only records get documents.
        held_out: Fraction of the examples to hold out; 0 for none.
        seed: Seed of the split and of the order of documents.
        retrieval: Settings of the retrieval; ``None`` for no retrieval.
        on_bad_row: "error" or "skip", for records for which retrieval finds no passage.
        progress: Function called after each retrieval with the number of records done.
        keys: Sets of texts, one for each example, that also keep examples on one side; see :func:`split_by_document`.
        against: Other examples, such as a test set, that should share nothing with the prepared ones.
        on_shared_row: "skip" to leave out examples that share a document, a near duplicate of one, or a question with
            ``against``, "keep" to only count them.

    Raises:
        ConfigError: If ``held_out`` or a number of the retrieval is out of its range.
        DataError: If the examples cannot be split, or a record is left without documents and ``on_bad_row`` is "error".
    """
    from selfaug.data.leaks import check_leaks

    left_out = 0
    if against is not None and on_shared_row == "skip":
        # This comes before the split, which then has the wanted sizes; retrieved documents are compared below.
        shared = check_leaks(examples, against).training_places
        left_out = len(shared)
        keys = [key for i, key in enumerate(keys) if i not in shared]
        examples = [example for i, example in enumerate(examples) if i not in shared]
        if not examples:
            raise DataError(
                f"all {left_out} examples share a document or question with those to be kept apart from",
                "give other data, or pass --on_shared_row keep to only count them.",
            )
    parts = Prepared(list(examples), left_out_shared=left_out)
    if held_out:
        seeded = _with_best(examples, retrieval) if retrieval else examples
        split = split_by_document(seeded, held_out, seed, keys)
        parts.train = [example for i, example in enumerate(examples) if i not in split.held_out_places]
        parts.held_out = [example for i, example in enumerate(examples) if i in split.held_out_places]
        parts.groups = split.groups
    if retrieval is not None:
        _retrieve(parts, retrieval, seed, on_bad_row, progress or (lambda _: None))
        records = [example for example in (*parts.train, *parts.held_out) if isinstance(example, Record)]
        if against is not None and on_shared_row == "skip":
            for part in (parts.train, parts.held_out):
                shared = check_leaks(part, against).training_places
                part[:] = [example for i, example in enumerate(part) if i not in shared]
                parts.left_out_shared += len(shared)
            records = [example for example in (*parts.train, *parts.held_out) if isinstance(example, Record)]
        parts.with_answer = sum(answers_found(record) for record in records)
    if held_out:
        parts.leaks = check_leaks(parts.train, parts.held_out)
    if against is not None:
        parts.against = check_leaks([*parts.train, *parts.held_out], against)
    for name, part in (("training data", parts.train), ("held-out data", parts.held_out)):
        if not part and (held_out or name == "training data"):
            raise DataError(f"no example is left for the {name}", "use a corpus that speaks of what is asked.")
    return parts


def _with_best(examples: Sequence[Example], retrieval: Retrieval) -> list[Example]:
    bare = [i for i, example in enumerate(examples) if isinstance(example, Record) and not example.documents]
    questions = [(cast("Record", examples[i]).question, 1) for i in bare]
    best = dict(zip(bare, search_all(retrieval.corpus, questions, retrieval.processes), strict=True))
    return [
        replace(cast("Record", example), documents=tuple(best[i])) if i in best else example
        for i, example in enumerate(examples)
    ]


def _retrieve(
    parts: Prepared, retrieval: Retrieval, seed: int, on_bad_row: str, progress: Callable[[int], None]
) -> None:
    """Fill the documents of both parts in place, with no passage on both sides."""
    train_ranks, held_out_ranks = (_ranks(part, retrieval) for part in (parts.train, parts.held_out))
    exclude = {text for text, rank in train_ranks.items() if rank <= held_out_ranks.get(text, math.inf)}
    done = 0

    def fill(part: list[Example]) -> list[Example]:
        nonlocal done
        places = [i for i, example in enumerate(part) if isinstance(example, Record)]
        records = retrieve(
            [cast("Record", part[i]) for i in places],
            retrieval.corpus,
            retrieval.top_k,
            distractors=retrieval.distractors,
            seed=seed,
            exclude=exclude,
            processes=retrieval.processes,
            progress=lambda count: progress(done + count),
        )
        done += len(records)
        filled = dict(zip(places, records, strict=True))
        whole = [filled.get(i, example) for i, example in enumerate(part)]
        return [example for example in whole if _kept(example, parts.without_documents, on_bad_row)]

    parts.held_out = fill(parts.held_out)
    exclude = {plain(text) for example in parts.held_out for text in documents_of(example)}
    parts.train = fill(parts.train)


def _ranks(part: Sequence[Example], retrieval: Retrieval) -> dict[str, int]:
    """Return, for each passage that the part may get, the best rank by any question; -1 for the records' documents."""
    ranks: dict[str, int] = {}
    asked: list[tuple[str, int]] = []
    for example in part:
        for text in documents_of(example):
            ranks[plain(text)] = -1
        if isinstance(example, Record):
            asked.append((example.question, retrieval.distractors + (0 if example.documents else retrieval.top_k)))
    for documents in search_all(retrieval.corpus, asked, retrieval.processes):
        for rank, document in enumerate(documents):
            text = plain(document.text)
            ranks[text] = min(rank, ranks.get(text, rank))
    return ranks


def _kept(example: Example, left_out: list[str], on_bad_row: str) -> bool:
    if not isinstance(example, Record) or example.documents:
        return True
    name = f"{example.id}: {example.question}" if example.id else example.question
    if on_bad_row == "error":
        raise DataError(
            f"the corpus has no passage for the record {name[:120]!r}: none shares a word with its question, or "
            "all that do are on the other side of the split",
            "use a larger corpus, give the record documents, or pass --on_bad_row skip to leave it out.",
        )
    left_out.append(name)
    return False
