"""`sa-sft`: mix in dialogues that the instruct model holds with itself."""

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
    from selfaug.generation.scribe import Scribe
    from selfaug.training.config import SelfAugConfig

__all__ = ["SASFT"]

PERSON = """You are a person who talks to a helpful assistant, about anything that people ask assistants for: a \
question, a task, a text to write or to change, a problem to solve. Write your {which} message to it, and nothing \
else."""

Message = dict[str, str]


class SASFT(Method):
    """``loss = Σ nll / n_response`` over the training rows and ``round(dialogue_ratio · rows)`` dialogues of its own.

    The base is asked to speak as a person to an assistant, with the roles of the dialogue so far exchanged; then it
    answers as itself; `dialogue_turns` times. The person's words are drawn at `dialogue_temperature`, the assistant's
    are the likeliest ones. All assistant turns are trained. Dialogues that repeat an opening, do not end by themselves,
    or do not fit are made anew, so that the ratio is exact.

    Source: SA-SFT, arXiv 2602.20162, "self-generated dialogues mixed with task data". We differ in: the words of the
    instruction are ours, and so is the ratio, which is `magpie`'s, so that the two are compared at equal cost.
    """

    @dataclass(frozen=True)
    class Options:
        """Of `sa-sft`."""

        dialogue_ratio: float = option(
            1 / 9, "Self-made dialogues for each training row; 0 is plain fine-tuning.", least=0.0, most=100.0
        )
        dialogue_turns: int = option(2, "Answers of the assistant in a dialogue.", least=1, most=20)
        dialogue_temperature: float = option(1.0, "Of the person's words.", above=0.0)

    name: ClassVar[str] = "sa-sft"
    summary: ClassVar[str] = "dialogues of the model with itself mixed in"
    formula: ClassVar[str] = "NLL on training rows and dialogue_ratio as many self-made dialogues"
    source: ClassVar[str] = "2602.20162"
    needs: ClassVar[str] = "an instruct model"
    strength: ClassVar[str] = "dialogue_ratio"
    decides: ClassVar[frozenset[str]] = frozenset({MIXED_ROWS})

    def changes(self, config: SelfAugConfig) -> Changes:
        """With a ratio above 0 the dialogues."""
        o = self.options(config)
        if not o.dialogue_ratio:
            return Changes()
        write = partial(_write, turns=o.dialogue_turns, temperature=o.dialogue_temperature)
        return Changes(compose=Compose(o.dialogue_ratio, write), check_prompts=(require_chat(self.name),))


def _write(scribe: Scribe, count: int, *, turns: int, temperature: float) -> list[Conversation]:
    def attempt(numbers: list[int]) -> list[Conversation | str]:
        dialogues: dict[int, list[Message]] = {n: [] for n in numbers}
        for turn in range(turns):
            for role in ("user", "assistant"):
                going = [n for n in numbers if n in dialogues]
                requests = [_request(scribe, dialogues[n], role, turn, n, temperature) for n in going]
                for n, reply in zip(going, scribe.write(requests, f"dialogues, turn {turn + 1}"), strict=True):
                    if reply.ended and reply.text:
                        dialogues[n].append({"role": role, "content": reply.text})
                    else:
                        del dialogues[n]
        return [Conversation(tuple(dialogues[n])) if n in dialogues else "unfinished" for n in numbers]

    return scribe.gather("sa-sft", count, attempt)


def _request(scribe: Scribe, dialogue: list[Message], role: str, turn: int, number: int, temperature: float) -> Request:
    """What comes next: the assistant's words of this dialogue, or the person's with the roles exchanged."""
    said = [{**message, "content": scribe.renderer.escape(message["content"])} for message in dialogue]
    if role == "assistant":
        return Request(tuple(said), length=scribe.length)
    exchanged = {"user": "assistant", "assistant": "user"}
    ask = {"role": "user", "content": PERSON.format(which="first" if turn == 0 else "next")}
    swapped = [{**message, "role": exchanged[message["role"]]} for message in said]
    seed = scribe.seed_of("sa-sft", turn, number)
    return Request((ask, *swapped), length=scribe.length, temperature=temperature, seed=seed)
