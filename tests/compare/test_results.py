"""From made-up runs to an outcome: which seeds are compared, and what is left where runs failed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from prefopt.compare.results import common_seeds, plain, seeds_by_prompts
from prefopt.compare.statistics import TOO_MANY
from prefopt.errors import PrefoptError
from prefopt.report.compare_text import markdown
from tests.compare.outcomes import outcome, result, runs


def test_a_failed_seed_is_left_out_for_all() -> None:
    """Seeds are paired: without the second run of one method, the second of the others has nothing beside it."""
    whole, broken = runs("a", 1.0), runs("b", 1.0)
    broken.finals[1] = result("b", 2, 1.0, status="diverged")
    assert common_seeds([whole, broken], "true_reward") == [0, 2]
    values = seeds_by_prompts(whole, "true_reward", [0, 2])
    assert values is not None
    np.testing.assert_array_equal(values[1], whole.finals[2].arrays["true_reward"])
    found = outcome(runs("base", 0.0), runs("sft", 0.0), whole, broken)
    assert "b: diverged: loss is nan" in found.warnings


def test_figures_are_of_the_seeds_of_the_point() -> None:
    whole, broken = runs("a", 1.0), runs("b", 1.0)
    broken.finals[1] = result("b", 2, 1.0, status="diverged")
    found = outcome(runs("base", 0.0), runs("sft", 0.0), whole, broken)
    for standing in found.standings:
        assert standing.value is not None
        assert standing.value.point == pytest.approx(standing.figures["true_reward"])


def test_seeds_are_paired_by_number_where_too_few_worked_for_all() -> None:
    """a has seeds 1 and 2, b 2 and 3, c 1, 2, 3: a and b have one in common, c two with either."""
    a, b, c = runs("a", 1.0), runs("b", 1.3), runs("c", 9.0)
    a.finals[2], b.finals[0] = result("a", 3, 1.0, status="failed"), result("b", 1, 1.3, status="failed")
    assert common_seeds([a, b, c], "true_reward") is None
    found = outcome(runs("base", -9.0), runs("sft", 0.0), a, b, c)
    verdicts = {(p["a"], p["b"]): p["verdict"] for p in plain(found)["verdicts"]}
    assert verdicts["b", "a"] == "cannot_tell"
    assert verdicts["c", "a"] == verdicts["c", "b"] == "better"
    assert verdicts["a", "base"] == "better"
    assert any(warning.startswith("no two seeds worked for every method") for warning in found.warnings)


def test_a_method_with_one_seed_left_is_not_told() -> None:
    """Not from the model before training either, and the others keep their verdicts."""
    lone = runs("lone", 3.0)
    for place in (0, 1):
        lone.finals[place] = result("lone", place + 1, 3.0, status="diverged")
    found = outcome(runs("base", -1.0), runs("sft", 0.0), runs("a", 1.0), lone)
    told = {(p.a, p.b): p.verdict for p in found.pairs}
    assert {verdict for pair, verdict in told.items() if "lone" in pair} == {"cannot_tell"}
    assert told["a", "base"] == told["a", "sft"] == "better"


def test_other_data_are_said() -> None:
    other = runs("a", 1.0)
    other.config.data.path = "elsewhere"
    content = plain(outcome(runs("base", 0.0), runs("sft", 0.0), other))
    assert content["fingerprints"] == {"data": "d", "weights": "w"}
    assert content["other_fingerprints"] == {"a": {"data": "elsewhere"}}


def test_what_it_would_take_in_words() -> None:
    pair = dataclasses.replace(outcome(runs("base", 0.0), runs("sft", 0.0)).pairs[0], together=False)
    for given, said in (
        ({"seeds": 5, "prompts": None}, "5 seeds might"),
        ({"seeds": 5, "prompts": TOO_MANY + 1}, "5 seeds or more than 10,000 prompts might"),
        ({"seeds": 5, "prompts": 1200, "together": True}, "5 seeds and 1,200 prompts might"),
        ({"seeds": None, "prompts": None}, ""),
    ):
        assert dataclasses.replace(pair, **given).describe_needed() == said


def test_a_method_that_never_works_is_a_row() -> None:
    found = outcome(runs("base", 0.0), runs("sft", 0.0), runs("a", 1.0), runs("b", 1.0, status="diverged"))
    rows = {r["name"]: r for r in plain(found)["methods"]}
    assert rows["b"]["point"] is None
    assert found.standings[-1].name == "b"
    assert "| b | failed |" in markdown(found)


def test_nothing_to_compare_by_is_an_error() -> None:
    with pytest.raises(PrefoptError, match="loss is nan"):
        outcome(runs("base", 0.0, status="failed"), runs("a", 1.0, status="diverged"))
