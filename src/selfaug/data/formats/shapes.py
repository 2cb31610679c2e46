"""The shapes of data sets whose rows become records by paths alone, in the language of ``--map``.

A shape gives the fields of its rows and the path of each field of a record (``|`` separates spellings, of which a
file's first rows select one). ``--map`` makes a shape of the same kind.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from selfaug.data.fields import Fields, RowError, Where, shown
from selfaug.data.formats.paths import Found, Path, holds
from selfaug.data.record import (
    DOCUMENT_PARTS,
    Conversation,
    Document,
    Item,
    Record,
    parse_document,
    require_documents,
)

__all__ = ["FIELDS", "SHAPES", "Shape"]

Row = Mapping[str, Any]

FIELDS = (
    *("question", "documents", "documents.title", "documents.id", "documents.score", "documents.gold"),
    *("documents.relevant", "answer", "id", "system", "answerable", "history"),
)
"""Fields of a record that a path may fill. ``documents.relevant`` names the gold documents by title, id, text or
index, ``documents.gold`` has a flag for each. ``history`` has earlier questions and answers."""

_NEEDED = frozenset(("question", "documents", "answer"))
_NO_ANSWER = "(no answer)"
_EARLIER = "Earlier questions and answers:"


@dataclass(frozen=True)
class Shape:
    """One shape of rows.

    Args:
        name: Name for ``--format``.
        about: Sentence for the documentation.
        has: Paths at which a row of this shape has values, with ``|`` between spellings.
        paths: Path of each field of a record, with ``|`` between spellings.
        fits: Function that checks further features of a row.
        each: Path of the questions in rows of several questions; a question has the fields around it too. Empty for
            rows of one question.
        turns: Paths of the questions and of the answers of a dialogue, lists with one entry for each turn, which
            becomes a row with ``question`` and ``answer``; empty for none.
        dialogue: Whether each question includes the questions and answers before it in the same row.
        abstains: Answers that mean that the documents have none; an answer may also end with one of them.
        empty_abstains: Path of answers at which an empty list means that the documents have none; empty for no path.
        keeps_answer: Whether the answer of an unanswerable question is trained instead of the abstention text.
        skips_blank: Whether blank documents are left out instead of being an error.
        chats: Whether a row without documents is a conversation of one question and answer.
        title: Function that is applied to titles.
        answer_tag: Text before the short answer at the end of a reasoned one, which is accepted too; empty for none.
    """

    name: str
    about: str
    has: tuple[str, ...]
    paths: Mapping[str, str]
    fits: Callable[[Row], bool] = lambda row: True
    each: str = ""
    turns: tuple[str, str] | tuple[()] = ()
    dialogue: bool = False
    abstains: tuple[str, ...] = ()
    empty_abstains: str = ""
    keeps_answer: bool = False
    skips_blank: bool = False
    chats: bool = False
    title: Callable[[str], str] = str.strip
    answer_tag: str = ""

    def matches(self, row: Row) -> bool:
        """Tell whether a row looks like this shape."""
        return all(holds(row, paths) for paths in self.has) and self.fits(row)

    def bind(self, rows: Sequence[Row]) -> Shape:
        """Return the shape with one path for each field: the first spelling that one of these rows has.

        A file has one choice, since a row without its reference answer must not fall back to a model's answer.
        """
        chosen = {name: _first_present(rows, paths) for name, paths in self.paths.items()}
        for name in chosen.keys() - _NEEDED:
            if any(not _walks(row, chosen[name]) for row in rows):  # another spelling of the shape has no such field
                del chosen[name]
        return replace(self, paths=chosen)

    def columns(self, row: Row) -> set[str]:
        """Return the columns of a row that are read."""
        read = {self.each.split("[")[0]} if self.each else set()
        texts = [text.strip() for paths in (*self.paths.values(), *self.turns) for text in paths.split("|")]
        return read.union(*(Path.parse(text).columns(row) for text in texts))

    # ---- rows that hold several questions -------------------------------------------------------------------

    def expand(self, row: Row, where: Where) -> Iterator[tuple[Where, Row | RowError]]:
        """Yield a row for each question."""
        parts = _nested(row, self.each.removesuffix("[]").split("[]."), where) if self.each else iter([(where, row)])
        parts = (turn for place, part in parts for turn in self._turns(part, place))
        if not self.dialogue:
            yield from parts
            return
        history: list[list[Any]] = []
        around = None
        for place, part in parts:
            if place.inside.rpartition("[")[0] != around:  # another paragraph, and so another dialogue
                history, around = [], place.inside.rpartition("[")[0]
            if isinstance(part, RowError):
                yield place, part
                continue
            yield place, {**part, "history": list(history)}
            history.append([part.get("question"), self._answer_of(part, place)])

    def _turns(self, row: Row | RowError, where: Where) -> Iterator[tuple[Where, Row | RowError]]:
        if isinstance(row, RowError) or not self.turns or not holds(row, self.turns[0]):
            yield where, row
            return
        columns: set[str] = set()
        lists = []
        try:
            for paths in self.turns:
                path = Path.parse(_first_present([row], paths))
                columns |= path.columns(row)
                lists.append([entry for found in path.all(row, where) for entry in _entries(found, path.each)])
            questions, answers = lists
            if len(questions) != len(answers) or not questions:
                expected = f"as many answers as questions ({len(questions)}), and at least one"
                raise RowError(where, path.text, expected, str(len(answers)))
        except RowError as error:
            yield where, error
            return
        kept = {key: value for key, value in row.items() if key not in columns}
        for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            name = {"id": f"{row['id']}.{i}"} if isinstance(row.get("id"), str | int) else {}
            turn = {**kept, "question": question.value, "answer": answer.value, **name}
            yield where.within(f"turn[{i}]"), turn

    def _answer_of(self, row: Row, where: Where) -> str:
        """Return the answer of a turn for the history of later ones; an invalid one is an error of its own turn."""
        try:
            texts, _ = self.bind([row])._answers(row, where)
        except RowError:
            texts = ()
        return texts[0] if texts else _NO_ANSWER

    # ---- a row of one question ------------------------------------------------------------------------------

    def parse(self, row: Row, where: Where, needs_documents: bool) -> Item:
        """Return the record of one question.

        Raises:
            RowError: If a field is missing or of another type.
        """
        if any("|" in text for text in self.paths.values()):
            return self.bind([row]).parse(row, where, needs_documents)
        asked = self._one(row, where, "question")
        question = _fields(asked, where).text(asked.name)
        answers, answerable = self._answers(row, where)
        documents = self._documents(row, where)
        named = self._one(row, where, "id")
        system = self._one(row, where, "system")
        system_text = _fields(system, where).optional_text(system.name, blank=True)
        history = self._history(row, where)
        record = Record(
            question="\n\n".join([*history, question]) if history else question,
            documents=documents,
            answers=answers,
            id=_fields(named, where).identifier(named.name),
            system=system_text or None,
            answerable=answerable,
        )
        if not documents and self.chats and answers:
            return _conversation(record)
        if needs_documents and not documents:
            name = re.split(r"[.\[]", self.paths.get("documents", "documents"))[0]
            require_documents(_fields(self._one(row, where, "documents"), where), (), name, True)
        return record

    def _path(self, name: str) -> Path | None:
        return Path.parse(self.paths[name]) if name in self.paths else None

    def _one(self, row: Row, where: Where, name: str) -> Found:
        path = self._path(name)
        return Found(name, None) if path is None else path.one(row, where)

    def _answers(self, row: Row, where: Where) -> tuple[tuple[str, ...], bool]:
        path = self._path("answer")
        flag = self._one(row, where, "answerable")
        value_of_flag = _fields(flag, where).flag(flag.name)
        negated = (self._path("answerable") or Path("", ())).negated
        answerable = None if value_of_flag is None else value_of_flag is not negated
        if answerable is False and not self.keeps_answer:
            return (), False
        found = [] if path is None else path.find(row, where)
        texts: list[str] = []
        for n, values in enumerate(found):
            for value in values:
                texts += _accepted(value, where, blank=n > 0 or answerable is False)
        if texts and self.answer_tag and (short := texts[0].rpartition(self.answer_tag)[2].strip()) != texts[0].strip():
            texts += [short] * bool(short)
        if texts and texts[0].strip() in self.abstains:
            return (), False
        texts = [text for text in texts if text.strip() not in self.abstains]
        if texts or answerable is False:
            return tuple(dict.fromkeys(texts)), answerable is not False
        if path is not None and path.text == self.empty_abstains and self._one(row, where, "answer").value is not None:
            return (), False
        at = self._one(row, where, "answer")
        expected = "at least one accepted answer (or a flag that the question is not answerable)"
        raise _fields(at, where).error(at.name, expected)

    def _documents(self, row: Row, where: Where) -> tuple[Document, ...]:
        path = self._path("documents")
        if path is None:
            return ()
        entries = [entry for found in path.all(row, where) for entry in _entries(found, path.each)]
        columns = {}
        for name in ("title", "id", "score", "gold"):
            other = self._path(f"documents.{name}")
            if other is None:
                continue
            values = [v for found in other.all(row, where) for v in _entries(found, other.each)]
            if not other.each and len(values) == 1 and not isinstance(other.one(row, where).value, list):
                values = values * len(entries)  # one title for all of them
            if values and len(values) != len(entries):
                raise RowError(where, other.text, f"as many entries as documents ({len(entries)})", str(len(values)))
            if values:
                columns[name] = values
        relevant = self._path("documents.relevant")
        gold = [v for found in relevant.all(row, where) for v in _entries(found, relevant.each)] if relevant else []
        marks = [entry.value for entry in gold if isinstance(entry.value, str | int) and entry.value != ""]
        documents = []
        for i, entry in enumerate(entries):
            if self.skips_blank and (entry.value is None or _blank(entry.value)):
                continue
            document = parse_document(_joined(entry, where), where, entry.name)
            if entry.key is not None and document.id is None:
                document = replace(document, id=Fields({entry.name: entry.key}, where).identifier(entry.name))
            document = _with(document, {name: values[i] for name, values in columns.items()}, where)
            document = replace(document, title=self.title(document.title or "") or None)
            for word in self.abstains:
                document = replace(document, text=document.text.rstrip().removesuffix(word).rstrip() or document.text)
            if marks:
                named = (document.title, document.id, document.text)
                document = replace(document, gold=i in marks or any(name in marks for name in named if name))
            documents.append(document)
        return tuple(documents)

    def _history(self, row: Row, where: Where) -> list[str]:
        path = self._path("history") or (Path.parse("history") if self.dialogue else None)
        texts: list[str] = []
        for turn in [v for found in path.all(row, where) for v in _entries(found, path.each)] if path else []:
            parts = turn.value if isinstance(turn.value, list | tuple) else [turn.value]
            if isinstance(turn.value, Mapping):  # a turn as an object, or one message of it
                pair = next((p for p in _PAIRS if p[0] in turn.value and p[1] in turn.value), ())
                parts = [turn.value[key] for key in pair] or [turn.value.get("content", turn.value.get("value"))]
            texts += [Fields({turn.name: part}, where).text(turn.name).strip() for part in parts]
        return [_EARLIER + "\n" + "\n".join(texts)] if texts else []


_PAIRS = (("question", "answer"), ("user", "assistant"), ("human", "ai"), ("query", "response"), ("input", "output"))


def _fields(found: Found, where: Where) -> Fields:
    return Fields({} if found.value is None else {found.name: found.value}, where)


def _blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()


def _nested(row: Row, keys: Sequence[str], where: Where) -> Iterator[tuple[Where, Row | RowError]]:
    """Yield the innermost objects of nested lists, each with the fields of the objects around it."""
    key, *inner = keys
    if row.get(key) is None:  # the question itself
        yield where, row
        return
    try:
        entries = Fields(row, where).items(key, "objects") or []
        if not entries:
            raise Fields(row, where).error(key, "at least one entry")
    except RowError as error:
        yield where, error
        return
    around = {name: value for name, value in row.items() if name not in (key, "id")}
    for i, entry in enumerate(entries):
        place = where.within(f"{key}[{i}]")
        if not isinstance(entry, Mapping):
            yield place, RowError(place, "", "an object", shown(entry))
        elif not inner:
            yield place, {**around, **entry}
        elif entry.get(inner[0]) is None:
            yield place, RowError(place, inner[0], "a list of objects", "nothing")
        else:
            yield from _nested({**around, **entry}, inner, place)


def _first_present(rows: Sequence[Row], paths: str) -> str:
    texts = [text.strip() for text in paths.split("|")]
    return next((text for text in texts if any(holds(row, text.removeprefix("!")) for row in rows)), texts[0])


def _walks(row: Row, text: str) -> bool:
    try:
        Path.parse(text).find(row, Where("", 0))
    except RowError:
        return False
    return True


def _accepted(found: Found, where: Where, *, blank: bool) -> list[str]:
    """Return the texts of an answer: a text, those of a list, or those of objects with ``text``."""
    values = found.value if isinstance(found.value, list | tuple) else [found.value]
    texts = []
    for i, value in enumerate(values):
        name = found.name if values is not found.value else f"{found.name}[{i}]"
        if isinstance(value, Mapping):
            name, value = f"{name}.text", value.get("text", value.get("input_text"))
        if value is None and (values is not found.value or blank):
            continue
        if blank and _blank(value):
            continue
        texts.append(Fields({name: value}, where).text(name))
    return texts


def _entries(found: Found, each: bool) -> list[Found]:
    """Return the documents of a value: the value itself, or the entries of a list or of an object keyed by names."""
    value = found.value
    if not each and (value is None or _blank(value)):
        return []
    if each:
        return [found]
    if isinstance(value, list | tuple):
        return [Found(f"{found.name}[{i}]", entry) for i, entry in enumerate(value)]
    if isinstance(value, Mapping) and not DOCUMENT_PARTS & value.keys():
        return [Found(f"{found.name}.{key}", entry, str(key)) for key, entry in value.items()]
    return [found]


def _joined(entry: Found, where: Where) -> object:
    """Return a document, with a list of sentences joined to one text."""
    value = entry.value
    if not isinstance(value, list | tuple):
        return value
    if not value or not all(isinstance(part, str) for part in value):
        raise RowError(where, entry.name, "a text, or a list of sentences", shown(value))
    text = ""
    for part in value:
        apart = not text or text[-1].isspace() or part[:1].isspace()
        text += part if apart else f" {part}"
    return text


def _with(document: Document, parts: Mapping[str, Found], where: Where) -> Document:
    for name, found in parts.items():
        fields = _fields(found, where)
        if name == "title":
            title = fields.optional_text(found.name, blank=True)
            document = replace(document, title=(title or "").strip() or document.title)
        elif name == "id":
            document = replace(document, id=fields.identifier(found.name) or document.id)
        elif name == "gold" or isinstance(found.value, bool):
            document = replace(document, gold=fields.flag(found.name))
        else:
            score = fields.number(found.name)
            document = replace(document, score=document.score if score is None else score)
    return document


def _conversation(record: Record) -> Conversation:
    said = [("system", record.system), ("user", record.question), ("assistant", record.answers[0])]
    return Conversation(tuple({"role": role, "content": text} for role, text in said if text), id=record.id)


def _has_paragraphs(row: Row) -> bool:
    context = row.get("context")
    if isinstance(context, Mapping):
        return "sentences" in context
    return isinstance(context, list) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[1], list) for pair in context
    )


# In the order in which a row is asked: the particular ones first, since many hold a question and an answer.
SHAPES: tuple[Shape, ...] = (
    Shape(
        "raft",
        "RAFT, as the Gorilla project writes it: an oracle chunk among distractors, and a reasoned answer, "
        "whose part behind `<ANSWER>:` is accepted too.",
        ("question", "cot_answer | oracle_context"),
        {
            "question": "question",
            "documents": "context.sentences[][] | context.sentences[] | context",
            "documents.title": "context.title[][] | context.title[]",
            "documents.relevant": "oracle_context",
            "answer": "cot_answer + answer | answer",
            "id": "id",
        },
        title=lambda title: "" if title == "placeholder_title" else title,
        answer_tag="<ANSWER>:",
    ),
    Shape(
        "followrag",
        "FollowRAG: questions of four data sets with retrieved passages; the plain question is asked, since the gold "
        "answers do not follow the added instructions.",
        ("question", "question_with_instrs | answer_gold"),
        {
            "question": "question",
            "documents": "passages",
            "answer": "answer_gold.split(/) + answer_gold",
            "id": "key",
        },
    ),
    Shape(
        "quac",
        "QuAC: a dialogue about a section, each question with those before it; `CANNOTANSWER` is not answerable.",
        ("paragraphs[].qas[].orig_answer | paragraphs[].qas[].followup | orig_answers.texts",),
        {
            "question": "question",
            "documents": "context",
            "documents.title": "title | wikipedia_page_title",
            "answer": "answer | orig_answer + answers | answers",
            "id": "id | dialogue_id",
        },
        each="paragraphs[].qas[]",
        turns=("questions", "orig_answers.texts"),
        dialogue=True,
        abstains=("CANNOTANSWER",),
    ),
    Shape(
        "coqa",
        "CoQA: a dialogue about a story, each question with those before it; `unknown` is not answerable.",
        ("story", "questions", "answers"),
        {"question": "question", "documents": "story", "answer": "answer", "id": "id"},
        turns=("questions[].input_text | questions", "answers[].input_text | answers.input_text | answers"),
        dialogue=True,
        abstains=("unknown",),
    ),
    Shape(
        "musique",
        "MuSiQue: paragraphs of which some support the answer.",
        ("question", "paragraphs[].paragraph_text"),
        {
            "question": "question",
            "documents": "paragraphs",
            "answer": "answer + answer_aliases | answer",
            "id": "id",
            "answerable": "answerable",
        },
    ),
    Shape(
        "squad",
        "SQuAD v1.1 and v2, as released (articles) and as columns (one question a row).",
        ("paragraphs[].qas | answers",),
        {
            "question": "question",
            "documents": "context",
            "documents.title": "title",
            "answer": "answers.text | answers",
            "id": "id",
            "answerable": "!is_impossible",
        },
        fits=lambda row: "paragraphs" in row or isinstance(row.get("context"), str),
        each="paragraphs[].qas[]",
        empty_abstains="answers.text",
        title=lambda title: title.replace("_", " ").strip(),  # page names: Super_Bowl_50
    ),
    Shape(
        "msmarco",
        "MS MARCO: a query with passages, of which some were selected; `No Answer Present.` is not answerable.",
        ("query", "passages.passage_text | passages[].passage_text"),
        {
            "question": "query",
            "documents": "passages.passage_text | passages",
            "documents.gold": "passages.is_selected | passages[].is_selected",
            "documents.id": "passages.url | passages[].url",
            "answer": "answers",
            "id": "query_id",
        },
        abstains=("No Answer Present.",),
        skips_blank=True,
    ),
    Shape(
        "triviaqa",
        "TriviaQA: search results and encyclopedia pages of a question, and an answer with its aliases.",
        ("question", "answer.value"),
        {
            "question": "question",
            "documents": "search_results.search_context + entity_pages.wiki_context",
            "documents.title": "search_results.title + entity_pages.title",
            "answer": "answer.value + answer.aliases",
            "id": "question_id",
        },
        skips_blank=True,
    ),
    Shape(
        "dpr",
        "The training files of DPR: positive and negative passages of a question.",
        ("question", "positive_ctxs"),
        {
            "question": "question",
            "documents": "positive_ctxs + hard_negative_ctxs + negative_ctxs",
            "documents.relevant": "positive_ctxs[].text",
            "answer": "answers | answer",
            "id": "id",
        },
    ),
    Shape(
        "ctxs",
        "Retrieved passages beside each question, as DPR, Fusion-in-Decoder, Self-RAG and FlashRAG write them.",
        ("question", "ctxs | golden_answers | answers"),
        {
            "question": "question",
            "documents": "ctxs | output.retrieval_result",
            "answer": "answers | golden_answers | answer",
            "id": "id",
        },
        fits=lambda row: (
            bool({"ctxs", "golden_answers"} & row.keys())
            or (
                isinstance(row.get("answers"), list)
                and not {"context", "contexts", "documents", "passages"} & row.keys()
            )
        ),
    ),
    Shape(
        "hotpotqa",
        "HotpotQA and 2WikiMultihopQA: ten titled paragraphs, of which those of the supporting facts come last to be "
        "dropped.",
        ("question", "context"),
        {
            "question": "question",
            "documents": "context.sentences | context[][1]",
            "documents.title": "context.title | context[][0]",
            "documents.relevant": "supporting_facts.title | supporting_facts[][0]",
            "answer": "answer",
            "id": "_id | id",
        },
        fits=_has_paragraphs,
    ),
    Shape(
        "rag-instruct",
        "RAG-Instruct: instructions with passages that are plain texts.",
        ("question", "documents[]", "answer | answerable"),
        {name: name for name in ("question", "documents", "answer", "id", "system", "answerable")},
        fits=lambda row: isinstance(row["documents"], list) and isinstance(row["documents"][0], str),
        keeps_answer=True,
    ),
    Shape(
        "pubmedqa",
        "PubMedQA: sections of an abstract, and a decision (`yes`, `no`, `maybe`) or a long answer.",
        ("question | QUESTION", "context.contexts | CONTEXTS"),
        {
            "question": "question | QUESTION",
            "documents": "context.contexts | CONTEXTS",
            "documents.title": "context.labels | LABELS",
            "answer": "final_decision | long_answer | LONG_ANSWER",
            "id": "pubid | id",
        },
    ),
    Shape(
        "ragas",
        "Ragas: contexts and a reference answer; what a system answered is not trained where there is a reference.",
        ("user_input | question", "user_input | ground_truth | ground_truths"),
        {
            "question": "user_input | question",
            "documents": "retrieved_contexts | contexts | reference_contexts",
            "answer": "reference | ground_truth | ground_truths | response | answer",
            "id": "id",
        },
    ),
    Shape(
        "llamaindex",
        "The RAG data sets of LlamaIndex.",
        ("query", "reference_answer | reference_contexts"),
        {"question": "query", "documents": "reference_contexts", "answer": "reference_answer", "id": "id"},
    ),
    Shape(
        "langsmith",
        "Examples exported from LangSmith.",
        ("inputs", "outputs"),
        {
            "question": "inputs.question | inputs.query | inputs.input",
            "documents": "inputs.context | inputs.contexts | inputs.documents | outputs.context | outputs.documents",
            "answer": "outputs.answer | outputs.output | outputs.reference",
            "id": "id",
        },
    ),
    Shape(
        "alpaca",
        "Alpaca: an instruction about an input, which is read as a document; without one, a conversation.",
        ("instruction", "output"),
        {
            "question": "instruction",
            "documents": "input",
            "answer": "output",
            "system": "system",
            "history": "history",
            "id": "id",
        },
        fits=lambda row: not isinstance(row["instruction"], list | Mapping),
        chats=True,
    ),
    Shape(
        "dolly",
        "Dolly: an instruction about a context; without one, a conversation.",
        ("instruction", "response"),
        {"question": "instruction", "documents": "context", "answer": "response", "system": "system", "id": "id"},
        chats=True,
    ),
)
