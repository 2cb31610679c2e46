r"""The picture and the table of docs/which-method.md: which method when, each with its figure and its source.

    python benchmarks/which_method.py docs/which-method.md docs/images

Writes `which-method.svg` and `which-method-dark.svg` into the folder, and the table between the page's marks. A figure is
written here once, with the page that measures it; both are made from it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

MARKS = ("<!-- which-method:begin -->", "<!-- which-method:end -->")


@dataclass(frozen=True)
class Box:
    """One answer: a question about one's own case, what to use, and what was measured.

    Args:
        when: The case.
        use: The setting that is advised.
        figure: What it kept, at which price.
        source: Title and link of the page with the figure, its command and its intervals.
        place: Column and row in the picture.
    """

    when: str
    use: str
    figure: str
    source: tuple[str, str]
    place: tuple[int, int]


BOXES: tuple[Box, ...] = ()
