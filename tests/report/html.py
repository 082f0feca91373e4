"""Reads the pages under test as a browser would."""

from __future__ import annotations

import re
from html.parser import HTMLParser

EVIL = "<script>alert('&')</script>"


class Page(HTMLParser):
    """Collects what a browser would fetch, and checks that elements close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.resources: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        for name in ("src", "srcset", "data", "poster"):
            self.resources += [str(given[name])] if name in given else []
        if tag in ("link", "use", "image"):
            self.resources += [str(given[name]) for name in ("href", "xlink:href") if name in given]
        if tag not in ("meta", "br", "link", "img", "hr", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag


def text(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", html))
