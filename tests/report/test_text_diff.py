"""Marks of differing words."""

from __future__ import annotations

from prefopt.report.text_diff import marked


def test_marks_keep_every_character() -> None:
    before, after = "One  two,\nthree.", "One two — three!\n"
    left, right = marked(before, after)
    assert "".join(p for p, _ in left) == before
    assert "".join(p for p, _ in right) == after
    assert ("two", False) in right or any("two" in p and not new for p, new in right)
