"""RewardBench's two formats: the counts, by hand, and what is no such file."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from prefopt.errors import UserError
from prefopt.evaluate.rewardbench import SECTIONS, cases_of, outcome


def rows(*given: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(f"f:{i}", {"prompt": "p", **row}) for i, row in enumerate(given)]


def scores(*given: list[float]) -> list[Any]:
    return [np.array(one) for one in given]


def test_version_1_counts_a_tie_as_half_and_by_its_own_rule_as_wrong() -> None:
    cases = cases_of(rows(*({"chosen": "a", "rejected": "b", "subset": s} for s in ("x", "x", "x", "y"))))
    found = outcome(cases, scores([2, 1], [1, 1], [0, 1], [3, 0])).plain()
    assert found["version"] == 1
    assert (found["accuracy"], found["accuracy_strict"], found["ties"]) == (2.5 / 4, 0.5, 0.25)
    assert found["subsets"]["x"]["accuracy"] == 0.5
    assert found["subsets"]["x"]["accuracy_strict"] == pytest.approx(1 / 3)
    assert found["subsets"]["y"]["count"] == 1
    assert found["score"] is None
    assert found["sections"] == {}


def test_version_1_weighs_math_as_much_as_code() -> None:
    members = [m for section in SECTIONS.values() for m in section]
    cases = cases_of(rows(*({"chosen": "a", "rejected": "b", "subset": m} for m in members)))
    found = outcome(cases, scores(*([0.0, 1.0] if m == "math-prm" else [1.0, 0.0] for m in members)))
    assert found.sections["Reasoning"] == pytest.approx(6 / (6 + 984))
    assert found.sections["Chat"] == found.sections["Safety"] == 1.0
    assert found.score == pytest.approx((3 + 6 / 990) / 4)


def test_version_2_takes_the_best_of_four() -> None:
    four = {"chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "Math"}
    found = outcome(cases_of(rows(four, four, four)), scores([3, 1, 2, 0], [1, 1, 0, 1], [1, 2, 0, 0])).plain()
    assert found["version"] == 2
    assert found["accuracy"] == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert found["accuracy_strict"] == pytest.approx(1 / 3)
    assert found["ties"] == pytest.approx(1 / 3)
    assert found["score"] == pytest.approx(found["accuracy"])


def test_version_2_scores_ties_by_gap_and_spread() -> None:
    """Prompt 1: gaps 2 (ref) and 3 (tied), spread 1. Prompt 2: gaps 0.5 and -1, spread 2."""
    ref = {"chosen": ["a"], "rejected": ["b"], "subset": "Ties"}
    tied = {"chosen": ["a", "b"], "rejected": ["c"], "subset": "Ties"}
    given = rows({**ref, "id": "ref:1"}, {**tied, "id": "tied:1"}, {**ref, "id": "ref:2"}, {**tied, "id": "tied:2"})
    found = outcome(cases_of(given), scores([2, 0], [5, 4, 1], [0.5, 0], [3, 1, 2])).plain()
    by_how_much = (math.tanh(2 / 1 - 1) + math.tanh(-1 / 2 - 1)) / 2
    assert found["subsets"]["Ties"]["score"] == pytest.approx(
        0.3 * 0.5 + 0.3 * 1 + 0.2 * 0.5 + 0.2 * 0.5 + 0.01 * by_how_much
    )
    assert found["subsets"]["Ties"]["accuracy"] == 0.75
    assert "accuracy" not in found, "no row of another subset"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "a"}, "f:0: no row of RewardBench"),
        ({"chosen": "a", "rejected": ["b"]}, "f:0: chosen and rejected must both be texts, or both lists"),
        ({"chosen": [], "rejected": []}, "f:0: chosen and rejected must both be texts|no row of RewardBench"),
        ({"chosen": 1, "rejected": "b"}, "f:0: no row of RewardBench"),
    ],
)
def test_other_rows_are_refused_with_their_place(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cases_of(rows(row))


def test_no_rows_and_both_versions() -> None:
    with pytest.raises(UserError, match="has no rows"):
        cases_of([])
    with pytest.raises(UserError, match="both versions"):
        cases_of(rows({"chosen": "a", "rejected": "b"}, {"chosen": ["a"], "rejected": ["b"]}))
