"""What does a browser make of the page: wide and narrow, light and dark, on paper?"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from selfaug.report.facts import report_of
from selfaug.report.page import page
from tests.made_runs import make_run, part, whole_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sync_playwright = None

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sync_playwright is None, reason="playwright is not installed: pip install playwright"),
    pytest.mark.skipif(BROWSER is None, reason="chromium is not installed: apt-get install chromium"),
]
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    runs = [whole_run(folder / f"a-rather-long-name-of-a-run-{i}", 0.1 + i / 10) for i in range(4)]
    long = part("general:" + "x" * 60, "general", {"y" * 40: ("fraction", True, [0.0, 1.0], [1.0, 0.0])},
                [("w" * 400, "v" * 400)])  # fmt: skip
    runs.append(make_run(folder / ("z" * 80), parts={"general:long": long}, settings={"dataset_name": "d" * 300}))
    made = {"one": runs[:1], "several": runs[:4], "long": runs[4:], "mixed": [runs[0], runs[4]]}
    for name, chosen in made.items():
        (folder / f"{name}.html").write_text(page(report_of([str(run) for run in chosen])), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in made}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


class Visit:
    """A page that was opened, and everything that should not have happened."""

    def __init__(self, browser: Any, file: Path, size: str, scheme: str) -> None:
        width, height = SIZES[size]
        self.tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.said: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("dialog", lambda dialog: (self.said.append("dialog"), dialog.dismiss()))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(file.as_uri())
        self.tab.wait_for_load_state("networkidle")

    def opened(self) -> Visit:
        """With everything unfolded."""
        self.tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        return self


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("name", ["one", "several", "long", "mixed"])
def test_the_page_is_whole(browser: Any, pages: dict[str, Path], name: str, size: str, scheme: str) -> None:
    visit = Visit(browser, pages[name], size, scheme).opened()
    tab = visit.tab
    try:
        assert visit.said == []
        assert [url for url in visit.requests if not url.startswith("data:")] == [pages[name].as_uri()]
        boxes = tab.evaluate(
            "[...document.querySelectorAll('svg')].map(s => {const b = s.getBoundingClientRect(), g = s.getBBox();"
            "return [b.width, b.height, g.width, g.height]})"
        )
        assert len(boxes) >= (3 if name != "long" else 1)
        assert all(min(box) > 30 for box in boxes), boxes
        width = SIZES[size][0]
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        # Only a box that scrolls by itself may hold something wider than the screen.
        wide = tab.evaluate(
            "w => [...document.querySelectorAll('body *')].filter(e => !e.closest('.wide, svg')"
            " && e.getBoundingClientRect().right > w + 1).map(e => e.tagName + '.' + e.className)",
            width,
        )
        assert wide == []
        # Pictures have no colour of their own left: their ink is the page's.
        ink, text = tab.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.querySelector('svg text')).fill]"
        )
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != ink
        assert text != "rgb(0, 0, 0)"
    finally:
        tab.close()


def test_light_and_dark_differ(browser: Any, pages: dict[str, Path]) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        visit = Visit(browser, pages["one"], "desktop", scheme)
        style = "getComputedStyle(document.querySelector('svg [id*=\"line2d\"] path')).stroke"
        grounds.append(
            (visit.tab.evaluate("getComputedStyle(document.body).backgroundColor"), visit.tab.evaluate(style))
        )
        visit.tab.close()
    assert grounds[0][0] != grounds[1][0]
    assert grounds[0][1] != grounds[1][1]


CONTRAST = """() => {
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(x => x / 255)
    .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$/.test(c)) return c; } };
  const worst = [];
  const walk = document.createTreeWalker(document.querySelector('body'), NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) { const e = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || e.closest('svg title, svg desc, style')) continue;
    const style = getComputedStyle(e), colour = e.closest('svg') ? style.fill : style.color;
    const pair = [light(colour), light(ground(e))].sort((a, b) => b - a);
    worst.push([(pair[0] + 0.05) / (pair[1] + 0.05), walk.currentNode.data.trim().slice(0, 30)]); }
  return worst.sort((a, b) => a[0] - b[0]).slice(0, 3); }"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(browser: Any, pages: dict[str, Path], scheme: str) -> None:
    """WCAG 2 AA: a contrast of 4.5 for text."""
    visit = Visit(browser, pages["several"], "desktop", scheme).opened()
    worst = visit.tab.evaluate(CONTRAST)
    visit.tab.close()
    assert len(worst) == 3
    assert worst[0][0] >= 4.5, worst


def test_a_document_with_a_script_shows_as_text(browser: Any, pages: dict[str, Path]) -> None:
    visit = Visit(browser, pages["one"], "desktop", "light").opened()
    assert visit.tab.evaluate("document.querySelectorAll('script').length") == 0
    shown = visit.tab.evaluate("[...document.querySelectorAll('details.prompt pre')].map(e => e.innerText)")
    visit.tab.close()
    assert shown
    assert shown[0] == "Read: <script>alert(1)</script>"
    assert visit.said == []


def test_paper_shows_what_is_folded_but_not_the_prompts(browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    visit = Visit(browser, pages["several"], "desktop", "dark")
    visit.tab.emulate_media(media="print", color_scheme="light")
    assert visit.tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert visit.tab.evaluate("getComputedStyle(document.querySelector('details.prompt')).display") == "none"
    height = "document.querySelector('details:not(.prompt) table').getBoundingClientRect().height"
    assert visit.tab.evaluate(height) > 50
    pdf = visit.tab.pdf(path=tmp_path / "page.pdf")
    visit.tab.close()
    assert pdf.startswith(b"%PDF")
