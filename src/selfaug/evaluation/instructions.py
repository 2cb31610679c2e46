"""Requests with instructions that a program can verify, made from a seed, and the checks of their answers.

In the manner of IFEval (arXiv 2311.07911), with no text of it: requests and kinds of instruction are this file's own.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["KINDS", "LEAST", "Instruction", "Kind", "Request", "follows", "follows_loosely", "requests"]

_REQUESTS = (
    "Write a short note about {}.", "Tell a beginner about {}.", "Give advice to somebody who asks about {}.",
    "Describe {} in your own words.", "Write a message to a friend about {}.", "Say why people care about {}.",
    "Write a few lines for a school newspaper about {}.", "Explain what is special about {}.",
)  # fmt: skip
_TOPICS = (
    "growing tomatoes", "a walk in the rain", "learning to swim", "an old clock", "the first day at work", "bees",
    "baking bread", "a lost dog", "the night sky", "riding a bicycle", "a quiet library", "winter mornings", "chess",
    "packing for a trip", "a busy market", "saving water", "a new neighbour", "train journeys", "keeping a diary",
    "a broken window", "mountain lakes", "cooking for two", "street music", "planting trees", "a birthday party",
    "repairing shoes", "good sleep", "an empty beach", "drawing maps", "moving to a new town", "autumn leaves",
    "a power cut", "painting a room", "hot soup", "early trains", "paper boats", "lighthouses", "a shared garden",
)  # fmt: skip
_WORDS = (
    "river", "yellow", "window", "teacher", "garden", "silver", "winter", "bridge", "music", "basket", "candle",
    "letter", "market", "pocket", "shadow", "summer", "ticket", "village", "whisper", "copper", "island", "kitchen",
)  # fmt: skip
_COMMON = ("the", "and", "very", "people", "can", "you", "is", "of")
_OPENINGS = ("To begin with", "My dear friend", "Here we go", "Once more", "As promised", "Without delay")
_ENDINGS = ("That was all", "See for yourself", "Take care", "More tomorrow", "Back to work", "Until next time")
_KEYS = ("title", "summary", "place", "reason", "tip", "mood", "season", "name")
LEAST = 10
"""Words of an answer. One that only became terse, as models do that are tuned on short answers, follows nothing."""
_CHOICES = ("yes, no or unsure", "always, sometimes or never", "yes, partly or no", "often, seldom or never")


@dataclass(frozen=True)
class Kind:
    """One kind of instruction.

    Args:
        says: Sentences that state it, with its arguments in braces.
        takes: What it decides of an answer; two kinds that decide the same never stand in one request.
        draw: Function that draws its arguments.
        holds: Whether an answer, without white space at its ends and not empty, follows it.
    """

    says: tuple[str, ...]
    takes: frozenset[str]
    draw: Callable[[random.Random], dict[str, Any]]
    holds: Callable[..., bool]


@dataclass(frozen=True)
class Instruction:
    """A kind's name and its arguments, which are JSON."""

    kind: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """A prompt and the instructions in it."""

    prompt: str
    instructions: tuple[Instruction, ...]


def requests(count: int, seed: int = 0) -> list[Request]:
    """Return ``count`` different requests with one to three instructions each, a function of the arguments."""
    rng = random.Random(f"instructions {seed}")
    found: dict[str, Request] = {}
    while len(found) < count:
        wanted = rng.choices((1, 2, 3), (2, 2, 1))[0]
        request = _request(rng, wanted, must=list(KINDS)[len(found) % len(KINDS)])
        found.setdefault(request.prompt, request)
    return list(found.values())


def _request(rng: random.Random, wanted: int, must: str) -> Request:
    names, taken = [must], set(KINDS[must].takes)
    for name in rng.sample(list(KINDS), len(KINDS)):
        if len(names) < wanted and not taken & KINDS[name].takes:
            names.append(name)
            taken |= KINDS[name].takes
    rng.shuffle(names)
    instructions, said = [], []
    for name in names:
        arguments = KINDS[name].draw(rng)
        instructions.append(Instruction(name, arguments))
        texts = {key: " and ".join(value) if isinstance(value, list) else value for key, value in arguments.items()}
        said.append(rng.choice(KINDS[name].says).format(**texts))
    task = "Do you like {}?" if must == "choice" else f"{rng.choice(_REQUESTS)} Use {LEAST} words or more."
    return Request(" ".join([task.format(rng.choice(_TOPICS)), *said]), tuple(instructions))


