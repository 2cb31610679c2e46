"""A conversation over documents with a tuned model and its base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from selfaug.common.errors import DataError
from selfaug.common.files import missing_path
from selfaug.common.terminal import say
from selfaug.data.fit import fit_documents
from selfaug.data.record import Document, Record
from selfaug.data.template import ChatTemplate
from selfaug.data.tokens import text_ids
from selfaug.run.models import Sides, check_origin

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfaug.data.corpus import Corpus
    from selfaug.data.prompts import Renderer
    from selfaug.run.folder import RunFolder

__all__ = ["Session", "printable"]

# A model's output must not control the terminal.
_CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])


def printable(text: str) -> str:
    """Return ``text`` without control characters other than tab and line feed."""
    return text.translate(_CONTROLS)


@dataclass
class Session:
    """A loaded run, its documents, and the conversation so far.

    Make one with :meth:`load`.

    Args:
        sides: Base and tuned model.
        tokenizer: Tokenizer of the run.
        renderer: Renderer of the run.
        corpus: Documents to answer from, or ``None``.
        top_k: Number of documents for each question.
        max_new_tokens: Longest answer in tokens.
        temperature: Temperature of the draws; 0 for the likeliest tokens.
        seed: Seed of the draws.
    """

    sides: Sides
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer
    corpus: Corpus | None
    top_k: int = 5
    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    retrieved: list[Document] = field(default_factory=list)
    _turns: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def load(
        cls, folder: RunFolder, *, documents: str | None, needs_base: bool, base: str | None = None, **options: Any
    ) -> Session:
        """Load a finished run.

        Args:
            folder: Folder of the run.
            documents: File or folder to answer from, or ``None``.
            needs_base: Whether the base will be used.
            base: Folder or hub name of the base model, if it has moved since training.
            options: Further fields of the session.

        Raises:
            ConfigError: If the base model or the documents are missing, or the base is not the run's.
            DataError: If the documents cannot be read.
        """
        from selfaug.cli.encoding import load_tokenizer
        from selfaug.data.corpus import Corpus

        if documents is not None and not Path(documents).expanduser().exists():
            raise missing_path("documents", documents, "give a file of passages, or a folder of text files.")
        if documents is not None:
            say(f"reading and indexing {documents} ...")
        corpus = None if documents is None else Corpus.load(documents)
        renderer = folder.load_renderer()
        origin = check_origin(folder, base, needs_base=needs_base)
        sides = Sides(origin, together=True)
        for name in ("tuned", "base") if needs_base else ("tuned",):
            with sides.side(name):
                pass  # loads the model before the first question
        tokenizer = load_tokenizer(folder.tokenizer, trust_remote_code=origin.trust_remote_code)
        return cls(sides, tokenizer, renderer, corpus, **options)

    def ask(self, question: str) -> list[int]:
        """Return the token ids of the prompt: the conversation so far, then the question with the best documents.

        The layout is that of training; documents that do not fit are dropped.

        Raises:
            DataError: If the question does not fit the model's context.
        """
        self.retrieved = [] if self.corpus is None else self.corpus.search(question, self.top_k)
        context = self.sides.origin.context
        room = None if context is None else context - min(self.max_new_tokens, context // 2)
        record = Record(question, tuple(self.retrieved), ("-",))
        turns = list(self._turns)
        while True:
            fitted = fit_documents(
                record.documents, lambda documents: self._ids(record, documents, turns), self.tokenizer, room
            ) if record.documents else None  # fmt: skip
            if fitted is not None:
                self.retrieved = list(fitted.kept_documents)
                return fitted.input_ids
            bare = self._ids(record, (), turns)[0]
            if (room is None or len(bare) <= room) and not (record.documents and turns):
                self.retrieved = []
                return bare
            if not turns:
                raise DataError(
                    f"the question needs {len(bare)} tokens, and the model's context leaves {room} for it",
                    "ask something shorter, or lower --max_new_tokens.",
                )
            del turns[:2]  # the oldest question and answer are dropped first

    def _ids(
        self, record: Record, documents: Sequence[Document], turns: Sequence[dict[str, str]]
    ) -> tuple[list[int], list[int]]:
        if not turns or self.renderer.mode == "plain":
            ids = self.renderer.prompt_ids(self.tokenizer, record, documents)
        else:
            first, *rest = self.renderer.messages(record, documents)
            system, user = ([first], rest) if rest else ([], [first])
            template = ChatTemplate(
                self.tokenizer, self.renderer.chat_template, kwargs=self.renderer.chat_template_kwargs
            )
            ids = text_ids(self.tokenizer, template.render([*system, *turns, *user], generation=True))
        return ids, [-100] * len(ids)

    def reply(self, prompt: Sequence[int], model: str, out: TextIO) -> str:
        """Generate an answer, streaming it to ``out``.

        Args:
            prompt: Token ids from :meth:`ask`.
            model: Name of the model: ``tuned`` or ``base``.
            out: Stream that the text is written to.
        """
        import torch
        from transformers import TextStreamer

        from selfaug.generation.decoding import pad_id, stop_ids, without_stop

        class Stream(TextStreamer):
            def put(self, value: torch.Tensor) -> None:
                if value.tolist() not in [[stop] for stop in stops]:
                    super().put(value)

            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                out.write(printable(text))
                out.flush()

        torch.manual_seed(self.seed)
        sampling: dict[str, Any] = {"do_sample": False}
        if self.temperature > 0:
            sampling = {"do_sample": True, "temperature": self.temperature}
        with self.sides.side(model) as chosen:
            stops = stop_ids(chosen, self.tokenizer, self.renderer)
            ids = torch.tensor([list(prompt)], device=chosen.device)
            answer = chosen.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self.max_new_tokens,
                eos_token_id=stops,
                pad_token_id=pad_id(self.tokenizer),
                streamer=Stream(self.tokenizer, skip_prompt=True, skip_special_tokens=True),
                **sampling,
            )
        reply_ids, _ = without_stop(answer[0, len(prompt) :].tolist(), stops)
        text: str = self.tokenizer.decode(reply_ids, skip_special_tokens=True)
        return printable(text).strip()

    def remember(self, question: str, reply: str) -> None:
        """Add a question, without its documents, and its answer to the conversation."""
        if self.renderer.mode == "chat":
            user = {"role": "user", "content": self.renderer.escape(question)}
            self._turns += [user, {"role": "assistant", "content": self.renderer.escape_answer(reply)}]

    def forget(self) -> None:
        """Start a new conversation."""
        self._turns.clear()
