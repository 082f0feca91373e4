"""Every way from one shape to another, by hand-made records."""

from __future__ import annotations

import pytest

from prefopt.data import Record, make, to_view
from prefopt.data.views import pair_counts
from prefopt.errors import UserError
from prefopt.plugin import Data


def texts(records: object) -> list[tuple[object, ...]]:
    return [record.completions for record in records]  # type: ignore[attr-defined]


LIST = make.ranked("Q?", ["worst", "best", "middle", "middle too"], [0.0, 3.0, 1.0, 1.0])
FLAT = make.ranked("R?", ["a", "b"], [1.0, 1.0])
PAIR = make.pair("Q?", "good", "bad")
TIE = make.pair("T?", "one", "other", scores=(0.5, 0.5))


@pytest.mark.parametrize(
    ("pairs_from", "unused", "expected"),
    [
        ("best_worst", {"completions_unused": 2}, [("best", "worst")]),
        ("adjacent", {"pairs_tied": 1}, [("best", "middle"), ("middle too", "worst")]),  # the two middles are equal
        (
            "all",
            {"pairs_tied": 1},
            [
                ("best", "middle"),
                ("best", "middle too"),
                ("best", "worst"),
                ("middle", "worst"),
                ("middle too", "worst"),
            ],
        ),
    ],
)
def test_lists_to_pairs(pairs_from: str, unused: dict[str, int], expected: list[tuple[str, str]]) -> None:
    view = to_view([LIST, FLAT], Data.PAIRS, pairs_from=pairs_from)
    assert texts(view.records) == expected
    assert len({record.id for record in view.records}) == len(expected)
    assert [(r.id, r.reason) for r in view.rejections] == [(FLAT.id, "no_preference")]
    assert view.counts == {"records": len(expected), "rejected/no_preference": 1, **unused}
    counted = pair_counts([LIST, FLAT])[pairs_from]
    assert counted == {"pairs": len(expected), "pairs_tied": unused.get("pairs_tied", 0), "no_preference": 1}


def test_only_the_identical_pair_of_a_list_is_left_out() -> None:
    record = make.ranked("Q?", ["same", "same", "other"], [2.0, 1.0, 0.0])
    view = to_view([record], Data.PAIRS, pairs_from="all")
    assert texts(view.records) == [("same", "other"), ("same", "other")]
    assert [(r.id, r.reason, r.rows) for r in view.rejections] == [(record.id, "identical_sides", 0)]
    assert pair_counts([record])["all"]["pairs"] == 2


def test_list_pairs_carry_their_scores() -> None:
    (pair,) = to_view([LIST], Data.PAIRS, pairs_from="best_worst").records
    assert pair.scores == (3.0, 0.0)


def test_no_pair_occurs_in_both_orders() -> None:
    sides = texts(to_view([LIST], Data.PAIRS, pairs_from="all").records)
    assert not {(b, a) for a, b in sides} & set(sides)


def test_lists_to_labels() -> None:
    view = to_view([LIST], Data.UNPAIRED, desirable_above=0.5)
    assert [(r.completions, r.desirable) for r in view.records] == [
        (("worst",), False), (("best",), True), (("middle",), True), (("middle too",), True),
    ]  # fmt: skip


def test_lists_to_demonstrations() -> None:
    view = to_view([LIST, FLAT], Data.DEMONSTRATIONS, desirable_above=2.0)
    assert texts(view.records) == [("best",)]
    assert view.counts["rejected/none_desirable"] == 1


def test_pairs_to_lists() -> None:
    (record,) = to_view([PAIR], Data.LISTS).records
    assert (record.kind, record.scores, record.completions) == (Data.LISTS, (1.0, 0.0), ("good", "bad"))


@pytest.mark.parametrize("data", [Data.PAIRS, Data.UNPAIRED, Data.DEMONSTRATIONS])
def test_pairs_stay_pairs(data: Data) -> None:
    records = [PAIR]
    assert to_view(records, data).records is records


def test_unpaired_to_demonstrations() -> None:
    records = [make.unpaired("Q?", "good", True), make.unpaired("Q?", "bad", False)]
    view = to_view(records, Data.DEMONSTRATIONS)
    assert texts(view.records) == [("good",)]
    assert view.counts["rejected/undesirable"] == 1


@pytest.mark.parametrize(
    ("ties", "expected", "weights"),
    [
        ("drop", [("good", "bad")], [1.0]),
        ("keep", [("good", "bad"), ("one", "other")], [1.0, 1.0]),
        ("split", [("good", "bad"), ("one", "other"), ("other", "one")], [1.0, 0.5, 0.5]),
    ],
)
def test_ties(ties: str, expected: list[tuple[str, str]], weights: list[float]) -> None:
    view = to_view([PAIR, TIE], Data.PAIRS, ties=ties)
    assert texts(view.records) == expected
    assert [record.weight for record in view.records] == weights
    assert view.counts.get("rejected/tie", 0) == (ties == "drop")


@pytest.mark.parametrize(
    ("records", "data", "says"),
    [
        ([LIST], Data.PAIRS, "data.pairs_from=best_worst"),
        ([LIST], Data.UNPAIRED, "data.desirable_above"),
        ([make.unpaired("Q?", "a", True)], Data.PAIRS, "choose a loss for unpaired"),
        ([make.unpaired("Q?", "a", True)], Data.LISTS, "choose a loss for unpaired"),
        ([make.demonstration("Q?", "a")], Data.PAIRS, "choose a loss for demonstrations"),
        ([PAIR, LIST], Data.PAIRS, "records of one kind only"),
    ],
)
def test_impossible_conversions_are_errors(records: list[Record], data: Data, says: str) -> None:
    with pytest.raises(UserError, match=says):
        to_view(records, data)
