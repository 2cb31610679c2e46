"""The documentation's site: built without a warning, read in a browser as a visitor does."""

from __future__ import annotations

import functools
import importlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from selfaug.cli.config import options_of
from selfaug.cli.main import VERBS

ROOT = Path(__file__).resolve().parents[2]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'selfaug[docs]'")
pytestmark = pytest.mark.slow


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(ROOT / "mkdocs.yml")]
    done = subprocess.run(
        [*words, "--site-dir", str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_each_verb_has_a_page_with_every_option(site: Path) -> None:
    for verb, entry in VERBS.items():
        text = (site / "reference" / verb / "index.html").read_text(encoding="utf-8")
        command = importlib.import_module(entry.module).COMMAND
        for part in command.parts or (command,):
            options = options_of(*part.kinds)
            assert options
            for name, option in options.items():
                assert (f"--{name}" if not option.about.get("positional") else name.upper()) in text, (verb, name)


@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed: apt-get install chromium")
@pytest.mark.parametrize("size", [pytest.param((1280, 900), marks=pytest.mark.nightly), (390, 844)])
def test_a_visitor_finds_packing_and_nothing_breaks(address: str, size: tuple[int, int]) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": size[0], "height": size[1]})
        said: list[str] = []
        asked: list[str] = []
        tab.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        for page in (
            "",
            "guides/own-documents/",
            "train/",
            "reference/train/",
            "reference/python/",
            "results/",
            "methods/",
        ):
            tab.goto(f"{address}/{page}")
            wide = tab.evaluate("document.documentElement.scrollWidth")
            assert wide <= size[0], (page, wide)
        tab.goto(address)
        if size[0] < 960:
            tab.locator("label[for=__search]").first.click()
        tab.locator("input[name=query]").fill("packing")
        found = tab.locator(".md-search-result__link")
        found.first.wait_for(timeout=60_000)
        assert any("/train/" in (link.get_attribute("href") or "") for link in found.all())
        browser.close()
    assert said == []
    assert all(url.startswith(address) for url in asked)
