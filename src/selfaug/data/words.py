"""When do two texts say the same thing, and when does a passage hold an answer?"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["TOKEN", "contains", "normalise", "shingles", "words"]

# Scripts written without spaces between words: kana, Han and Hangul syllables, Thai, Lao, Khmer and Myanmar. Each
# character is a word there; BM25 over characters works where it would find nothing over whole sentences.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
TOKEN = f"[{_UNSPACED}]|[^\\W_{_UNSPACED}]+"
_TOKEN = re.compile(TOKEN)
_SHINGLE = 8


def words(text: str) -> list[str]:
    """The words of a text: NFKC, case folded, without punctuation."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


def normalise(text: str) -> str:
    """The words of a text joined by spaces: equal for texts that differ in case, spacing and punctuation alone.

    Text without any word (only punctuation) is kept as it is, so that such texts are not all the same.
    """
    return " ".join(words(text)) or text.strip()


def contains(passage: str, answer: str) -> bool:
    """Whether the answer's words stand in the passage, in order and together."""
    return f" {normalise(answer)} " in f" {normalise(passage)} "


def shingles(text: str) -> frozenset[int]:
    """The runs of 8 words of a text (one run where it has fewer) as this process's hashes; none where it has no word.

    Texts that share most of their words in order share most of these.
    """
    found = words(text)
    if not found:
        return frozenset()
    return frozenset(hash(" ".join(found[i : i + _SHINGLE])) for i in range(max(1, len(found) - _SHINGLE + 1)))
