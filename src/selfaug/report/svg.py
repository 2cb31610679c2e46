"""Inline SVG of matplotlib figures, in the page's colours and font, with title and description."""

from __future__ import annotations

import contextlib
import html
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from selfaug.common.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["GRID", "INK", "MUTED", "PAPER", "SERIES", "Picture", "drawing"]

INK, MUTED, GRID, PAPER = "#000001", "#000002", "#000003", "#000004"
SERIES = tuple(f"#00000{digit}" for digit in "56789abc")
"""Placeholders for the page's colours, replaced by CSS variables afterwards, which matplotlib does not know."""
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"} | {
    colour: f"--s{number}" for number, colour in enumerate(SERIES, start=1)
}
_SIZE = (4.6, 3.1)
_STYLE = {
    "svg.fonttype": "none",  # text stays text, for search, screen readers and the page's font
    "svg.image_inline": True,
    "text.parse_math": False,  # names of runs may contain a dollar sign
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
}


@dataclass
class Picture:
    """An inline SVG.

    Args:
        title: Title of the figure.
        description: Alternative text for screen readers.
        svg: SVG element; empty until the block of :func:`drawing` ends.
    """

    title: str
    description: str
    svg: str = ""


@contextlib.contextmanager
def drawing(name: str, title: str, description: str, *, height: float = _SIZE[1]) -> Iterator[tuple[Picture, Axes]]:
    """Yield a picture and the axes to draw on, and render it as the block ends; the same input gives the same bytes.

    Args:
        name: Prefix of every id in the SVG, unique on the page.
        title: Title of the figure.
        description: Alternative text for screen readers.
        height: Height in inches; the width is fixed.

    Raises:
        ConfigError: If matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "matplotlib is not installed, and draws the pictures of the report",
            "pip install 'selfaug[report]'; or ask for --format md.",
        ) from None
    picture = Picture(title, description)
    style: Any = {**_STYLE, "svg.hashsalt": name}
    with mpl.rc_context(style):
        figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
        yield picture, figure.add_subplot()
        picture.svg = _inline(figure, name, title, description)


def _inline(figure: Figure, name: str, title: str, description: str) -> str:
    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(out, format="svg", metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    # Ids must be unique on a page, and matplotlib gives the same ones to each figure.
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"(font: [\d.]+px) [^;\"]+", r"\1 var(--sans)", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    ids = f"{name}-title {name}-desc"
    about = (
        f'<title id="{name}-title">{html.escape(title)}</title><desc id="{name}-desc">{html.escape(description)}</desc>'
    )
    head = re.compile(r"<svg([^>]*)>")
    return head.sub(lambda m: f'<svg{m[1]} role="img" aria-labelledby="{ids}">{about}', text, count=1)
