r"""The picture and the table of docs/guides/which-method.md: which method when, each with its figure and its source.

    python benchmarks/which_method.py

A figure is written here once, with the page that measures it; picture and table are made from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "guides" / "which-method.md"
MARKS = ("<!-- which-method:begin -->", "<!-- which-method:end -->")


@dataclass(frozen=True)
class Case:
    """A question that is answered with yes or no, and what to use where the answer is yes.

    Args:
        question: Question, at most two lines.
        use: What to use.
        flags: Its options, as on the command line.
        figures: What was measured, a line for each.
        sources: Title and link, from the page, of the pages that measure it.
    """

    question: str
    use: str
    flags: str
    figures: tuple[str, ...]
    sources: tuple[tuple[str, str], ...]


RIVALS, LAB = ("stories", "../results/rivals.md"), ("lab", "../results/rivals-lab.md")
CASES: tuple[Case, ...] = (
    Case(
        "Is the adapter trained already,\nand to be trained no more?",
        "scale it down",
        "selfaug scale",
        ("stories: 84 % kept for 30 % of the task, at a factor of 0.5", "SelfAug from scratch: 84 %, for none of it"),
        (("scale", "../studies/scale.md"),),
    ),
    Case(
        "Are all weights trained,\nwithout an adapter?",
        "align with a frozen copy of the base",
        "selfaug+full --reference",
        ("not compared yet", "lab: plain `full` is level with LoRA at a third of its rate"),
        (LAB,),
    ),
    Case(
        "Have you texts or conversations\nof the very kind to be kept?",
        "mix them in",
        "--method replay, replay_ratio 0.4",
        ("stories: all kept [97, 103 %], for 10 % of the task", "lab: 91 % kept, task -1.8 points [-3.8, 0.2]"),
        (RIVALS, LAB),
    ),
    Case(
        "May the task lose nothing at all?",
        "align the prompts lightly",
        "--alpha 0.5",
        ("stories: 62 % kept [55, 68], task 101 % [98, 104]", "lab: 72 % kept, task -0.2 points [-2.3, 2.0]"),
        (RIVALS, LAB),
    ),
    Case(
        "Is what you want to keep quite\nunlike your prompts?",
        "hold the weights, too",
        "--method selfaug+ewc",
        ("small lab: 99 % kept, 92 % without (three seeds)", "lab: `ewc` 4 alone 97 %, task -3.2 points [-6.0, -0.4]"),
        (("small lab", "../studies/align-data.md"), LAB),
    ),
    Case(
        "Must the training take hardly\nlonger than plain LoRA's?",
        "align an eighth of the sequences",
        "--align_fraction 0.125",
        ("stories: 85 % kept [82, 88], all of them 86 %", "a step takes 1.00 to 1.22 times LoRA's"),
        (("retention", "../results/retention.md"), ("a step", "../results/step.md")),
    ),
)
DEFAULT = Case(
    "In every other case",
    "align the prompts",
    "--method selfaug, alpha 2 (the default)",
    ("stories: 83 % kept [80, 86], task 101 % [97, 104]", "SQuAD: 90 % kept [89, 91], task 104 % [100, 109]"),
    (RIVALS, ("SQuAD", "../results/rivals-squad.md")),
)


TEXT, FAINT, QUESTION, ANSWER, OTHERWISE = "#1b1b1b", "#666666", "#eceff5", "#e3f1ea", "#fbe9dd"
"""Colours of words, of what is said beside them, and of boxes."""


def box(axes: Axes, left: float, bottom: float, width: float, height: float, colour: str) -> None:
    """A rounded box."""
    shape = "round,pad=0,rounding_size=0.12"
    axes.add_patch(FancyBboxPatch((left, bottom), width, height, boxstyle=shape, facecolor=colour, edgecolor="none"))


def answer(axes: Axes, case: Case, top: float, colour: str) -> None:
    """What to use, its options and its figures."""
    box(axes, 4.4, top - 1.1, 6.1, 1.1, colour)
    axes.text(4.6, top - 0.22, case.use, color=TEXT, weight="bold", va="center")
    axes.text(10.3, top - 0.22, case.flags, color=TEXT, family="monospace", fontsize=8, va="center", ha="right")
    for line, text in enumerate(case.figures):
        axes.text(4.6, top - 0.55 - 0.28 * line, text.replace("`", ""), color=FAINT, fontsize=8.5, va="center")


def draw(path: Path) -> None:
    """Questions from top to bottom; yes leads to the right, no down."""
    step = 1.4
    height = step * len(CASES) + 1.3
    with rc_context({"svg.hashsalt": "selfaug", "font.size": 9.5}):
        figure = Figure(figsize=(8.4, 8.4 * height / 10.8))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(-0.15, 10.65)
        axes.set_ylim(-0.1, height - 0.1)
        axes.axis("off")
        arrow = {"arrowstyle": "-|>", "color": FAINT, "shrinkA": 0, "shrinkB": 0}
        for number, case in enumerate((*CASES, DEFAULT)):
            top = height - 0.2 - step * number
            box(axes, 0, top - 1.1, 3.4, 1.1, QUESTION)
            axes.text(1.7, top - 0.55, case.question, color=TEXT, va="center", ha="center")
            axes.annotate("", (4.35, top - 0.55), (3.45, top - 0.55), arrowprops=arrow)
            answer(axes, case, top, OTHERWISE if case is DEFAULT else ANSWER)
            if case is not DEFAULT:
                axes.text(3.88, top - 0.4, "yes", color=FAINT, fontsize=8.5, ha="center", va="center")
                axes.annotate("", (1.7, top - 1.38), (1.7, top - 1.12), arrowprops=arrow)
                axes.text(1.85, top - 1.25, "no", color=FAINT, fontsize=8.5, va="center")
        figure.savefig(path, metadata={"Date": None}, transparent=True)


def table() -> str:
    """The cases with links to their sources."""
    lines = ["| your case | use | what was measured | on |", "|---|---|---|---|"]
    for case in (*CASES, DEFAULT):
        question = case.question.replace("\n", " ")
        sources = ", ".join(f"[{title}]({link})" for title, link in case.sources)
        lines.append(f"| {question} | {case.use}: `{case.flags}` | {'; '.join(case.figures)} | {sources} |")
    return "\n".join(lines)


def main() -> None:
    """Write the picture, and the table between the page's marks."""
    draw(DOCS / "images" / "which-method.svg")
    before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    PAGE.write_text(f"{before}{MARKS[0]}\n{table()}\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