def follows(instruction: Instruction, answer: str) -> bool:
    """Whether an answer follows an instruction; one of fewer than ten words follows only ``choice``.

    Raises:
        KeyError: If there is no such kind.
    """
    answer = answer.strip()
    long_enough = len(_words(answer)) >= (1 if instruction.kind == "choice" else LEAST)
    return long_enough and KINDS[instruction.kind].holds(answer, **instruction.arguments)


def follows_loosely(instruction: Instruction, answer: str) -> bool:
    """Whether an answer follows it without its first or last line (an opening, a farewell), or without asterisks."""
    lines = answer.strip().split("\n")
    parts = ("\n".join(part) for part in (lines, lines[1:], lines[:-1], lines[1:-1]))
    return any(follows(instruction, form) for part in parts for form in (part, part.replace("*", "")))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’-]\w+)*", text.lower())


def _sentences(text: str) -> int:
    return sum(bool(_words(piece)) for piece in re.split(r"[.!?…]+[\"'”’)*\]]*(?:\s+|$)", text))


def _paragraphs(text: str) -> int:
    return sum(bool(piece.strip()) for piece in re.split(r"\n\s*\n", text))


def _divided(text: str) -> list[str]:
    return [piece.strip() for piece in re.split(r"^ *\*{6} *$", text, flags=re.M)]


def _numbered(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"^\s*(\d{1,3})[.)]\s+\S", text, re.M)]


