"""Which split a file belongs to by the Hub's documentation of file names, read character by character.

https://huggingface.co/docs/hub/datasets-file-names-and-splits: the words of a split are equivalent, and are set apart
by non-word characters; folders count like files.
"""

from __future__ import annotations

KEYWORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip


def splits_of_name(relative: str) -> set[str]:
    """The splits that a path below the data set's folder names."""
    found, word = set(), ""
    for character in relative.lower() + "/":
        if character in "-._ /0123456789":
            if word in KEYWORDS:
                found.add(KEYWORDS[word])
            word = ""
        else:
            word += character
    return found
