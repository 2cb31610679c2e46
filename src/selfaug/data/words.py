"""Splits texts of any script into words, normalises texts, and tells whether a passage contains an answer.

After NFKC and case folding a word is one of these:

- a run of letters, marks and digits that begins with a letter; Indic vowel signs are marks and belong to their letters;
- in scripts written without spaces (Han, kana, Hangul, Thai, Lao, Khmer, Burmese and the like) each character with its
  marks. Korean has spaces, but its particles stick to the noun, so its syllables are taken one by one too;
- a number with its separators and its sign: ``-5`` is not ``5``, but ``1990-2000`` is a range. ``1,000``, ``1 000`` and
  ``1'000`` are 1000; digits of every script are the same digits; ``10²`` is not 102;
- ``C#``, ``C++``, ``.NET``, and grades and blood groups such as ``A-``, ``O+``;
- a per cent or currency sign at a number, taken after the number wherever it stands: ``$5`` is ``5 $`` and not ``5``.

Other punctuation, invisible characters, and what writers of Arabic and Hebrew may omit (short vowels, points and the
stretching kashida) are dropped. Different letters stay different: ``é`` is not ``e``, and ``أ`` is not ``ا``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

import regex

__all__ = ["contains", "fold", "is_unspaced", "marked_words", "normalise", "terms", "words"]

# LB=SA is Unicode's line-breaking class "complex context": the scripts of South East Asia without spaces.
_UNSPACED = r"[[\p{LB=SA}\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{Hangul}ー々]&&[\p{L}\p{Nl}]]"


def _token(letter: str, inner: str, more: str, unspaced: str, after_word: str, money: str) -> str:
    """Return the pattern of a word for ``re``, which reads Latin text faster, or ``regex``, which knows Unicode."""
    tail = rf"(?:\+\+|[+#](?![{inner}])|-(?:(?<=\b[a-fo]-)|(?<=\bab-))(?![{more}]))?"
    number = rf"\d+(?:[.,]\d+)*(?:\+(?![{more}]))?"
    kinds = (
        rf"[{letter}][{inner}]*(?![{more}])",  # most words match this one, so it comes first
        rf"[{letter}][{inner}]*{tail}",
        *unspaced.split(),
        number,
        rf"-{after_word}{number}",
        rf"\.(?<![^\s(\[{{\"'「]\.)[{letter}][{inner}]*",
        rf"[{money}%‰°](?:(?<=\d.)|(?<=\d\s.))",
        r"[<>≤≥±](?<![-=<>].)(?=-?\d)",
    )
    # Consuming the space after a word saves an attempt to match there; findall returns the group alone.
    return f"({'|'.join(kinds)}) ?"


_LATIN_TOKEN = _token(
    "a-zªµºß-öø-ʯ", "0-9a-zªµºß-öø-ʯ", "0-9a-zªµºß-öø-ʯ+#-", "", r"(?<![^\W_]-)(?<![)\]%.+-]-)", "$¢£¤¥"
)
# After a number with its unit (1990年-2000年) a dash is a range, after any other character without spaces a sign.
_UNICODE_TOKEN = "(?V1)" + _token(
    rf"[\p{{L}}\p{{Nl}}\p{{No}}]--{_UNSPACED}",
    rf"[\p{{L}}\p{{N}}\p{{M}}]--{_UNSPACED}",
    rf"[\p{{L}}\p{{N}}\p{{M}}+#\-]--{_UNSPACED}",
    rf"{_UNSPACED}\p{{M}}*",
    rf"(?<![[\p{{L}}\p{{N}}\p{{M}})\]%.+\-]--{_UNSPACED}]-)(?<!\d{_UNSPACED}{{1,2}}-)",
    r"\p{Sc}",
)
# Ends of sentences and clauses. Point and colon inside a word do not count: node.js, 10:30.
_MARK = r"(?:[.:](?!\w)|[,;!?()\[\]\n])"
_LATIN = re.compile(_LATIN_TOKEN)
_LATIN_MARKED = re.compile(f"{_LATIN_TOKEN}|({_MARK})")
_UNICODE = regex.compile(_UNICODE_TOKEN)
_UNICODE_MARKED = regex.compile(rf"{_UNICODE_TOKEN}|({_MARK}|[\p{{Term}}--[\x00-\x7f]])")
_SENTENCE_END = regex.compile(r"\p{STerm}|\n")
_IS_UNSPACED = regex.compile(f"(?V1){_UNSPACED}")
# Below the first modifier letter there is neither a mark nor a script without spaces.
_BEYOND_LATIN = re.compile("[\u02b0-\U0010ffff]")

# Grouping characters of digits, which are removed. Each pattern begins with the character itself, which re finds
# fastest. 0,125 is a decimal fraction, not 125.
_GROUPING = (
    re.compile(r",(?<=\d,)(?<!\b0,)(?=(?:\d\d,)*\d{3}(?!\d))", re.ASCII),
    re.compile(r" (?:(?<=\b\d )|(?<=\b\d\d )|(?<=\b\d\d\d ))(?=\d{3}(?!\d))", re.ASCII),
    re.compile(r"'(?<=\d')(?=\d{3}(?!\d))", re.ASCII),
)
_POINT = re.compile(r"\.(?<![\w.]\.)(?=\d)")
_INITIALS = re.compile(r"\.(?<=\b[^\W\d_]\.)(?:(?=[^\W\d_]\b)|(?<!\.[^\W\d_]\.) (?=[^\W\d_]\.))")
_MONEY = regex.compile(r"((?<![\w)\]%.-])-)?\s?(\p{Sc})\s?(-?\d+(?:[.,]\d+)*)")
_CURRENCY = regex.compile(r"\p{Sc}")
_RAISED = re.compile("(\\d)(?=[²³¹⁰-⁻¼-¾⅐-⅟↉①-⓿❶-➓])")
# Invisible characters, kashida, Arabic short vowels and Koranic signs, Hebrew points and accents may be omitted.
_OPTIONAL = regex.compile(
    r"(?V1)[\p{DI}\u0640\u064B-\u0652\u0656-\u065F\u0670[\u06D6-\u06ED&&\p{M}]\u08D3-\u08FF[\u0591-\u05C7&&\p{M}]]"
)
_OTHER_DIGIT = regex.compile(r"(?V1)[\p{Nd}--[0-9]]")
_SAME = (
    *((dash, "-") for dash in "‐‒–−"), *((quote, "'") for quote in "’‘‛ʼʻ"), *((quote, '"') for quote in "“”„‟«»"),
    ("—", " ; "), ("\xad", ""), ("i\u0307", "i"), ("٫", "."), ("٬", ","), ("ٱ", "ا"),
)  # fmt: skip


def fold(text: str) -> str:
    """Return the text with one spelling of width, case, dashes, quotes, digits, grouping, initials and currencies."""
    if text.isascii():
        text = text.lower()
    else:
        text = unicodedata.normalize("NFKC", _RAISED.sub(r"\1 ", text).replace("…", " ; "))
        text = unicodedata.normalize("NFKC", text.casefold())
        for written, meant in _SAME:
            text = text.replace(written, meant)
        if not _is_latin(text):
            text = unicodedata.normalize("NFKC", _OPTIONAL.sub("", text))
            text = _OTHER_DIGIT.sub(lambda found: str(unicodedata.decimal(found[0])), text)
    if "." in text:
        text = _INITIALS.sub("", _POINT.sub("0.", text))
    for group in _GROUPING:
        text = group.sub("", text)
    if "$" in text or (not text.isascii() and _CURRENCY.search(text)):
        text = _MONEY.sub(r" \1\3\2", text)
    return text


def _is_latin(folded: str) -> bool:
    return folded.isascii() or _BEYOND_LATIN.search(folded) is None


def words(text: str) -> list[str]:
    """Return the words of a text, as defined at the top of the module; none if it is only punctuation and signs."""
    text = fold(text)
    return (_LATIN if _is_latin(text) else _UNICODE).findall(text)


def terms(text: str) -> list[str]:
    """Return the index terms of a text: its words, and in scripts without spaces also each pair of adjacent ones.

    With single characters alone, 京都 (Kyoto) would match 都の東京 as well as 京都.
    """
    text = fold(text)
    return _LATIN.findall(text) if _is_latin(text) else list(_terms(text))


def _terms(folded: str) -> Iterator[str]:
    last, end = "", -1
    for found in _UNICODE.finditer(folded):
        word = found[1]
        yield word
        if is_unspaced(word):
            if end == found.start():
                yield last + word
            last, end = word, found.end(1)


def is_unspaced(word: str) -> bool:
    """Tell whether a word is one character of a script that is written without spaces."""
    return _IS_UNSPACED.match(word) is not None


def marked_words(text: str) -> list[str]:
    """Return a text's words with ``.`` at ends of sentences and lines, ``,`` at other pauses, never two in a row."""
    text = fold(text)
    found: list[str] = []
    for word, pause in (_LATIN_MARKED if _is_latin(text) else _UNICODE_MARKED).findall(text):
        if word:
            found.append(word)
        elif found and found[-1] != ".":
            mark = "." if _SENTENCE_END.match(pause) else ","
            if found[-1] == ",":
                found[-1] = mark
            else:
                found.append(mark)
    return found


def normalise(text: str) -> str:
    """Return the words of a text joined by spaces, so that case, width, spacing and punctuation do not count.

    A text without words (only punctuation) is kept as it is, so that such texts are not all equal.
    """
    return " ".join(words(text)) or unicodedata.normalize("NFKC", text).strip()


def contains(passage: str, answer: str) -> bool:
    """Tell whether the passage contains the answer's words, in order and together."""
    return f" {normalise(answer)} " in f" {normalise(passage)} "
