"""Held-out figures: standard errors as written out by hand, pairs, ties, and what is read back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from prefopt.common.estimate import Estimate
from prefopt.data.tokens import TokenRecord
from prefopt.errors import UserError
from prefopt.evaluate.held_out import HeldOut, differences, figures, read_rows, sides, write_rows
from prefopt.plugin import Data


def held_out(chosen: list[float], rejected: list[float], prompts: str | None = None) -> HeldOut:
    """Records of 2 and 4 tokens."""
    n = len(chosen)
    return HeldOut(
        ids=[str(i) for i in range(n)], prompts=list(prompts or "".join(map(str, range(n)))),
        sums={"chosen": np.array(chosen), "rejected": np.array(rejected)},
        tokens={"chosen": np.full(n, 2.0), "rejected": np.full(n, 4.0)},
    )  # fmt: skip


def test_standard_error_of_independent_values() -> None:
    """1, 2, 3, 6: mean 3, squares of deviations 4 + 1 + 0 + 9 = 14, s^2 = 14/3, se = sqrt(14 / 3 / 4)."""
    found = Estimate.of(np.array([1.0, 2.0, 3.0, 6.0]), list("abcd"))
    assert found.value == 3
    assert found.se == pytest.approx(math.sqrt(14 / 12))
    assert found.count == 4


def test_values_of_one_prompt_count_as_one_group() -> None:
    """1, 1, 3, 3 in pairs: the deviations of the two groups are -2 and 2, so se = sqrt(8 * 2 / 1) / 4 = 1, and not the
    sqrt(4 / 3 / 4) = 0.58 that four independent values would have."""
    assert Estimate.of(np.array([1.0, 1.0, 3.0, 3.0]), list("aabb")).se == pytest.approx(1.0)
    assert Estimate.of(np.array([1.0, 1.0, 3.0, 3.0]), list("abcd")).se == pytest.approx(math.sqrt(1 / 3))


def test_one_group_has_no_standard_error_and_no_verdict() -> None:
    found = Estimate.of(np.array([1.0, 2.0]), list("aa"))
    assert math.isnan(found.se)
    assert found.verdict(0.1) == "cannot_tell"
    assert found.plain() == {"value": 1.5, "se": None, "count": 2}


def test_figures_by_sum_and_per_token() -> None:
    found = figures(held_out([-2.0, -4.0], [-6.0, -4.0]))
    assert found["margins/logps"].value == pytest.approx((4 + 0) / 2)
    assert found["margins/logps_mean"].value == pytest.approx(((-1 + 1.5) + (-2 + 1)) / 2)
    assert found["accuracies/logps"].value == 0.75  # the second is a tie, which is half right
    assert found["ties/logps"].value == 0.5
    assert found["accuracies/logps_mean"].value == 0.5
    assert found["lengths/rejected"].value == 4


def test_differences_are_taken_record_by_record() -> None:
    """The margins are far apart between records and move by 1 and 2: the standard error is that of the moves."""
    before, after = held_out([0.0, 100.0], [0.0, 0.0]), held_out([1.0, 102.0], [0.0, 0.0])
    found = differences(after, before)
    assert found["margins/logps"].value == pytest.approx(1.5)
    assert found["margins/logps"].se == pytest.approx(0.5)
    assert found["accuracies/ratios"].value == 1.0
    assert found["accuracies/logps"].value == pytest.approx(0.25)  # the first was a tie before
    with pytest.raises(UserError, match="different records"):
        differences(after, held_out([1.0], [0.0]))


def test_sides_of_every_shape_of_record() -> None:
    prompt, three, five = (np.arange(n, dtype=np.int32) for n in (2, 3, 5))

    def record(kind: Data, completions: tuple[np.ndarray, ...], **more: object) -> TokenRecord:
        return TokenRecord(id="r", kind=kind, prompt=prompt, completions=completions, **more)  # type: ignore[arg-type]

    made = {
        "pair": (record(Data.PAIRS, (three, five)), [-1.0, -2.0], (-1.0, -2.0)),
        "list": (record(Data.LISTS, (three, five, three), scores=(0.5, 0.1, 0.9)), [-1.0, -2.0, -3.0], (-3.0, -2.0)),
        "good": (record(Data.UNPAIRED, (three,), desirable=True), [-1.0], (-1.0, np.nan)),
        "bad": (record(Data.UNPAIRED, (five,), desirable=False), [-1.0], (np.nan, -1.0)),
        "demo": (record(Data.DEMONSTRATIONS, (five,)), [-1.0], (-1.0, np.nan)),
    }
    for one, sums, (chosen, rejected) in made.values():
        found = sides([one], [sums])
        np.testing.assert_array_equal([found.sums["chosen"][0], found.sums["rejected"][0]], [chosen, rejected])
    assert "accuracies/logps" not in figures(sides([made["good"][0], made["bad"][0]], [[-1.0], [-2.0]]))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    before, after = held_out([-2.0, -4.0], [-6.0, np.nan], "xx"), held_out([-1.0, -3.0], [-7.0, np.nan], "xx")
    for one in (before, after):
        one.tokens["rejected"][1] = np.nan
    write_rows(tmp_path / "heldout.jsonl", before, after)
    lines = (tmp_path / "heldout.jsonl").read_text().splitlines()
    again = read_rows(json.loads(line) for line in lines)
    kept = {name: e.plain() for name, e in differences(again[1], again[0]).items()}
    assert kept == {name: e.plain() for name, e in differences(after, before).items()}
    assert "accuracies/logps" in kept
    assert [p.name for p in tmp_path.iterdir()] == ["heldout.jsonl"]
