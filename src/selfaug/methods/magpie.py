"""`magpie`: mixes in general data that the instruct model generates from its chat template alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from selfaug.data.record import Conversation
from selfaug.generation.header import user_turn
from selfaug.generation.requests import Reply, Request
from selfaug.methods.base import MIXED_ROWS, Changes, Compose, Method
from selfaug.methods.chat import require_chat
from selfaug.methods.options import option

if TYPE_CHECKING:
    from selfaug.generation.writer import Writer
    from selfaug.training.config import SelfAugConfig

__all__ = ["Magpie", "published_temperature"]

_TEMPERATURES = {
    **{"llama-3.1-8b": 0.8, "llama-3.1-70b": 0.9, "qwen2.5-3b": 0.7, "qwen2.5-7b": 0.7, "qwen2.5-14b": 0.7},
    **{"qwen2.5-32b": 0.6, "qwen2.5-72b": 0.6},
}
"""Temperatures other than 1 in the published scripts."""


class Magpie(Method):
    """``loss = Σ nll / n_response`` over the training rows and ``round(magpie_ratio · rows)`` conversations of its own.

    The base gets only what its chat template writes before a user's text. It samples an instruction as the user would
    write it, at `magpie_temperature`, and then answers it greedily. Conversations that repeat an instruction, do not
    end by themselves, or do not fit are generated again, so that the ratio is exact. By default there is 1 general row
    for 9 training rows, as in the comparison of arXiv 2509.03934.

    Source: MAGPIE, arXiv 2406.08464, and its code (magpie-align/magpie): an instruction ends at its first line break,
    and `magpie_temperature` 0 is the temperature of its script for a model of this name (`scripts/magpie-*.sh`), which
    is 1 for most. Differences: no further quality filters, no system prompts.
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `magpie`."""

        magpie_ratio: float = option(
            1 / 9, "Self-made rows for each training row; 0 is plain fine-tuning.", least=0.0, most=100.0
        )
        magpie_temperature: float = option(
            0.0, "Sampling temperature of the instructions; 0 is the published one for the model's name.", least=0.0
        )
        magpie_top_p: float = option(1.0, "Nucleus (top-p) of the instructions.", above=0, most=1)

    name: ClassVar[str] = "magpie"
    summary: ClassVar[str] = "instructions and answers of the model's own mixed in"
    formula: ClassVar[str] = "NLL on training rows and magpie_ratio as many self-made ones"
    source: ClassVar[str] = "2406.08464"
    differs: ClassVar[str] = "no quality filters, no system prompts"
    needs: ClassVar[str] = "an instruct model whose chat template opens a user's turn"
    strength: ClassVar[str] = "magpie_ratio"
    decides: ClassVar[frozenset[str]] = frozenset({MIXED_ROWS})

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the conversations, if the ratio is above 0, and the checks of the chat template."""
        o = self.options(config)
        if not o.magpie_ratio:
            return Changes()
        write = partial(_write, temperature=o.magpie_temperature, top_p=o.magpie_top_p)
        return Changes(compose=Compose(o.magpie_ratio, write), check_prompts=(require_chat(self.name), user_turn))


def published_temperature(model: str) -> float:
    """Return the temperature of the published script for a model, by the end of its name or path; 1 without one."""
    name = model.rstrip("/").rpartition("/")[2].lower()
    return next((temperature for part, temperature in _TEMPERATURES.items() if part in name), 1.0)


def _first_line(reply: Reply) -> Reply:
    line, line_break, _ = reply.text.partition("\n")
    return Reply(line.strip(), reply.ended or bool(line_break))


def _write(writer: Writer, count: int, *, temperature: float, top_p: float) -> list[Conversation]:
    turn = user_turn(writer.tokenizer, writer.renderer)
    temperature = temperature or published_temperature(str(writer.tokenizer.name_or_path))

    def attempt(numbers: list[int]) -> list[Conversation | str]:
        written = writer.write(
            [
                Request(
                    text=turn.header, stop=turn.end, length=writer.length, temperature=temperature, top_p=top_p,
                    seed=writer.seed_of("magpie", n),
                )
                for n in numbers
            ],
            "instructions",
        )  # fmt: skip
        instructions = [_first_line(reply) for reply in written]
        finished = [reply for reply in instructions if reply.ended and reply.text]
        prompts = [({"role": "user", "content": writer.renderer.escape(reply.text)},) for reply in finished]
        answers = iter(writer.write([Request(messages, length=writer.length) for messages in prompts], "answers"))
        conversations: list[Conversation | str] = []
        for reply in instructions:
            if not (reply.ended and reply.text):
                conversations.append("unfinished")
                continue
            answer = next(answers)
            if not (answer.ended and answer.text):
                conversations.append("unfinished")
                continue
            messages = [{"role": "user", "content": reply.text}, {"role": "assistant", "content": answer.text}]
            conversations.append(Conversation(tuple(messages)))
        return conversations

    return writer.gather("magpie", count, attempt)
