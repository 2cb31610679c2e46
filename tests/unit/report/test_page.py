"""Does the page say what the files say, show texts as texts, and name what is missing?"""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from selfaug.report.facts import report_of
from selfaug.report.figures import MARKERS
from selfaug.report.markdown import markdown
from selfaug.report.page import page
from tests.made_runs import HOSTILE, log, make_run, part, shift, usual_parts, whole_run
from tests.page_numbers import numbers_of, problems

NAMES = ["f1", "95% interval"]
# Of made_runs.log: 754.5 s are 12.575 min; 4 events of 1,000 reference tokens in 16,000 tokens; the median speed.
DERIVED = [12.575, 25.0, 95.0, 1503.0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [
        whole_run(folder / name, size, alpha=alpha)
        for name, size, alpha in (("one", 0.05, 5.0), ("two", 0.1, 2.0), ("three", 0.3, 0.0), ("four", 0.2, 0.5))
    ]


def made(*runs: Path, **options: int) -> str:
    return page(report_of([str(run) for run in runs], **options))


@pytest.fixture(scope="module")
def whole(runs: list[Path]) -> str:
    """The page of all runs."""
    return made(*runs)


def mean_of(run: Path) -> list[float]:
    """The mean gain of the two general fractions and its bounds, by the formula."""
    parts = json.loads((run / "results.json").read_text())["parts"]
    apart = [
        parts["general:arc"]["metrics"]["acc"]["difference"],
        parts["general:ifeval"]["metrics"]["strict"]["difference"],
    ]
    value = sum(one["value"] for one in apart) / 2
    low, high = (sum((one["interval"][end] - one["value"]) ** 2 for one in apart) ** 0.5 / 2 for end in (0, 1))
    return [value, -value, value - low, value + high, 2.0]


def test_every_number_on_the_page_stands_in_the_files(runs: list[Path]) -> None:
    html = made(runs[1])
    assert "12.6 min" in re.sub("<[^>]+>", "", html)
    known = numbers_of(runs[1:2])
    assert problems(html, known, [*DERIVED, *mean_of(runs[1])], NAMES) == []
    # Planted: a number that the files do not hold, one that is rounded wrongly, one that is not marked.
    number = re.search(r'<data value="([^"]+)">([^<]+)</data> <span class="muted">±', html)
    assert number is not None
    for planted in (
        number[0].replace(number[1], "0.123456"),
        number[0].replace(f">{number[2]}<", ">77.7<"),
        number[0] + " 31",
    ):
        assert problems(html.replace(number[0], planted, 1), known, [*DERIVED, *mean_of(runs[1])], NAMES) != []


@pytest.mark.nightly
def test_every_number_of_several_runs_stands_in_the_files(runs: list[Path]) -> None:
    from selfaug.report.shifts import related
    from selfaug.run.folder import RunFolder

    found = related([RunFolder(run) for run in runs], ["A", "B", "C", "D"]).relation
    assert found is not None
    coefficients = [
        x for one in (found.pearson, found.spearman) for x in (one.value, one.low, one.high) if x is not None
    ]
    derived = [*DERIVED, *coefficients, float(len(runs)), *(x for run in runs for x in mean_of(run))]
    assert problems(made(*runs), numbers_of(runs), derived, [*NAMES, "and 1 more"]) == []


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        self.ids += [value or "" for name, value in attrs if name == "id"]


def test_texts_of_models_and_data_are_texts(runs: list[Path], whole: str) -> None:
    assert "script" not in read(whole).tags
    # Question, answer, prompt, data file, command and setting.
    assert whole.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 20
    assert HOSTILE not in whole
    assert HOSTILE not in markdown(report_of([str(runs[0])]))


def test_a_hostile_name_of_a_run_a_part_and_a_metric_is_text(tmp_path: Path) -> None:
    name = "<b>x</b>$a_1$|`"
    parts = {f"general:{name}": part(f"general:{name}", "general", {name: ("fraction", True, [0.0, 1.0], [1.0, 1.0])})}
    run = make_run(tmp_path / "a&<i>b", parts=parts, settings={"method": name, "model_name_or_path": name})
    html = made(run)
    assert not {"b>x", "i"} & set(read(html).tags)
    assert "&lt;b&gt;x&lt;/b&gt;$a_1$" in html
    for line in markdown(report_of([str(run)])).splitlines():
        assert "<b>" not in line
        if line.startswith("| general"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (6, 8)  # of the items that changed, and of the gains


def read(html: str) -> Tags:
    tags = Tags()
    tags.feed(html)
    return tags


def test_the_file_stands_alone_and_its_ids_are_unique(whole: str) -> None:
    tags = read(whole)
    assert len(tags.links) > 5  # markers inside the pictures
    assert [link for link in tags.links if not link.startswith(("#", "data:"))] == []
    assert len(tags.ids) == len(set(tags.ids))
    assert {link[1:] for link in tags.links if link.startswith("#")} <= set(tags.ids)


def test_pictures_have_names_and_use_the_pages_colours(whole: str) -> None:
    pictures = re.findall(r"<svg.*?</svg>", whole, flags=re.DOTALL)
    assert len(pictures) == 9
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        title, desc = (root.find(f"{{http://www.w3.org/2000/svg}}{name}") for name in ("title", "desc"))
        assert title is not None
        assert desc is not None
        assert len(title.text or "") > 5
        assert len(desc.text or "") > 20
        assert root.get("role") == "img"
        assert root.get("aria-labelledby") == f"{title.get('id')} {desc.get('id')}"
        assert set(re.findall(r"#[0-9a-f]{6}\b", picture)) <= {"#ffffff"}
        assert "var(--s1)" in picture


def test_runs_differ_by_letter_and_marker_and_not_by_colour_alone(runs: list[Path]) -> None:
    from selfaug.report.figures import related, training

    report = report_of([str(run) for run in runs])
    for picture in (*training(report), *related(report)):
        drawn = set(re.findall(r'<use xlink:href="#([^"]+)"', picture.svg))
        assert len(drawn) >= 4, picture.title
        for key in "ABCD":
            assert re.search(rf">\s*{key}\s*</text>", picture.svg), (picture.title, key)
    assert len(set(MARKERS)) == len(MARKERS)


def test_pictures_are_drawn_in_the_units_that_they_name(runs: list[Path]) -> None:
    from selfaug.report.figures import gains

    points, nats = (
        [float(text.replace("\u2212", "-")) for text in re.findall(r">\s*(\u2212?[\d.]+)\s*</text>", picture.svg)]
        for picture in gains(report_of([str(runs[1])]))
    )
    # The task gained 30 points; the text's NLL rose by less than a tenth of a nat.
    assert 20 <= max(points) <= 50
    assert 0 < max(map(abs, nats)) < 0.2


def test_what_all_runs_left_out_is_said_once(whole: str) -> None:
    text = re.sub(r"\s+", " ", re.sub("<[^>]+>", "", whole))
    assert text.count("2 of task (no document fits)") == 1


def test_the_same_files_give_the_same_bytes(runs: list[Path]) -> None:
    assert made(*runs[:2]) == made(*runs[:2])


def test_what_is_missing_is_named_with_its_command(tmp_path: Path) -> None:
    bare = make_run(tmp_path / "my run", logged=False, finished=False)
    html = made(bare)
    text = re.sub("<[^>]+>", "", html).replace("&#39;", "'")
    for command in (
        f"selfaug train --config '{bare}/config.yaml' --resume_from_checkpoint",
        f"selfaug evaluate '{bare}'", f"selfaug evaluate '{bare}' --general quick", f"selfaug shift '{bare}'",
    ):  # fmt: skip
        assert command in text
        assert command in markdown(report_of([str(bare)]))
    assert "<svg" not in html


def test_all_kinds_of_incomplete_runs_have_a_page(tmp_path: Path) -> None:
    full = make_run(tmp_path / "full", settings={"use_peft": False, "method": "sft", "alpha": 0.0}, finished=False)
    (full / "model").mkdir()
    plain = [{k: v for k, v in event.items() if "align" not in k and "nll" not in k} for event in log()]
    (full / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in plain) + '{"step": 5, "los')
    assert "all weights trained with" in made(full)
    moved = make_run(tmp_path / "moved", moved=shift(general=False))
    assert "--general_text FILE" in made(moved)
    tasks = make_run(tmp_path / "tasks", parts={"task": usual_parts()["task"]})
    assert "--general quick" in made(tasks)
    both = made(moved, tasks, full)
    assert "B: the shift is not measured" in both
    (tasks / "samples.jsonl").unlink()
    assert "No answers are kept" in made(tasks)


def test_worst_answers_come_first_with_what_changed_marked(runs: list[Path]) -> None:
    html = made(runs[2], regressions=2)
    falls = re.findall(r'<div class="fall">.*?</div>\s*</div>\s*</div>', html, flags=re.DOTALL)
    assert falls
    # The first that fell is the second item: the base said nothing, the tuned model "Ada"; then "same words", twice.
    assert '<div class="muted">an empty answer</div>' in falls[0]
    assert "<ins>Ada</ins>" in falls[0]
    assert ("<ins>" in falls[1], "<del>" in falls[1]) == (True, True)
    assert "Of 200 items 30 became worse and 0 better." in re.sub(r"\s+", " ", re.sub("<[^>]+>", "", html))
    assert made(runs[2], regressions=0).count('class="fall"') == 0


def test_markdown_has_the_sentence_and_a_whole_table(runs: list[Path]) -> None:
    text = markdown(report_of([str(runs[1])]))
    assert "Gained 30.0 pt of f1" in text
    assert "lost 2.5 pt" in text  # the mean of 5 and 0
    assert "\u2212" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in rows[:6]}
    assert widths == {8}
