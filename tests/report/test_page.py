"""Pages are written whole, and values from outside cannot break Markdown."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefopt.report.page import code, write_page


def test_write_page_leaves_one_file(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write_page(tmp_path / "folder" / "page.html", text)
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["page.html"]
    assert (tmp_path / "folder" / "page.html").read_text() == "two"


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("see `prefopt data check`.", "see <code>prefopt data check</code>."),
        ("`a<b` and `c`", "<code>a&lt;b</code> and <code>c</code>"),
        ("one ` alone <i>", "one ` alone &lt;i&gt;"),
        ("none", "none"),
    ],
)
def test_backticks_are_set_as_code(text: str, html: str) -> None:
    assert code(text) == html
