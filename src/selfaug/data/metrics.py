"""Scores of one answer as functions of strings: match and F1, abstention, CRAG verdict and groundedness.

``answer_match`` and ``answer_f1`` read words as :mod:`selfaug.data.words` does, in any script. ``exact_match`` and
``token_f1`` are SQuAD's own, digit for digit: made for English, they keep ``“``, ``。`` and full-width digits apart and
drop the sign of ``-5``.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

import regex

from selfaug.data.forms import Forms, read_forms
from selfaug.data.words import is_unspaced, marked_words, words

__all__ = [
    "POINTS", "Verdict", "abstains", "answer_f1", "answer_match", "answer_words", "crag_verdict", "exact_match",
    "grounded_tokens", "squad_normalise", "token_f1",
]  # fmt: skip

Verdict: TypeAlias = Literal["right", "missing", "wrong"]

POINTS: dict[Verdict, int] = {"right": 1, "missing": 0, "wrong": -1}
"""CRAG's points for each verdict; their mean over n answers is (2 · right + missing) / n - 1."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# English articles are followed by a word; A and An in the middle of a sentence are names (vitamin A, Nghệ An).
_ENGLISH_ARTICLES = re.compile(
    r"(?<![\w-])(?<!\w['’])(?:an?|[Tt]he|THE|(?<![^\W_] )(?<![^\W_],\s)An?)(?=\s+[\"'“‘(]?[^\W_])"
)
_SYMBOL = regex.compile(r"[\p{Sm}\p{Sc}\p{So}]")
_QUOTED = re.compile(r"[\"“„«「『][^\"”»」』]*[\"”»」』]")
CRAG_WORDS = 50
"""Number of words of a response that count. The benchmark cuts answers at 75 tokens, against lists of guesses."""
_CONTEXT_WORDS = 12  # number of words before and after an accepted answer that may deny it
_PHRASE_WORDS = 3  # number of words from which on a phrase at the beginning of a response needs no pause after it
_LIST_ITEMS, _ITEM_WORDS = 4, 3  # smallest number of items of a list of guesses, largest number of words of an item
_SLASH = re.compile(r"(?<=[^\W\d_]{3})\s?/\s?(?=[^\W\d_]{3})")
_ENUMERATOR = re.compile(r"(?:^|(?<=\s))(?:\(?(?:\d{1,2}|[A-Za-z])[.)]|[-*•])\s+", re.MULTILINE)


def squad_normalise(text: str) -> str:
    """Return a text in lower case with single spaces, without ASCII punctuation and articles, exactly as SQuAD does."""
    plain = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def exact_match(response: str, accepted: Sequence[str]) -> float:
    """Return SQuAD's exact match: 1 if the response equals an accepted answer after :func:`squad_normalise`, else 0.

    Args:
        response: Response of the model.
        accepted: Accepted answers, at least one.
    """
    said = squad_normalise(response)
    return float(any(said == squad_normalise(answer) for answer in accepted))


def token_f1(response: str, accepted: Sequence[str]) -> float:
    """SQuAD's F1: ``2pr / (p + r)`` over the words of :func:`squad_normalise`, of the best accepted answer.

    If a text has no words, the score is 1 if both have none, else 0 (as in SQuAD 2).
    """
    said = squad_normalise(response).split()
    return max((_f1(said, squad_normalise(answer).split()) for answer in accepted), default=0.0)


def answer_words(text: str) -> list[str]:
    """Return the words of an answer without English articles; without words its symbols, without these the text.

    "Vitamin A" keeps its A, "à" is no article, and an answer such as "+", "👍" or "#" equals only itself.
    """
    return words(_without_articles(text)) or _SYMBOL.findall(text) or [text.strip()] * bool(text.strip())


def answer_match(response: str, accepted: Sequence[str]) -> float:
    """Return exact match for Unicode text: 1 if the response has the same words as an accepted answer, else 0.

    Args:
        response: Response of the model.
        accepted: Accepted answers, at least one.
    """
    said = answer_words(response)
    return float(any(said == answer_words(answer) for answer in accepted))


def answer_f1(response: str, accepted: Sequence[str]) -> float:
    """Return the F1 of :func:`token_f1` over :func:`answer_words`; over characters in scripts without spaces."""
    said = answer_words(response)
    return max((_f1(said, answer_words(answer)) for answer in accepted), default=0.0)


