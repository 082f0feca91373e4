"""The errata: every number is what the loss here gives, differs from the place's, and stands on the page."""

from __future__ import annotations

import pytest

from benchmarks.errata import PAGE, ours, page, theirs
from prefopt.losses._errata import ERRATA, Erratum


@pytest.mark.parametrize("entry", ERRATA, ids=lambda entry: entry.name)
def test_the_place_gives_another_number(entry: Erratum) -> None:
    assert ours(entry) != pytest.approx(theirs(entry), rel=0.02)


def test_names_are_unique_anchors() -> None:
    names = [entry.name for entry in ERRATA]
    assert len(set(names)) == len(names)
    assert all(name == name.lower().replace(" ", "-") for name in names)


def test_the_page_is_that_of_the_data() -> None:
    assert page() == PAGE.read_text()
