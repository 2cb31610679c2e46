"""SQuAD's exact match and F1, written from their description with loops over characters and sorted lists."""

from __future__ import annotations

import string


def _tokens(text: str) -> list[str]:
    kept = ""
    for character in text.lower():
        if character not in string.punctuation:
            kept += character
    # Articles are removed between any non-word characters, not only between spaces ("the€" loses its article).
    pieces: list[str] = []
    word = ""
    for character in kept + " ":
        if character.isalnum() or character == "_":
            word += character
            continue
        pieces.append("" if word in ("a", "an", "the") else word)
        pieces.append(" " if word in ("a", "an", "the") else "")
        pieces.append(character)
        word = ""
    return "".join(pieces).split()


def em(response: str, accepted: list[str]) -> float:
    return 1.0 if [_tokens(a) for a in accepted].count(_tokens(response)) else 0.0


def f1(response: str, accepted: list[str]) -> float:
    best = 0.0
    for answer in accepted:
        given, wanted = _tokens(response), _tokens(answer)
        if not given or not wanted:
            best = max(best, 1.0 if given == wanted else 0.0)
            continue
        left = sorted(wanted)
        shared = 0
        for token in given:
            if token in left:
                left.remove(token)
                shared += 1
        best = max(best, 2.0 * shared / (len(given) + len(wanted)))
    return best
