"""`selfaug chat`: a conversation with a run's model over documents of the user, with the prompt of its training."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from selfaug.cli.config import Call, Command
from selfaug.cli.subject import Subject, opened
from selfaug.common.errors import ConfigError, DataError
from selfaug.common.options import option
from selfaug.common.terminal import emit, say

if TYPE_CHECKING:
    from selfaug.cli.session import Session

__all__ = ["COMMAND", "run"]

_COMMANDS = "/documents shows what was retrieved, /reset forgets the conversation, /quit ends (so does Ctrl-D)"


@dataclass
class Settings(Subject):
    """Settings of `selfaug chat`."""

    question: str | None = option(None, "Answer this question on stdout, and exit.", group="Question and documents")
    documents: str | None = option(None, "File of passages, or folder of .txt, .md and similar files.", metavar="PATH")
    top_k: int = option(5, "Number of documents for each question.", metavar="K")
    untuned: bool = option(False, "Let the base model answer, with the adapter off.", group="Who answers")
    compare: bool = option(False, "Show the base model's answer, then the tuned model's.")
    base: str | None = option(
        None,
        "Folder or hub name of the base model, if it has moved since training; without a value the same as --untuned.",
        metavar="MODEL",
        const="",
    )
    max_new_tokens: int = option(256, "Longest answer in tokens.", group="Answers")
    temperature: float = option(0.0, "Temperature of the draws; 0 takes the likeliest token.")
    seed: int = option(0, "Seed of the draws at a temperature above 0.")


COMMAND = Command(
    "chat",
    Settings,
    __doc__ or "",
    (
        "selfaug chat runs/mine --documents handbook/ --compare",
        "selfaug chat runs/mine --documents handbook/ --question 'Who may take leave?' --untuned",
    ),
)


def run(call: Call[Settings]) -> int:
    """Answer one question or hold a conversation, and return the exit code."""
    settings = call.settings
    if settings.top_k < 1 or settings.max_new_tokens < 1:
        raise ConfigError("--top_k and --max_new_tokens count documents and tokens", "give 1 or more.")
    if not 0 <= settings.temperature < float("inf"):
        raise ConfigError(f"--temperature is {settings.temperature}: it divides the logits", "give 0 or more.")
    if settings.question is not None and not settings.question.strip():
        raise ConfigError("--question is empty", "ask something.")
    untuned = settings.untuned or settings.base == ""
    if untuned and settings.compare:
        alone = "--untuned" if settings.untuned else "--base without a model"
        raise ConfigError(f"{alone} asks for the base alone, and --compare for both", "pass one of them.")
    folder = opened(settings)
    from selfaug.cli.session import Session
    from selfaug.lab import shipped

    say("loading the model ...")
    session = Session.load(
        folder,
        documents=settings.documents,
        top_k=settings.top_k,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=settings.seed,
        needs_base=untuned or settings.compare,
        base=shipped.resolve(settings.base) if settings.base else None,
    )
    models = ("base", "tuned") if settings.compare else ("base",) if untuned else ("tuned",)
    if settings.question is not None:
        _answer(session, settings.question, models)
        return 0
    return _converse(session, models)


def _answer(session: Session, question: str, models: tuple[str, ...]) -> None:
    prompt = session.ask(question)
    replies = {}
    for model in models:
        if len(models) > 1:
            emit(f"[{model}]")
        replies[model] = session.reply(prompt, model, sys.stdout)
        emit("")
    # Where both have answered, the conversation continues with the tuned model's answer.
    session.remember(question, replies[models[-1]])


def _converse(session: Session, models: tuple[str, ...]) -> int:
    say(_COMMANDS)
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401 - gives input() a line editor
    while True:
        try:
            line = input("you> " if interactive else "").strip()
        except EOFError:
            return 0
        except UnicodeDecodeError as error:
            raise DataError(
                f"what was typed holds characters that {error.encoding} cannot read, and stdin is read as that",
                "unset PYTHONIOENCODING, or set PYTHONUTF8=1.",
            ) from None
        if line == "/quit":
            return 0
        if line == "/reset":
            session.forget()
        elif line == "/documents":
            for document in session.retrieved:
                say(f"{document.score or 0:.2f}  {document.title or ''}  {' '.join(document.text.split())[:200]}")
        elif line.startswith("/"):
            say(_COMMANDS)
        elif line:
            try:
                _answer(session, line, models)
            except KeyboardInterrupt:
                say("\nstopped")
