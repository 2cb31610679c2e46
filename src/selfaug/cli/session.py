"""What does a tuned model, or its base, answer in a conversation over documents?"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from selfaug.cli.inputs import missing_path
from selfaug.data.fit import fit_documents
from selfaug.data.prompts import Renderer
from selfaug.data.record import Document, Record
from selfaug.data.retrieve import Corpus
from selfaug.data.template import ChatTemplate
from selfaug.data.tokens import text_ids
from selfaug.errors import DataError
from selfaug.terminal import say

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from selfaug.run_folder import RunFolder

__all__ = ["Session", "printable"]

# What a model writes must not move the cursor, ring, or recolour the terminal.
_CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])


def printable(text: str) -> str:
    """``text`` without control characters other than tab and line feed."""
    return text.translate(_CONTROLS)


@dataclass
class Session:
    """A loaded run, the documents it may read, and what was said so far.

    Make one with :meth:`load`.

    Args:
        tuned: The tuned model.
        base: The base model where it is a model of its own; ``None`` where it is ``tuned`` with its adapter off.
        tokenizer: Saved with the adapter.
        renderer: Saved with the adapter.
        corpus: Documents to answer from, or ``None``.
        top_k: Documents for each question.
        max_new_tokens: Longest answer.
        temperature: 0 takes the likeliest token.
        seed: Of the draws.
    """

    tuned: Any
    base: Any
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
    def load(cls, folder: RunFolder, *, documents: str | None, needs_base: bool, **options: Any) -> Session:
        """Load a finished run.

        Raises:
            ConfigError: If the base model or the documents are not there.
            DataError: If the documents cannot be read.
        """
        from selfaug.cli.encoding import load_tokenizer

        if documents is not None and not Path(documents).expanduser().exists():
            raise missing_path("documents", documents, "give a file of passages, or a folder of text files.")
        if documents is not None:
            say(f"reading and indexing {documents} ...")
        corpus = None if documents is None else Corpus.load(documents)
        final = folder.finished
        assert final is not None
        tokenizer = load_tokenizer(final)
        tuned, base = _load_models(folder, needs_base)
        return cls(tuned, base, tokenizer, Renderer.load(final), corpus, **options)

    def ask(self, question: str) -> list[int]:
        """The prompt's token ids: the trained layout, with the best documents that fit, after what was said before.

        Raises:
            DataError: If the question does not fit the model's context.
        """
        self.retrieved = [] if self.corpus is None else self.corpus.search(question, self.top_k)
        config = self.tuned.config.get_text_config()
        context = getattr(config, "max_position_embeddings", None)
        room = None if context is None else int(context) - min(self.max_new_tokens, int(context) // 2)
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
            del turns[:2]  # the oldest question and answer make room first

    def _ids(
        self, record: Record, documents: Sequence[Document], turns: Sequence[dict[str, str]]
    ) -> tuple[list[int], list[int]]:
        if not turns or self.renderer.mode == "plain":
            ids = self.renderer.prompt_ids(self.tokenizer, record, documents)
        else:
            first, *rest = self.renderer.messages(record, documents)
            system, asked = ([first], rest) if rest else ([], [first])
            template = ChatTemplate(
                self.tokenizer, self.renderer.chat_template, kwargs=self.renderer.chat_template_kwargs
            )
            ids = text_ids(self.tokenizer, template.render([*system, *turns, *asked], generation=True))
        return ids, [-100] * len(ids)

    def reply(self, prompt: Sequence[int], model: str, out: TextIO) -> str:
        """Generate an answer, streaming it to ``out``.

        Args:
            prompt: From :meth:`ask`.
            model: ``tuned`` or ``base``.
            out: Gets the text as it comes.
        """
        import torch
        from transformers import TextStreamer

        class Stream(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                out.write(printable(text))
                out.flush()

        chosen = self.base if model == "base" and self.base is not None else self.tuned
        off = model == "base" and self.base is None
        ids = torch.tensor([list(prompt)], device=chosen.device)
        torch.manual_seed(self.seed)
        sampling: dict[str, Any] = {"do_sample": False}
        if self.temperature > 0:
            sampling = {"do_sample": True, "temperature": self.temperature}
        with torch.no_grad(), chosen.disable_adapter() if off else contextlib.nullcontext():
            answer = chosen.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self.max_new_tokens,
                eos_token_id=self._stops(chosen),
                pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
                streamer=Stream(self.tokenizer, skip_prompt=True, skip_special_tokens=True),
                **sampling,
            )
        text: str = self.tokenizer.decode(answer[0, len(prompt) :], skip_special_tokens=True)
        return printable(text).strip()

    def _stops(self, model: PreTrainedModel) -> list[int]:
        configured = model.generation_config.eos_token_id
        stops = set(configured if isinstance(configured, list) else [configured])
        stops.add(self.tokenizer.eos_token_id)
        turn = text_ids(self.tokenizer, self.renderer.end_of_turn) if self.renderer.end_of_turn else []
        stops.update(turn if len(turn) == 1 else ())
        return sorted(stop for stop in stops if stop is not None)

    def remember(self, question: str, reply: str) -> None:
        """Keep a question, without its documents, and its answer for the turns to come."""
        if self.renderer.mode == "chat":
            asked = {"role": "user", "content": self.renderer.escape(question)}
            self._turns += [asked, {"role": "assistant", "content": self.renderer.escape(reply)}]

    def forget(self) -> None:
        """Begin a new conversation."""
        self._turns.clear()


def _load_models(folder: RunFolder, needs_base: bool) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM
    from trl import ModelConfig, get_quantization_config

    from selfaug.cli.inputs import check_model

    config = folder.read_config()
    base_name, revision = str(config.get("model_name_or_path")), str(config.get("model_revision") or "main")
    trust = bool(config.get("trust_remote_code"))
    options: dict[str, Any] = {"trust_remote_code": trust, "dtype": "auto"}
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    base = None
    if folder.adapter.is_dir() or needs_base:
        check_model(base_name, revision=revision, trust_remote_code=trust)
        names = ("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "dtype")
        quantization = get_quantization_config(
            ModelConfig(**{n: config[n] for n in names if config.get(n) is not None})
        )
        base = AutoModelForCausalLM.from_pretrained(
            base_name, revision=revision, quantization_config=quantization, **options
        ).eval()
        base = base if quantization is not None else base.to(device)
    if not folder.adapter.is_dir():
        return AutoModelForCausalLM.from_pretrained(str(folder.model), **options).eval().to(device), base
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(folder.adapter)).eval(), None
