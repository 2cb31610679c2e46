"""`sa-sft`: mixes in dialogues of the instruct model with itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from selfaug.data.record import Conversation
from selfaug.generation.requests import Request
from selfaug.methods.base import MIXED_ROWS, Changes, Compose, Method
from selfaug.methods.chat import require_chat
from selfaug.methods.options import option

if TYPE_CHECKING:
    from selfaug.generation.writer import Writer
    from selfaug.training.config import SelfAugConfig

__all__ = ["SASFT"]

PERSON = """You are a person who talks to a helpful assistant, about anything that people ask assistants for: a \
question, a task, a text to write or to change, a problem to solve. Write your {which} message to it, and nothing \
else."""

Message = dict[str, str]


class SASFT(Method):
    """``loss = Σ nll / n_response`` over the training rows and ``round(dialogue_ratio · rows)`` dialogues of its own.

    The base is told to speak as a person to an assistant, with the roles of the dialogue so far exchanged; then it
    answers as the assistant. This is done `dialogue_turns` times. The person's turns are sampled at
    `dialogue_temperature`, the assistant's are greedy. All assistant turns are trained. Dialogues that repeat an
    opening, do not end by themselves, or do not fit are generated again, so that the ratio is exact.

    Source: SA-SFT, arXiv 2602.20162, "self-generated dialogues mixed with task data". Differences: the wording of the
    instruction, and the ratio, which is `magpie`'s so that the two are compared at equal cost.
    """

    @dataclass(frozen=True)
    class Options:
        """Options of `sa-sft`."""

        dialogue_ratio: float = option(
            1 / 9, "Self-made dialogues for each training row; 0 is plain fine-tuning.", least=0.0, most=100.0
        )
        dialogue_turns: int = option(2, "Number of assistant turns in a dialogue.", least=1, most=20)
        dialogue_temperature: float = option(1.0, "Sampling temperature of the person's turns.", above=0.0)

    name: ClassVar[str] = "sa-sft"
    summary: ClassVar[str] = "dialogues of the model with itself mixed in"
    formula: ClassVar[str] = "NLL on training rows and dialogue_ratio as many self-made dialogues"
    source: ClassVar[str] = "2602.20162"
    differs: ClassVar[str] = (
        "the wording of the instruction and the ratio are ours: the source is known by a description alone"
    )
    needs: ClassVar[str] = "an instruct model"
    strength: ClassVar[str] = "dialogue_ratio"
    decides: ClassVar[frozenset[str]] = frozenset({MIXED_ROWS})

    def changes(self, config: SelfAugConfig) -> Changes:
        """Return the dialogues, if the ratio is above 0."""
        o = self.options(config)
        if not o.dialogue_ratio:
            return Changes()
        write = partial(_write, turns=o.dialogue_turns, temperature=o.dialogue_temperature)
        return Changes(compose=Compose(o.dialogue_ratio, write), check_prompts=(require_chat(self.name),))


def _write(writer: Writer, count: int, *, turns: int, temperature: float) -> list[Conversation]:
    def attempt(numbers: list[int]) -> list[Conversation | str]:
        dialogues: dict[int, list[Message]] = {n: [] for n in numbers}
        for turn in range(turns):
            for role in ("user", "assistant"):
                unfinished = [n for n in numbers if n in dialogues]
                requests = [_request(writer, dialogues[n], role, turn, n, temperature) for n in unfinished]
                for n, reply in zip(unfinished, writer.write(requests, f"dialogues, turn {turn + 1}"), strict=True):
                    if reply.ended and reply.text:
                        dialogues[n].append({"role": role, "content": reply.text})
                    else:
                        del dialogues[n]
        return [Conversation(tuple(dialogues[n])) if n in dialogues else "unfinished" for n in numbers]

    return writer.gather("sa-sft", count, attempt)


def _request(writer: Writer, dialogue: list[Message], role: str, turn: int, number: int, temperature: float) -> Request:
    """Return the request for the next turn: the assistant's, or the person's with the roles exchanged."""
    turns = [{**message, "content": writer.renderer.escape(message["content"])} for message in dialogue]
    if role == "assistant":
        return Request(tuple(turns), length=writer.length)
    exchanged = {"user": "assistant", "assistant": "user"}
    instruction = {"role": "user", "content": PERSON.format(which="first" if turn == 0 else "next")}
    swapped = [{**message, "role": exchanged[message["role"]]} for message in turns]
    seed = writer.seed_of("sa-sft", turn, number)
    return Request((instruction, *swapped), length=writer.length, temperature=temperature, seed=seed)
