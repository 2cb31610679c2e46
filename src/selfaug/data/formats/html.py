"""Extracts the visible text of HTML pages."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser

__all__ = ["html_text"]

_BLOCK = frozenset(
    ("address", "article", "aside", "blockquote", "br", "caption", "dd", "details", "div", "dl", "dt", "fieldset")  # noqa: RUF005
    + ("figcaption", "figure", "header", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "legend", "li", "main", "ol", "p")
    + ("pre", "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul")
)
_CELL = frozenset(("td", "th"))
# Elements that are invisible, and those that are the same on every page of a site.
_UNSEEN = frozenset(
    ("head", "iframe", "noscript", "object", "script", "style", "svg", "template", "textarea")  # noqa: RUF005
    + ("nav", "footer", "button", "select", "dialog")
)
_TAG = re.compile(r"<[^<>]*>")
_SPACE = re.compile(r"[^\S\n]+")
_ANY_SPACE = re.compile(r"\s+")
_CODE = re.compile(r"<(script|style)\b", re.IGNORECASE)
_CODE_END = {tag: re.compile(rf"</{tag}[^>]*>", re.IGNORECASE) for tag in ("script", "style")}


def html_text(page: str) -> str:
    """Return the visible text of a page: a line for each block element, with spaces joined as in a browser.

    Scripts, styles and other invisible elements are left out, and so are navigation, footers, buttons and menus. If the
    parser refuses the markup, only the tags are removed, so no page is an error. Characters that UTF-8 cannot write are
    replaced.
    """
    if "<" not in page:
        return _tidy(unescape(page))
    if page.count("<") > 2 * page.count(">") + 1000:  # not markup, for which the parser would take quadratic time
        return _tidy(unescape(_TAG.sub(" ", page)))
    parser = _Visible()
    try:
        parser.feed(_without_code(page))
        parser.close()
    except AssertionError:  # CPython's parser asserts on some malformed declarations, such as <![x
        return _tidy(unescape(_TAG.sub(" ", page)))
    text = _tidy("".join(parser.parts))
    if text or not parser.unseen:
        return text
    # An invisible element without an end tag hid everything.
    return _tidy(unescape(_TAG.sub(" ", _without_code(page))))


class _Visible(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.unseen: list[str] = []
        self.preformatted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "body":  # the end tag of head is optional
            self.unseen.clear()
        elif tag in _UNSEEN:
            self.unseen.append(tag)
        elif tag in _BLOCK:
            self.preformatted += tag == "pre"
            self.parts.append("\n")
        elif tag in _CELL:
            self.parts.append(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _BLOCK:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.unseen:
            while self.unseen.pop() != tag:
                pass
        elif tag in _BLOCK:
            self.preformatted -= tag == "pre" and self.preformatted > 0
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.unseen:
            self.parts.append(data if self.preformatted else _ANY_SPACE.sub(" ", data))

    def unknown_decl(self, data: str) -> None:
        """Ignore the declaration, as browsers do."""


def _without_code(page: str) -> str:
    # Code is about half of a page's bytes, so it is removed before the slow parser runs. A regular expression for the
    # whole element would search the rest of the page at each opening tag of a page without end tags.
    kept: list[str] = []
    at = 0
    while opening := _CODE.search(page, at):
        ending = _CODE_END[opening[1].lower()].search(page, opening.end())
        if ending is None:  # the element hides the rest of the page, as in a browser
            return " ".join((*kept, page[at : opening.start()]))
        kept.append(page[at : opening.start()])
        at = ending.end()
    return " ".join((*kept, page[at:]))


def _tidy(text: str) -> str:
    text = text.encode("utf-8", "replace").decode()
    lines = (_SPACE.sub(" ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line)
