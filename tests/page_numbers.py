"""Which numbers does a page show, and is each one a rounding of a number in the run's files?"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

QUOTED = {"svg", "style", "code", "samp", "pre", "title"}
"""Elements whose text is not ours: pictures, settings, hashes, prompts."""
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Reader(HTMLParser):
    """Collects ``<data>`` elements, and the other text that is neither quoted nor of class ``text`` or ``key``."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[tuple[str, bool]] = []
        self.data: list[tuple[str, str]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in VOID:
            return
        named = dict(attrs)
        quoted = tag in QUOTED or bool({"text", "key"} & set((named.get("class") or "").split()))
        self.stack.append((tag, quoted or (self.stack[-1][1] if self.stack else False)))
        if tag == "data":
            self.data.append((named.get("value") or "", ""))

    def handle_endtag(self, tag: str) -> None:
        while self.stack and self.stack.pop()[0] != tag:
            pass

    def handle_data(self, text: str) -> None:
        if self.stack and self.stack[-1][0] == "data":
            value, said = self.data[-1]
            self.data[-1] = (value, said + text)
        elif not (self.stack and self.stack[-1][1]):
            self.words.append(text)


def leaves(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from leaves(inner)
    elif isinstance(value, list):
        if len(value) == 2 and all(isinstance(inner, (int, float)) for inner in value) and value[1]:
            yield value[0] / value[1]  # an item's numerator and denominator
        for inner in value:
            yield from leaves(inner)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield float(value)


def numbers_of(runs: Iterable[Path]) -> set[float]:
    """Every number of the runs' files, and its negative: a gain may be the other way round than a difference."""
    found: set[float] = set()
    for run in runs:
        for name in ("results.json", "shift.json"):
            if (run / name).is_file():
                found |= set(leaves(json.loads((run / name).read_text())))
        for name in ("log.jsonl", "samples.jsonl"):
            if (run / name).is_file():
                for line in (run / name).read_text().splitlines():
                    found |= set(leaves(json.loads(line)))
        found |= set(leaves(yaml.safe_load((run / "config.yaml").read_text())))
    return found | {-number for number in found}


def problems(html: str, known: set[float], derived: Sequence[float], names: Sequence[str]) -> list[str]:
    """What is wrong with the page's numbers; empty where every one has its source.

    Args:
        html: The page.
        known: Numbers of the files.
        derived: Numbers that are computed from these, computed once more.
        names: Words with digits that are no numbers, such as ``f1``.
    """
    reader = Reader()
    reader.feed(html)
    found = [] if reader.data else ["no number at all"]
    for value, text in reader.data:
        number = float(value)
        if number not in known and not any(math.isclose(number, other, rel_tol=1e-9) for other in derived):
            found.append(f"{text} ({value}) stands in no file")
        if not _rounds(text, number):
            found.append(f"{text} is no rounding of {value}")
    words = " ".join(reader.words)
    for name in sorted(names, key=len, reverse=True):
        words = words.replace(name, " ")
    found += [f"{number!r} is no <data>" for number in re.findall(r"\S*\d\S*", words) if number != "100"]
    return found


def _rounds(text: str, number: float) -> bool:
    plain = text.replace("\u2212", "-").replace(",", "").replace("+", "")
    if not re.fullmatch(r"-?\d+(\.\d+)?(e[-+]?\d+)?", plain):
        return False
    mantissa, _, power = plain.partition("e")
    half = 0.5 * 10.0 ** (int(power or 0) - len(mantissa.partition(".")[2])) * (1 + 1e-6)
    return any(abs(float(plain) - scale * number) <= half for scale in (1, 100))