def _object(text: str) -> Any:
    """The JSON object that is the whole text, in a fence or not; ``None`` for anything else."""
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*)\n```", text, re.S)
    try:
        body = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def _n(*values: int) -> Callable[[random.Random], dict[str, Any]]:
    return lambda rng: {"n": rng.choice(values)}


def _one(name: str, values: Sequence[str]) -> Callable[[random.Random], dict[str, Any]]:
    return lambda rng: {name: rng.choice(values)}


def _nothing(rng: random.Random) -> dict[str, Any]:
    return {}


def _kind(says: str, takes: str, draw: Callable[[random.Random], dict[str, Any]], holds: Callable[..., bool]) -> Kind:
    return Kind(tuple(says.split(" | ")), frozenset(takes.split()), draw, holds)


KINDS: Mapping[str, Kind] = {
    "at_least": _kind(
        "Use at least {n} words. | Write {n} words or more.", "length", _n(25, 40, 60, 80),
        lambda text, n: len(_words(text)) >= n,
    ),
    "at_most": _kind(
        "Use at most {n} words. | Write no more than {n} words.", "length", _n(20, 30, 40),
        lambda text, n: len(_words(text)) <= n,
    ),
    "sentences": _kind(
        "Write exactly {n} sentences. | The answer must have {n} sentences, no more and no fewer.", "shape sentence",
        _n(2, 3, 4, 5), lambda text, n: _sentences(text) == n,
    ),
    "questions": _kind(
        "Ask exactly {n} questions in your answer. | Your answer must hold exactly {n} question marks.", "sentence",
        _n(2, 3), lambda text, n: text.count("?") == n,
    ),
    "paragraphs": _kind(
        "Write exactly {n} paragraphs, with an empty line between them. | "
        "Split the answer into {n} paragraphs by empty lines.", "shape", _n(2, 3, 4),
        lambda text, n: _paragraphs(text) == n,
    ),
    "bullets": _kind(
        'Give exactly {n} bullet points, each on a line that begins with "- ". | '
        'Use a list of {n} lines, each of which begins with "- ".', "shape", _n(2, 3, 4, 5),
        lambda text, n: len(re.findall(r"^\s*[-*] \S", text, re.M)) == n,
    ),
    "numbered": _kind(
        "Give a numbered list with exactly {n} points (1., 2. and so on). | "
        "Number your points from 1 to {n}, each on a line of its own.", "shape digits", _n(2, 3, 4, 5),
        lambda text, n: _numbered(text) == list(range(1, n + 1)),
    ),
    "json": _kind(
        "Answer with nothing but a JSON object that has the keys {keys}. | "
        "The whole answer must be a JSON object with the keys {keys}.",
        "shape sentence length case start end commas bold digits times", lambda rng: {"keys": rng.sample(_KEYS, 2)},
        lambda text, keys: set(_object(text) or ()) == set(keys),
    ),
    "contains": _kind(
        "Use the words {words}. | The words {words} must appear.", "times",
        lambda rng: {"words": rng.sample(_WORDS, 2)},
        lambda text, words: set(words) <= set(_words(text)),
    ),
    "omits": _kind(
        'Do not use the word "{word}". | The word "{word}" must not appear.', "omits", _one("word", _COMMON),
        lambda text, word: word not in _words(text),
    ),
    "times": _kind(
        'Use the word "{word}" exactly {n} times. | The word "{word}" must appear exactly {n} times.', "times",
        lambda rng: {"word": rng.choice(_WORDS), "n": rng.choice((2, 3, 4))},
        lambda text, word, n: _words(text).count(word) == n,
    ),
    "begins": _kind(
        'Begin with the words "{phrase}". | The first words of your answer must be "{phrase}".', "start",
        _one("phrase", _OPENINGS), lambda text, phrase: _words(text)[: len(_words(phrase))] == _words(phrase),
    ),
    "ends": _kind(
        'End with the words "{phrase}" and nothing after them. | The last words of your answer must be "{phrase}".',
        "end", _one("phrase", _ENDINGS), lambda text, phrase: _words(text)[-len(_words(phrase)) :] == _words(phrase),
    ),
    "title": _kind(
        "Put a title in square brackets on the first line. | The first line must be a title in square brackets, [like "
        "this].", "start shape", _nothing, lambda text: bool(re.match(r"\[[^\[\]\n]+\] *(?:\n|$)", text)),
    ),
    "quoted": _kind(
        "Put your whole answer in double quotation marks. | "
        "The answer must begin and end with a double quotation mark.",
        "start end shape", _nothing, lambda text: len(text) > 2 and text[0] in '"“' and text[-1] in '"”',
    ),
    "postscript": _kind(
        'Add a last line that begins with "P.S.". | Close with a postscript on a line of its own, which begins with '
        '"P.S.".', "end shape", _nothing, lambda text: text.split("\n")[-1].strip().lower().startswith("p.s."),
    ),
    "lower": _kind(
        "Use small letters only, no capital letters. | Write everything in lower case.", "case", _nothing,
        lambda text: text == text.lower() != text.upper(),
    ),
    "upper": _kind(
        "Use capital letters only. | Write everything in upper case.", "case", _nothing,
        lambda text: text == text.upper() != text.lower(),
    ),
    "no_commas": _kind(
        "Do not use any commas. | There must be no comma in your answer.", "commas", _nothing,
        lambda text: "," not in text,
    ),
    "digits": _kind(
        "Give at least {n} numbers, written in digits. | Your answer must hold {n} or more numbers in digits.",
        "digits", _n(2, 3), lambda text, n: len(re.findall(r"\d+(?:[.,]\d+)*", text)) >= n,
    ),
    "bold": _kind(
        "Set at least {n} words in bold, **like this**. | "
        "Put two asterisks before and after at least {n} words, **so**.", "bold", _n(2, 3),
        lambda text, n: len(re.findall(r"\*\*[^*\n]+\*\*", text)) >= n,
    ),
    "two_answers": _kind(
        "Give two different answers with a line of six asterisks, ******, between them. | Answer twice, differently, "
        "and put ****** alone on the line between the answers.", "shape", _nothing,
        lambda text: len(parts := _divided(text)) == len({*parts} - {""}) == 2,
    ),
    "choice": _kind(
        "Answer with one of these words and nothing else: {words}. | Reply with a single word: {words}.",
        "shape sentence length case start end commas bold digits times omits", _one("words", _CHOICES),
        lambda text, words: _words(text) in [[word] for word in _words(words) if word != "or"],
    ),
}  # fmt: skip
"""The kinds of instruction by name. Words are compared in any case."""
