"""Records and conversations, the training examples, and the checks of their rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from selfaug.common.errors import DataError
from selfaug.data.fields import Fields, RowError, Where, shown

__all__ = [
    "DOCUMENT_PARTS",
    "TEXT_NAMES",
    "TRAIN_FLAGS",
    "Conversation",
    "Document",
    "Item",
    "Record",
    "RowError",
    "Where",
    "is_trained",
    "parse_conversation",
    "parse_document",
    "parse_record",
    "require_documents",
]

TRAIN_FLAGS = ("weight", "train", "training", "loss")
"""Fields of a message that say whether it is trained: OpenAI's and Mistral's `weight` (0 or 1), axolotl's `train` and
`training`, ms-swift's `loss` (true or false)."""

# Fields that train only a part of a message, which is not supported.
_PART_FLAGS = ("train_detail", "training_detail", "loss_scale")

_NO_DOCUMENTS = "give each question at least one document, or fill them from a corpus with --corpus"


@dataclass(frozen=True)
class Document:
    """One passage that the model may answer from.

    Args:
        text: Text of the passage.
        title: Title of the passage; ``None`` for none.
        id: Name of the passage in its corpus.
        score: The retriever's score, higher for more relevant documents.
        gold: Whether the data say that this document holds the answer; ``None`` where they say nothing. No retriever
            knows it, so an evaluation does not use it unless asked (:func:`selfaug.data.fit.fit_documents`).
    """

    text: str
    title: str | None = None
    id: str | None = None
    score: float | None = None
    gold: bool | None = None

    def to_row(self) -> dict[str, Any]:
        """Return the canonical JSON object without absent fields."""
        row = {"title": self.title, "text": self.text, "id": self.id, "score": self.score, "is_gold": self.gold}
        return {key: value for key, value in row.items() if value is not None}


@dataclass(frozen=True)
class Record:
    """A question, its documents and the accepted answers.

    Args:
        question: Question; not blank.
        documents: Documents in the order in which the model reads them.
        answers: Accepted answers, of which the first is trained. Empty only where ``answerable`` is false: then the
            abstention text is trained.
        id: Name of the row.
        system: System text of this row; ``None`` for the renderer's.
        answerable: Whether the documents contain the answer.

    Raises:
        DataError: If the question is blank, or an answerable record has no answer.
    """

    question: str
    documents: tuple[Document, ...] = ()
    answers: tuple[str, ...] = ()
    id: str | None = None
    system: str | None = None
    answerable: bool = True

    def __post_init__(self) -> None:
        name = f"Record {self.id!r}" if self.id else "Record"
        if not self.question.strip():
            raise DataError(f"{name}: the question is empty, so there is nothing to ask", "give it a question.")
        if self.answerable and not self.answers:
            raise DataError(
                f"{name}: no answers, though answerable is True, so there is nothing to train on",
                "give at least one answer, or set answerable=False to train the abstention text.",
            )

    def to_row(self) -> dict[str, Any]:
        """Return the canonical JSON object, from which :func:`parse_record` makes an equal record."""
        row: dict[str, Any] = {} if self.id is None else {"id": self.id}
        if self.system is not None:
            row["system"] = self.system
        row["question"] = self.question
        row["documents"] = [document.to_row() for document in self.documents]
        if self.answers:
            row["answer"] = self.answers[0] if len(self.answers) == 1 else list(self.answers)
        if not self.answerable:
            row["answerable"] = False
        return row


@dataclass(frozen=True)
class Conversation:
    """Messages of one dialogue, with at least one assistant turn to train on.

    Args:
        messages: Objects with ``role``, ``content`` and other keys of chat templates, such as ``tool_calls``. An
            assistant message with ``"weight": 0`` or ``"train": false`` is not trained.
        documents: Documents, which go to the chat template if it takes them.
        id: Name of the row.
        tools: JSON schemas of the tools that the model may call.
    """

    messages: tuple[Mapping[str, Any], ...]
    documents: tuple[Document, ...] = ()
    id: str | None = None
    tools: tuple[Mapping[str, Any], ...] | None = None

    def to_row(self) -> dict[str, Any]:
        """Return the canonical JSON object, from which :func:`parse_conversation` makes an equal conversation."""
        row: dict[str, Any] = {} if self.id is None else {"id": self.id}
        row["messages"] = [dict(message) for message in self.messages]
        if self.documents:
            row["documents"] = [document.to_row() for document in self.documents]
        if self.tools is not None:
            row["tools"] = [dict(tool) for tool in self.tools]
        return row