def _f1(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(said), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def abstains(response: str, abstention: str = "", forms: Forms | None = None) -> bool:
    """Tell whether a response gives no answer: it is empty, or begins by saying so in one of the table's languages.

    Only the beginning counts: a long answer that quotes "I don't know" is an answer. "I don't know, but perhaps Paris"
    is none.

    Args:
        response: Response of the model.
        abstention: Text that was trained for questions without an answer. If it has one or two words, it counts only
            as a whole clause, so that "Unknown" does not match "Unknown Pleasures".
        forms: Table of phrases (:func:`selfaug.data.forms.read_forms`); ``None`` for the package's own.
    """
    # Quoted titles do not count, unless they are the whole response: "I Don't Know" is a song by Ozzy Osbourne.
    plain = response.strip()
    said = marked_words(plain if _QUOTED.fullmatch(plain) else _QUOTED.sub(" x ", plain))
    if not said:
        return not _SYMBOL.search(plain)
    return _opens(said, marked_words(abstention)) or (forms or read_forms()).give_no_answer(said)


def crag_verdict(response: str, accepted: Sequence[str], abstention: str = "", forms: Forms | None = None) -> Verdict:
    """Return CRAG's verdict by rules: "right" (+1), "missing" (0) or "wrong" (-1).

    - Missing: the response abstains (:func:`abstains`), whether or not the question has an answer. Abstention precision
      and recall measure whether that was right.
    - Right: the response's first 50 words contain the words of an accepted answer in order and together (a character of
      a script without spaces is half a word); yes and no must be its first words.
    - Wrong: anything else, including every answer to a question that has none.

    An accepted answer does not count if the response denies it directly before or after ("not Paris", "Paris is wrong",
    不是北京), offers it as one guess of several ("Paris or London") that are not all accepted, or hides it in a list of
    four or more short items. One such place is enough. "Not only Paris" and "Paris, not London" deny nothing: the
    denial has to touch the answer.

    Args:
        response: Response of the model.
        accepted: Accepted answers; empty where the question has no answer.
        abstention: Text that was trained for questions without an answer.
        forms: Table of phrases; ``None`` for the package's own.
    """
    # An accepted "unknown" or "none" is an answer like any other.
    if accepted and answer_match(response, [answer for answer in accepted if answer_words(answer)]):
        return "right"
    forms = forms or read_forms()
    # A slash means "or", unless an answer has one, such as km/h.
    said = marked_words(_without_articles(response if "/" in "".join(accepted) else _SLASH.sub(" or ", response)))
    wanted = [answer_words(answer) for answer in accepted]
    if abstains(response, abstention, forms):
        # An accepted answer may begin like an abstention: "I Don't Know How to Love Him" is a title.
        titles = [words_ for words_, answer in zip(wanted, accepted, strict=True) if abstains(answer, "", forms)]
        return "right" if any(_opens(said, title) for title in titles) else "missing"
    said = _first(said)
    found = [words_ for words_ in wanted if words_]
    given = [words_ for words_ in found if _gives(said, words_, found, forms)]
    return "right" if given and not _listed(response, given, found, forms) else "wrong"


def grounded_tokens(response: str, documents: Iterable[str]) -> tuple[int, int]:
    """Return how many of the response's words (:func:`answer_words`) are anywhere in the documents, and their number.

    Their ratio is the groundedness, 0 to 1. It ignores the order of words, so in scripts without spaces, where a word
    is a character, it is near 1 for most answers.
    """
    found = {word for document in documents for word in words(document)}
    said = answer_words(response)
    return sum(word in found for word in said), len(said)


def _without_articles(text: str) -> str:
    # Composed first: the a of a decomposed à is no article.
    return _ENGLISH_ARTICLES.sub(" ", unicodedata.normalize("NFC", text))


def _opens(said: Sequence[str], phrase: Sequence[str]) -> bool:
    """Tell whether words begin with a phrase; a short one needs a pause after it."""
    phrase = [word for word in phrase if word not in (".", ",")]
    places = [place for place, word in enumerate(said) if word not in (".", ",")][: len(phrase)]
    if not phrase or [said[place] for place in places] != phrase:
        return False
    rest = said[places[-1] + 1 :]
    return len(phrase) >= _PHRASE_WORDS or not rest or rest[0] in (".", ",")


def _first(said: list[str]) -> list[str]:
    """Return the words that count (:data:`CRAG_WORDS`) with their pauses."""
    left = float(CRAG_WORDS)
    for place, word in enumerate(said):
        if word not in (".", ","):
            left -= 0.5 if is_unspaced(word) else 1.0
            if left < 0:
                return said[:place]
    return said


def _gives(said: Sequence[str], wanted: Sequence[str], accepted: Sequence[Sequence[str]], forms: Forms) -> bool:
    """Tell whether a response contains an accepted answer, and neither denies it nor offers other guesses beside it."""
    size = len(wanted)
    places = [place for place, word in enumerate(said) if word not in (".", ",")]
    plain = [said[place] for place in places]
    starts = [i for i in range(len(plain) - size + 1) if plain[i : i + size] == wanted]
    if " ".join(wanted) in forms.yes_no:
        return starts[:1] == [0]
    for i in starts:
        first, last = places[i], places[i + size - 1] + 1
        before = "".join(f"{word} " for word in said[max(0, first - _CONTEXT_WORDS) : first])
        behind = "".join(f"{word} " for word in said[last : last + _CONTEXT_WORDS])
        if forms.denied(before, behind) or forms.guessed(before, behind, [" ".join(one) for one in accepted]):
            return False
    return bool(starts)


def _listed(response: str, given: Sequence[list[str]], accepted: Sequence[list[str]], forms: Forms) -> bool:
    """Tell whether the whole response is a list of short items of which fewer than half are accepted."""
    said = _first(marked_words(_without_articles(_ENUMERATOR.sub(" ; ", response))))
    items = [item.split() for item in forms.joined.split("".join(f"{word} " for word in said)) if item.strip()]
    numbers = [any(word[-1].isdigit() for word in item) for item in items]
    # Items with and without numbers form a date or an address, not a list of guesses.
    if len(items) < _LIST_ITEMS or any(len(item) > _ITEM_WORDS for item in items) or any(numbers) != all(numbers):
        return False
    hits = sum(item in accepted for item in items)
    return all(words_ in items for words_ in given) and 2 * hits < len(items)
