"""The splits of a file by the Hub's documentation of file names, read character by character.

Source: https://huggingface.co/docs/hub/datasets-file-names-and-splits. The keywords of a split are equivalent, and are
separated by non-word characters; names of folders count as well.
"""

from __future__ import annotations

KEYWORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip


def splits_of_name(relative: str) -> set[str]:
    """Return the splits named in a path relative to the data set's folder."""
    splits, word = set(), ""
    for character in relative.lower() + "/":
        if character in "-._ /0123456789":
            if word in KEYWORDS:
                splits.add(KEYWORDS[word])
            word = ""
        else:
            word += character
    return splits