Item: TypeAlias = Record | Conversation


def parse_record(row: Mapping[str, Any], where: Where, *, needs_documents: bool = True) -> Record:
    """Return the record of a canonical row.

    Args:
        row: JSON object with ``question``, ``documents``, ``answer``, and optionally ``id``, ``system``,
            ``answerable``. Other keys are ignored.
        where: Place of the row, for messages.
        needs_documents: Whether a row without documents is an error; false if retrieval will fill them.

    Raises:
        RowError: If a field is missing, blank or of another type.
    """
    fields = Fields(row, where)
    answerable = fields.flag("answerable")
    answerable = True if answerable is None else answerable
    answers = fields.texts("answer") or ()
    if answerable and not answers:
        raise fields.error("answer", "a text or a list of accepted texts (or answerable: false)")
    return Record(
        question=fields.text("question"),
        documents=_documents(fields, needs_documents),
        answers=answers,
        id=fields.identifier(),
        system=fields.optional_text("system", blank=True) or None,
        answerable=answerable,
    )


def parse_conversation(row: Mapping[str, Any], where: Where, key: str = "messages") -> Conversation:
    """Return the conversation of a canonical row.

    Contents that are lists of text parts are joined; ``tools`` may be a JSON text, as TRL allows. ``system`` becomes
    the first message, unless that is a system message already.

    Args:
        row: JSON object with ``messages``, and optionally ``documents``, ``tools``, ``system``, ``id``.
        where: Place of the row, for messages.
        key: Name of the messages' field in the file, for error messages.

    Raises:
        RowError: If a message has no role or no text, no assistant message is trained, or a field has another type.
    """
    fields = Fields(row, where)
    if fields.get("chat_template_kwargs"):
        raise fields.error(
            "chat_template_kwargs",
            "no template variables in a row of messages, since one prompt layout holds for all rows",
            "set them for the whole data set, as in --prompt '{\"chat_template_kwargs\": {...}}'",
        )
    named = Fields({key: row.get("messages")}, where).objects(key, "messages")
    messages = tuple(_message(message) for message in named or [])
    system = fields.optional_text("system", blank=True)
    if system and system.strip() and messages and messages[0]["role"] != "system":
        messages = ({"role": "system", "content": system}, *messages)
    if not any(message["role"] == "assistant" for message in messages):
        raise fields.error(key, "messages of which at least one has the role 'assistant' (what is trained)")
    if not any(message["role"] == "assistant" and is_trained(message) for message in messages):
        raise RowError(
            where, fields.name(key), "an assistant message that is trained (weight 1, say, or no flag)",
            "only assistant messages with a flag against it",
        )  # fmt: skip
    return Conversation(messages, _documents(fields, False), fields.identifier(), _tools(fields))


def is_trained(message: Mapping[str, Any]) -> bool:
    """Tell whether none of the message's flags (:data:`TRAIN_FLAGS`) is 0 or false."""
    return not any(message.get(flag) in (0, False) and message.get(flag) is not None for flag in TRAIN_FLAGS)


def require_documents(fields: Fields, documents: tuple[Document, ...], key: str, needed: bool) -> tuple[Document, ...]:
    """Return the documents, or raise a :class:`RowError` about ``key`` if there are none though they are needed."""
    if needed and not documents:
        raise fields.error(key, "at least one document", _NO_DOCUMENTS)
    return documents


def _documents(fields: Fields, needed: bool) -> tuple[Document, ...]:
    value = fields.get("documents")
    if isinstance(value, str):
        value = [value] if value.strip() else []
    entries = fields.items("documents", "texts, or objects with a text") if not isinstance(value, list) else value
    name = fields.name("documents")
    documents = tuple(parse_document(entry, fields.where, f"{name}[{i}]") for i, entry in enumerate(entries or []))
    return require_documents(fields, documents, "documents", needed)


# Names that retrievers, frameworks and data sets give to the parts of a passage; the first one present is read.
TEXT_NAMES = (
    *("text", "contents", "content", "page_content", "passage_text", "paragraph_text", "passage", "chunk", "body"),
)
_WRAPPERS = ("node", "document", "text_resource")  # keys of inner objects, such as LlamaIndex's nodes and their texts
_NAME = ("id", "_id", "id_", "docid", "doc_id", "pid", "passage_id")
_SCORE = ("score", "relevance_score", "similarity", "relevance")
_GOLD = ("is_gold", "is_supporting", "is_selected", "is_relevant", "has_answer")
DOCUMENT_PARTS = frozenset((*TEXT_NAMES, *_NAME, *_SCORE, *_GOLD, *_WRAPPERS, "title", "metadata"))
"""Keys that distinguish one document from an object of several documents by name."""


