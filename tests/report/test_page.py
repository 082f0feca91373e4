"""Pages are written whole, and values from outside cannot break Markdown."""

from __future__ import annotations

from pathlib import Path

from prefopt.report.page import write_page


def test_write_page_leaves_one_file(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write_page(tmp_path / "folder" / "page.html", text)
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["page.html"]
    assert (tmp_path / "folder" / "page.html").read_text() == "two"
