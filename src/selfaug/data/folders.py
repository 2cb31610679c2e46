"""Tells by the names of files and folders which split each file belongs to, as the Hugging Face Hub does.

A file belongs to a split if its name, or that of a folder around it, contains one of the split's words (:data:`WORDS`)
as a whole word, in any case: `train-00000-of-00002.parquet`, `squad_dev.jsonl` and `test/part1.jsonl` do, and so does
`training_manual.jsonl`; `contest.jsonl` and `latest.jsonl` do not. Shards named `NAME-00000-of-00002` form the split
NAME.

Source: https://huggingface.co/docs/hub/datasets-file-names-and-splits. We differ in three things: a file that names no
split beside files that do is an error (the Hub leaves it out), so is a file that names two (the Hub puts it in both),
and `held_out` names a split as well, since `selfaug prepare` writes such files.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from selfaug.common.errors import DataError

__all__ = ["HELD_OUT", "WORDS", "Splits", "choose", "evaluation_splits", "is_named", "missing_shards", "splits_of"]

WORDS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "test": ("test", "testing", "eval", "evaluation"),
    "held_out": ("heldout", "holdout", "held_out"),
    "validation": ("validation", "valid", "val", "dev"),
}
"""Words that name each split."""

HELD_OUT = ("test", "held_out", "validation")
"""Splits that are not trained on, in the order of preference."""

_SPLIT_OF = {word: split for split, words in WORDS.items() for word in words}
_LETTERS = re.compile(r"[^\W\d_]+")
_HELD_OUT = re.compile(r"(?<![^\W\d_])h[eo]ld[-_. ]out(?![^\W\d_])")
_SHARD = re.compile(r"^(?P<name>.*?)[-_.]?(?P<index>\d+)[-_]of[-_](?P<total>\d+)(?!\d)")
_NAME_OF_SPLIT = re.compile(r"\w+(\.\w+)*")


@dataclass(frozen=True)
class Splits:
    """The files of each split.

    Args:
        files: Files by the name of their split, in the given order.
        unnamed: Files that name no split.
    """

    files: dict[str, list[PurePath]] = field(default_factory=dict)
    unnamed: list[PurePath] = field(default_factory=list)

    def named(self) -> bool:
        """Tell whether any name contains a word of a split; that of a shard alone (`part-00000-of-00002`) does not."""
        return any(_words(name) for name in self.files)


def splits_of(paths: Sequence[PurePath]) -> Splits:
    """Return the files by split.

    Args:
        paths: Paths relative to the data folder, since names of the folders around it do not count.

    Raises:
        DataError: If the name of a file contains words of two splits.
    """
    found: defaultdict[str, list[PurePath]] = defaultdict(list)
    unnamed = []
    for path in paths:
        name = _split_of(path)
        if name is None:
            unnamed.append(path)
        else:
            found[name].append(path)
    return Splits(dict(found), unnamed)


def choose(available: Mapping[str, object] | Iterable[str], wanted: Sequence[str]) -> str | None:
    """Return the available name of the first wanted split that there is; ``None`` for none.

    A wanted name matches the same name (``train_sft``), else any word of the same split (``dev`` and ``validation``),
    else the only name that contains a word of the split (``train`` and ``train_sft``).

    Raises:
        DataError: If several available names match.
    """
    names = list(available)
    for want in wanted:
        same = [name for name in names if _key(name) == _key(want)]
        split = _word(want)
        if not same and split is not None:
            same = [name for name in names if _word(name) == split] or [
                name for name in names if _words(name) == {split}
            ]
        if len(same) > 1:
            raise DataError(
                f"the split {want!r} could be each of {', '.join(sorted(same))}",
                "name one of them: --split for `selfaug prepare`, --dataset_train_split and --dataset_test_split for"
                " `selfaug train`.",
            )
        if same:
            return same[0]
    return None


def is_named(path: PurePath, split: str) -> bool:
    """Tell whether a part of a file's path contains, as whole words, a split's name that is not in :data:`WORDS`."""
    if _word(split) is not None:
        return False
    key = re.escape(_key(split))
    return any(re.search(rf"(?<![^\W_]){key}(?![^\W\d_])", _key(part)) for part in path.parts)


def evaluation_splits(chosen: str | None) -> tuple[str, ...]:
    """Return the splits for evaluation in the order of preference: the ``chosen`` one, then :data:`HELD_OUT`."""
    return tuple(dict.fromkeys((chosen or "test", *HELD_OUT)))


def missing_shards(paths: Iterable[PurePath]) -> list[str]:
    """Return, for each incomplete set of numbered shards, the name of its first missing shard.

    Shards are numbered from 0 to N - 1, or from 1 to N.
    """
    sets: defaultdict[tuple[PurePath, str, int], dict[int, re.Match[str]]] = defaultdict(dict)
    for path in paths:
        shard = _SHARD.match(path.name)
        if shard:
            sets[path.parent, shard["name"].casefold(), int(shard["total"])][int(shard["index"])] = shard
    missing = []
    for (parent, _, total), shards in sets.items():
        first = 1 if total in shards and 0 not in shards else 0
        index = next((index for index in range(first, first + total) if index not in shards), None)
        if index is not None:
            one = next(iter(shards.values()))
            start, end = one.span("index")
            missing.append(str(parent / f"{one[0][:start]}{index:0{end - start}}{one[0][end:]}"))
    return missing


def _split_of(path: PurePath) -> str | None:
    words = frozenset().union(*(_words(part) for part in path.parts))
    shard = _SHARD.match(path.name)
    if shard and len(shard["index"]) == len(shard["total"]) == 5 and _NAME_OF_SPLIT.fullmatch(shard["name"]):
        # The Hub's shards may form splits of any name, such as train_sft or unsupervised.
        name = shard["name"].casefold()
        if _word(name) is None and words <= _words(name):
            return name
    if len(words) > 1:
        raise DataError(
            f"the name {path} holds words of {len(words)} splits: {' and '.join(sorted(words))}",
            "rename it so that it names one, or give the files one by one.",
        )
    return next(iter(words), None)


def _words(name: str) -> frozenset[str]:
    """Return the splits of which a name contains a whole word, that is, a run of letters."""
    return frozenset(_SPLIT_OF[word] for word in _letters(name) if word in _SPLIT_OF)


def _word(name: str) -> str | None:
    """Return the split that a name without digits and separators is a word of (``Dev``, ``train_0``), or ``None``."""
    letters = _letters(name)
    return _SPLIT_OF.get(letters[0]) if len(letters) == 1 else None


def _letters(name: str) -> list[str]:
    return _LETTERS.findall(_HELD_OUT.sub("heldout", name.casefold()))


def _key(name: str) -> str:
    return re.sub(r"[-_. ]+", "_", name.casefold())
