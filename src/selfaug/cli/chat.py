"""`selfaug chat`: talk to a run's model with the prompt that it was trained on, over documents of your own."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from selfaug.common.errors import ConfigError, DataError
from selfaug.common.terminal import emit, say

if TYPE_CHECKING:
    from selfaug.cli.session import Session

__all__ = ["add_parser", "run"]

_COMMANDS = "/documents shows what was retrieved, /reset forgets the conversation, /quit ends (so does Ctrl-D)"


def add_parser(subparsers: Any) -> None:
    """The flags of the verb."""
    parser = subparsers.add_parser("chat", help="talk to a run's model", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="the --output_dir of a finished `selfaug train`")
    parser.add_argument("--documents", metavar="PATH", help="file of passages, or folder of .txt, .md and such files")
    parser.add_argument("--top_k", "--top-k", type=int, default=5, help="documents for each question (%(default)s)")
    parser.add_argument("--question", metavar="TEXT", help="answer this one question on stdout, and end")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--untuned", action="store_true", help="the base model answers instead: the adapter is off")
    which.add_argument("--compare", action="store_true", help="the base model's answer, then the tuned one's")
    parser.add_argument(
        "--base",
        nargs="?",
        const="",
        metavar="MODEL",
        help="where the base model lies now, if not where the run found it; without a value, the same as --untuned",
    )
    parser.add_argument("--max_new_tokens", "--max-new-tokens", type=int, default=256, help="(%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws at a temperature above 0 (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Answer one question, or as many as are asked; the exit code."""
    from selfaug.run.folder import RunFolder

    if args.top_k < 1 or args.max_new_tokens < 1:
        raise ConfigError("--top_k and --max_new_tokens count documents and tokens", "give 1 or more.")
    if not 0 <= args.temperature < float("inf"):
        raise ConfigError(f"--temperature is {args.temperature}: it divides the logits", "give 0 or more.")
    if args.question is not None and not args.question.strip():
        raise ConfigError("--question is empty", "ask something.")
    untuned = args.untuned or args.base == ""
    if untuned and args.compare:
        raise ConfigError("--base without a model asks for the base alone, and --compare for both", "pass one of them.")
    folder = RunFolder.open(args.run)
    from selfaug.cli.session import Session
    from selfaug.lab import shipped

    say("loading the model ...")
    session = Session.load(
        folder,
        documents=args.documents,
        top_k=args.top_k,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        seed=args.seed,
        needs_base=untuned or args.compare,
        base=shipped.resolve(args.base) if args.base else None,
    )
    models = ("base", "tuned") if args.compare else ("base",) if untuned else ("tuned",)
    if args.question is not None:
        _answer(session, args.question, models)
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
    # The tuned model's words are the conversation that goes on, where both have answered.
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
