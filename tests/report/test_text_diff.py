"""Marks of differing words."""

from __future__ import annotations

import time

from prefopt.report.text_diff import marked


def test_marks_keep_every_character() -> None:
    before, after = "One  two,\nthree.", "One two — three!\n"
    left, right = marked(before, after)
    assert "".join(p for p, _ in left) == before
    assert "".join(p for p, _ in right) == after
    assert ("two", False) in right or any("two" in p and not new for p, new in right)


def test_long_texts_are_marked_whole() -> None:
    """Comparing two texts of 12,000 words took minutes."""
    before, after = "yes no " * 6000, "no yes yes " * 4000
    began = time.process_time()
    assert marked(before, after) == ([(before, True)], [(after, True)])
    assert marked(before, before) == ([(before, False)], [(before, False)])
    assert time.process_time() - began < 10
