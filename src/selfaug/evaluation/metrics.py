"""How good is one answer? Exact match, token F1, abstention, CRAG verdict and groundedness as functions of strings."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

__all__ = [
    "POINTS", "Verdict", "abstains", "crag_verdict", "exact_match", "grounded_tokens", "squad_normalise", "token_f1",
]  # fmt: skip

Verdict: TypeAlias = Literal["right", "missing", "wrong"]

POINTS: dict[Verdict, int] = {"right": 1, "missing": 0, "wrong": -1}
"""CRAG's points; their mean over n answers is (2 · right + missing) / n - 1."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# A number with its separators is one word: 5.5 neither equals 55 nor holds 5.
_CRAG_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d]+|\d+")
_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
CRAG_WORDS = 50
"""Words of an answer that count: the benchmark cuts answers at 75 tokens, so that a list of guesses is no answer."""

_OPENING = (
    r"(?:i'?m|i am|we are)?\s*(?:very |so )?sorry|unfortunately|apologies|i apologi[sz]e|well|hmm*|but",
    r"(?:based on|according to|given|from|in) (?:the |these |this |your )?(?:given |provided |above )?"
    r"(?:documents?|context|information|passages?|texts?)(?: provided| given| above)?",
)
_NOT = r"(?:can ?not|can't|could not|couldn't|am unable to|'m unable to|am not able to|was unable to|do not|don't)"
_SOURCE = r"(?:given |provided |above )?(?:documents?|contexts?|passages?|texts?)(?: provided| given| above)?"
_HOLD = r"(?:contain|hold|mention|provide|state|say|give|include|specify|answer)s?"
_STATES = r"(?:known|stated|mentioned|specified|given|found|provided|available|answerable|clear|in)"
_NO_ANSWER_FORMS = (
    r"i (?:really |simply |just |honestly )?(?:do not|don't|dont|did not|didn't) (?:really |actually )?know\b",
    r"(?:i am|i'm|im) (?:not (?:sure|certain|aware)|unsure)\b",
    rf"i ?{_NOT} (?:find|answer|determine|tell|say|provide|give|have|see|locate|confirm)\b",
    r"(?:i have )?no (?:idea|information)\b",
    r"(?:it|this|that|(?:the|this) (?:answer|question|information)) (?:can ?not|can't|could not) be "
    r"(?:determined|answered|known|found)\b",
    r"(?:it|this|that|(?:the|this) (?:answer|question|information)) is "
    rf"(?:not {_STATES}|unknown|unclear|unanswerable)\b",
    r"there is (?:no|not enough|insufficient) (?:information|answer|mention|evidence)\b",
    r"(?:not enough|insufficient) information\b",
    rf"(?:the |these |this )?{_SOURCE} (?:do not|does not|don't|doesn't|did not|didn't) {_HOLD}\b",
    rf"(?:none of the|no) {_SOURCE} {_HOLD}\b",
    r"(?:unknown|unanswerable|no answer|not available|n/?a|none|cannot answer|can't answer)[\s.!]*$",
)
_NO_ANSWER = re.compile(rf"(?:(?:{'|'.join(_OPENING)})[\s,.:;!-]*)*(?:{'|'.join(_NO_ANSWER_FORMS)})", re.IGNORECASE)


def squad_normalise(text: str) -> str:
    """Lower case, without ASCII punctuation, without a, an, the, single spaces: SQuAD's own, step by step."""
    plain = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def exact_match(response: str, accepted: Sequence[str]) -> float:
    """1 where the normalised response equals a normalised accepted answer, else 0.

    Args:
        response: What the model said.
        accepted: At least one answer; the best one counts.
    """
    said = squad_normalise(response)
    return float(any(said == squad_normalise(answer) for answer in accepted))


def token_f1(response: str, accepted: Sequence[str]) -> float:
    """``2pr / (p + r)`` over normalised words with their counts, for the accepted answer where it is largest; 0 to 1.

    Where either text has no word, 1 if both have none, else 0 (as in SQuAD 2).
    """
    said = squad_normalise(response).split()
    return max((_f1(said, squad_normalise(answer).split()) for answer in accepted), default=0.0)


def _f1(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(said), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def abstains(response: str, abstention: str = "") -> bool:
    """Whether a response gives no answer: it is empty, or begins by saying so.

    Only the beginning is looked at: a long answer that quotes "I don't know" somewhere is an answer. "I don't know, but
    perhaps Paris" is none.

    Args:
        response: What the model said.
        abstention: The text that was trained for questions without an answer.
    """
    said = " ".join(unicodedata.normalize("NFKC", response).replace("’", "'").split())
    if not squad_normalise(said):
        return True
    trained = squad_normalise(abstention)
    if trained and f"{squad_normalise(said)} ".startswith(f"{trained} "):
        return True
    return _NO_ANSWER.match(said) is not None


def crag_verdict(response: str, accepted: Sequence[str], abstention: str = "") -> Verdict:
    """CRAG's verdict by rules: "right" (+1), "missing" (0) or "wrong" (-1).

    Missing: :func:`abstains`, whether or not the question has an answer (what a right refusal is worth, abstention
    precision and recall say). Right: the words of an accepted answer stand together and in order in the response's
    first 50 words; for yes and no, as its first word. Wrong: anything else, and so is every answer to a question
    that has none.

    Args:
        response: What the model said.
        accepted: Accepted answers; none where the question has no answer.
        abstention: As for :func:`abstains`.
    """
    # An accepted "unknown" or "none" is an answer like any other.
    # The second comparison is for answers of signs alone, such as "+" or "€".
    plain = response.strip().casefold()
    if any(_crag_words(response) == _crag_words(answer) for answer in accepted if _crag_words(answer)) or (
        plain and plain in [answer.strip().casefold() for answer in accepted]
    ):
        return "right"
    if abstains(response, abstention):
        return "missing"
    said = _crag_words(response)[:CRAG_WORDS]
    for answer in accepted:
        wanted = _crag_words(answer)
        if wanted in (["yes"], ["no"], ["true"], ["false"]):
            if said[:1] == wanted:
                return "right"
        elif wanted and any(said[i : i + len(wanted)] == wanted for i in range(len(said) - len(wanted) + 1)):
            return "right"
    return "wrong"


def _crag_words(text: str) -> list[str]:
    folded = _GROUPED.sub("", unicodedata.normalize("NFKC", text).casefold())
    return [word for word in _CRAG_WORD.findall(folded) if word not in ("a", "an", "the")]


def grounded_tokens(response: str, documents: Iterable[str]) -> tuple[int, int]:
    """How many of the response's normalised words stand anywhere in the documents, and how many it has.

    Their ratio is the groundedness, 0 to 1. It says nothing of whether the words stand together.
    """
    found = {word for document in documents for word in squad_normalise(document).split()}
    said = squad_normalise(response).split()
    return sum(word in found for word in said), len(said)