def parse_document(value: object, where: Where, name: str) -> Document:
    """Return the document of a text, or of an object of ours, of a retriever, of LangChain or of LlamaIndex.

    The first line of FlashRAG's ``contents`` is the title. A flag that the passage is relevant becomes ``gold``.

    Args:
        value: Text or object.
        where: Place of the row.
        name: Path of the value in the row.

    Raises:
        RowError: If there is no text, or a part has another type.
    """
    if isinstance(value, str):
        return Document(Fields({name: value}, where).text(name))
    if not isinstance(value, Mapping):
        raise RowError(where, name, "a text, or an object with a text", shown(value))
    fields = Fields(value, where, name)
    inner = fields
    for wrapper in _WRAPPERS:
        if isinstance(inner.get(wrapper), Mapping):
            inner = Fields(inner.get(wrapper), where, inner.name(wrapper))
    key = next((key for key in TEXT_NAMES if inner.get(key) is not None), "text")
    text = inner.text(key)
    outer = [fields, inner]
    described = [part for part in (fields, inner) if isinstance(part.get("metadata"), Mapping)]
    outer += [Fields(part.get("metadata"), where, part.name("metadata")) for part in described]
    title = next((title for part in outer if (title := part.optional_text("title", blank=True))), None)
    if key == "contents" and title is None:
        head, _, rest = text.partition("\n")
        if rest.strip():
            title, text = head.strip().removeprefix('"').removesuffix('"'), rest
    scores = (number for part in outer[:2] for key in _SCORE if (number := part.number(key)) is not None)
    gold = (flag for part in outer for key in _GOLD if (flag := part.flag(key)) is not None)
    return Document(
        text,
        title if title and title.strip() else None,
        next((found for part in outer[:2] for key in _NAME if (found := part.identifier(key))), None),
        next(scores, None),
        next(gold, None),
    )


def _message(fields: Fields) -> dict[str, Any]:
    # In columnar files every message has every key, and absent ones are null.
    message = {key: fields.check_json(key) for key, value in fields.row.items() if value is not None}
    # "developer" is OpenAI's newer name of the system role; templates of other models do not know it.
    message["role"] = role = {"developer": "system"}.get(fields.text("role"), fields.text("role"))
    _check_flags(fields, role)
    if isinstance(message.get("content"), list):
        parts = fields.objects("content", "text parts") or []
        for part in parts:
            if part.get("type") not in ("text", None):
                raise part.error("type", "'text' (only text is trained)")
        message["content"] = "".join(part.optional_text("text", blank=True) or "" for part in parts)
    elif "content" in message:
        message["content"] = fields.optional_text("content", blank=True)
    may_be_empty = role != "assistant" or bool(message.get("tool_calls"))
    if not may_be_empty and not str(message.get("content", "")).strip():
        raise fields.error("content", "non-empty text (the assistant's words are what is trained)")
    message.setdefault("content", "")
    return message


def _check_flags(fields: Fields, role: str) -> None:
    """Refuse training flags of a message that have no meaning here."""
    for flag in TRAIN_FLAGS:
        value = fields.get(flag)
        if value is None:
            continue
        known = (isinstance(value, int | float) and value in (0, 1)) if flag == "weight" else isinstance(value, bool)
        if not known:
            expected = "0 (not trained) or 1 (trained)" if flag == "weight" else "true (trained) or false (not trained)"
            raise fields.error(flag, expected)
        if value and role != "assistant":
            raise fields.error(flag, f"no such flag on a message of role {role!r} (only the assistant's are trained)")
    for flag in _PART_FLAGS:
        if fields.get(flag) is not None:
            raise fields.error(flag, 'no such field (a message is trained as a whole or, with "train": false, not)')


def _tools(fields: Fields) -> tuple[Mapping[str, Any], ...] | None:
    tools = fields.check_json("tools")
    if isinstance(tools, str):
        try:
            tools = Fields({"tools": json.loads(tools)}, fields.where).check_json("tools")
        except (ValueError, RecursionError):
            raise fields.error("tools", "a list of objects, or the JSON text of one") from None
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise fields.error("tools", "a list of objects, or the JSON text of one")
    return tuple(tools)
