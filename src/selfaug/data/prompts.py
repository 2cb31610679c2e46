"""The renderer, which turns a record into prompt and response, both in training and in serving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfaug.common.errors import ConfigError, nearest
from selfaug.data import layout
from selfaug.data.record import Conversation, Document, Record
from selfaug.data.template import ChatTemplate, control_strings, digest, escape, matcher, template_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["DEFAULT_SYSTEM", "Renderer", "render"]

DEFAULT_SYSTEM = (
    "Answer the question with the help of the documents. If they do not hold the answer, reply: I don't know"
)

Message = dict[str, Any]


@dataclass(frozen=True)
class Renderer:
    """Settings that turn records into text. They are saved with the adapter, so that serving uses the trained prompt.

    Use :meth:`for_tokenizer` to make a renderer, or :meth:`load` that of a trained adapter.

    Special-token strings (such as ``<|im_end|>``) in questions, documents, answers and messages are data, not control:
    they are escaped with a space after their first character, in training and in serving. ``keep_specials`` names
    exceptions. The tags of a thought at the beginning of an answer stay.

    Args:
        mode: ``chat`` (the tokenizer's chat template) or ``plain`` (for tokenizers without one).
        system: System text of records without one of their own; ``""`` for none at all.
        document_titled: Line above a document with a title, with ``{number}`` (from 1) and ``{title}``.
        document_untitled: Line above any other document, with ``{number}``.
        show_titles: Whether titles are shown.
        order: ``given``, ``reversed``, ``best_first`` or ``best_last`` (by score, where every document has one).
        question_position: ``after`` the documents, ``before`` them, or ``both``.
        question: Line of the question, with ``{question}``.
        answer_cue: Last line of a plain prompt.
        abstention: Response to records that are not answerable and have no answer.
        chat_template: Text of the chat template. A tokenizer must have the same one, or none.
        chat_template_sha256: Hash of the chat template.
        chat_template_kwargs: Other variables of the template, such as ``enable_thinking``.
        system_role: Whether the template takes a system message; otherwise its text begins the first user message.
        template_documents: Whether the template places the documents of a conversation; otherwise they begin its first
            user message. Documents of records never go through the template.
        end_of_turn: Text that the template writes after an assistant turn.
        specials: Special tokens of the tokenizer that are escaped in data.
        keep_specials: Special tokens that are not escaped.

    Raises:
        ConfigError: If a setting has an unknown value, or a line has unknown placeholders.
    """

    mode: Literal["chat", "plain"] = "plain"
    system: str = DEFAULT_SYSTEM
    document_titled: str = "Document {number}: {title}"
    document_untitled: str = "Document {number}"
    show_titles: bool = True
    order: Literal["given", "reversed", "best_first", "best_last"] = "given"
    question_position: Literal["after", "before", "both"] = "after"
    question: str = "Question: {question}"
    answer_cue: str = "Answer:"
    abstention: str = "I don't know"
    chat_template: str | None = field(default=None, repr=False)
    chat_template_sha256: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    system_role: bool = True
    template_documents: bool = False
    end_of_turn: str = ""
    specials: tuple[str, ...] = field(default=(), repr=False)
    keep_specials: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        layout.check(self)

    @classmethod
    def for_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> Renderer:
        """Return a renderer for a tokenizer: ``chat`` if it has a chat template, else ``plain``; ``settings`` override.

        If the template writes today's date through its variable ``date_string``, the date of this call is saved, since
        the prompt must not change from day to day.

        Raises:
            ConfigError: If a setting is unknown, or ``mode="chat"`` and there is no chat template.
            DataError: If the template cannot write one question and one answer.
        """
        names = [item.name for item in fields(cls)]
        for name in settings:
            if name not in names:
                close = nearest(name, names)
                raise ConfigError(f"unknown prompt setting {name!r}.{close}", f"known: {', '.join(names)}.")
        settings["keep_specials"] = keep = tuple(settings.get("keep_specials", ()))
        text = settings.get("chat_template") or template_of(tokenizer)
        mode = settings.setdefault("mode", "chat" if text else "plain")
        specials = list(control_strings(tokenizer, special_only=True))
        if mode == "chat":
            template = ChatTemplate(tokenizer, text, kwargs=settings.get("chat_template_kwargs") or {})
            facts = template.facts()
            settings = facts | settings | {"chat_template_kwargs": facts["chat_template_kwargs"]}
            # Some models' end of turn is an added token that is not flagged as special.
            specials += [s for s in template.controls if s in template.end_of_turn and s not in specials]
        return cls(**({"specials": tuple(s for s in specials if s not in keep)} | settings))

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Check that a tokenizer has the chat template that this renderer was made with, or none.

        Raises:
            ConfigError: If it has another one.
        """
        if self.mode == "plain" or not tokenizer.chat_template:
            return
        actual = digest(template_of(tokenizer) or "")
        if actual != self.chat_template_sha256:
            raise ConfigError(
                f"tokenizer {tokenizer.name_or_path!r} has the chat template {actual[:12]}, the saved prompt settings "
                f"have {str(self.chat_template_sha256)[:12]}: the model would see prompts that it was not trained on",
                "use the tokenizer that lies beside the adapter, or set tokenizer.chat_template to the saved template.",
            )

    def escape(self, text: str) -> str:
        """Return ``text`` with a space after the first character of each special-token string."""
        return escape(text, self.specials)

    def escape_answer(self, text: str) -> str:
        """Escape an answer; the tags of a thought at its beginning (``<think>``) stay."""
        return "".join(part if place % 2 else self.escape(part) for place, part in enumerate(layout.answer_texts(text)))

    def count_specials(self, item: Record | Conversation) -> dict[str, int]:
        """Return how often each special-token string is in the item's texts, where it is escaped."""
        counts: dict[str, int] = {}
        for text in layout.texts_of(self, item):
            for match in matcher(self.specials).finditer(text):
                counts[match.group()] = counts.get(match.group(), 0) + 1
        return counts

    def user_text(self, record: Record, documents: Sequence[Document] | None = None) -> str:
        """Return documents and question as in the user turn, with escaped special tokens."""
        question = self.question.format(question=self.escape(record.question.strip()))
        parts = [question] if self.question_position != "after" else []
        parts += layout.blocks(self, record.documents if documents is None else documents)
        parts += [question] if self.question_position != "before" else []
        return "\n\n".join(parts)

    def messages(self, record: Record, documents: Sequence[Document] | None = None) -> list[Message]:
        """Return the prompt as chat messages for any chat engine.

        Args:
            record: Record, whose answers are ignored.
            documents: Documents in place of the record's own.
        """
        system = self.escape(self.system if record.system is None else record.system)
        messages = [{"role": "system", "content": system}] if system.strip() else []
        return self._fold([*messages, {"role": "user", "content": self.user_text(record, documents)}])

    def conversation_messages(self, conversation: Conversation) -> list[Message]:
        """Return the messages of a conversation for the template, with escaped special tokens.

        A system text begins the first user turn if the template refuses system messages, and so do documents if it
        takes none.
        """
        messages: list[Message] = [
            layout.map_texts(message, self.escape)
            | (
                {"content": self.escape_answer(message["content"])}
                if message.get("role") == "assistant" and isinstance(message.get("content"), str)
                else {}
            )
            for message in conversation.messages
        ]
        if conversation.documents and not self.template_documents:
            documents = "\n\n".join(layout.blocks(self, conversation.documents))
            messages = layout.into_first_user(messages, documents)
        return self._fold(messages)

    def _fold(self, messages: list[Message]) -> list[Message]:
        if self.system_role or not messages or messages[0]["role"] != "system":
            return messages
        return layout.into_first_user(messages[1:], messages[0]["content"])

    def response_text(self, record: Record) -> str:
        """Return the trained response: the first answer, or the abstention text where there is none."""
        return self.escape_answer(record.answers[0] if record.answers else self.abstention).strip()

    def prompt_text(
        self, tokenizer: PreTrainedTokenizerBase, record: Record, documents: Sequence[Document] | None = None
    ) -> str:
        """Return the inference prompt: the messages and the beginning of the assistant's turn, or the plain prompt.

        Raises:
            ConfigError: If the tokenizer has another chat template than the saved one.
            DataError: If the template refuses the messages.
        """
        self.check(tokenizer)
        if self.mode == "plain":
            return self.plain_text(record, documents)
        template = ChatTemplate(tokenizer, self.chat_template, kwargs=self.chat_template_kwargs)
        return template.render(self.messages(record, documents), generation=True)

    def plain_text(self, record: Record, documents: Sequence[Document] | None = None) -> str:
        """Return the prompt without a chat template: system text, documents and question, and the answer cue."""
        return "\n\n".join(m["content"] for m in self.messages(record, documents)) + f"\n{self.answer_cue}"

    def prompt_ids(
        self, tokenizer: PreTrainedTokenizerBase, record: Record, documents: Sequence[Document] | None = None
    ) -> list[int]:
        """Return the token ids of the inference prompt, which are exactly those of training.

        With a chat template they are those of ``apply_chat_template(..., add_generation_prompt=True)``: the template
        alone decides on BOS. Plain prompts begin with one BOS if the tokenizer adds one, and have no EOS.
        """
        from selfaug.data.tokens import text_ids

        return text_ids(tokenizer, self.prompt_text(tokenizer, record, documents), bos=self.mode == "plain")

    def save(self, folder: str | Path) -> None:
        """Write ``selfaug_renderer.json``, and the chat template beside it, into the adapter's folder."""
        from selfaug.data.prompt_files import save

        save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Renderer:
        """Return the renderer that :meth:`save` wrote.

        Raises:
            DataError: If there is none, or it is damaged.
        """
        from selfaug.data.prompt_files import load

        return load(Path(folder))


def render(
    adapter_folder: str | Path,
    question: str,
    documents: Sequence[Document | Mapping[str, Any] | str] = (),
    *,
    system: str | None = None,
) -> list[Message] | str:
    """Return the prompt that an adapter was trained on: chat messages, or a text if it was trained without a template.

    For serving, give the messages to any engine that applies the model's chat template, or the text to a completion
    endpoint. This needs neither the tokenizer nor torch.

    Args:
        adapter_folder: Folder of the adapter, with its ``selfaug_renderer.json``.
        question: Question of the user.
        documents: Texts, or objects with ``text`` and optionally ``title`` and ``score``, in the retriever's order.
        system: System text in place of the trained one; ``None`` for the trained one.

    Raises:
        DataError: If the folder has no renderer, or a document no text.
    """
    renderer = Renderer.load(adapter_folder)
    record = Record(question, tuple(layout.document(value) for value in documents), ("-",), system=system)
    return renderer.messages(record) if renderer.mode == "chat" else renderer.plain_text(record)
