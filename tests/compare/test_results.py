"""From made-up runs to an outcome: which seeds are compared, and what is left where runs failed."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from prefopt.compare.results import common_seeds, plain, seeds_by_prompts, smallest_rule
from prefopt.compare.spec import METRICS
from prefopt.compare.statistics import TOO_MANY, Pair, compare, reverse, verdict_of
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


def pair_of(difference: float, metric: str = "true_reward") -> Pair:
    """The comparison of two rows that differ by as much for every seed and prompt, up to little noise."""
    noise = np.random.default_rng(0).normal(0, 1e-3, (2, 3, 400))
    values = {"a": noise[0] + difference, "b": noise[1]}
    rule = smallest_rule([], metric)
    (pair,) = compare(values, metric, better=METRICS[metric].better, smallest=rule)
    return pair


def test_a_sure_difference_that_does_not_matter_is_a_tie() -> None:
    """Below 0.05 of a world's reward, however sure."""
    small = pair_of(0.02)
    assert small.verdict == "tie"
    assert small.p_holm < 0.05
    assert small.describe() == "tie"
    assert reverse(small).verdict == "tie"
    assert pair_of(0.2).verdict == "better"
    assert pair_of(0.02, "win_rate").verdict == "better"  # two in a hundred do
    assert pair_of(0.005, "win_rate").verdict == "tie"


def test_a_judges_score_is_measured_in_its_own_standard_deviations() -> None:
    """Its scale is the judge's: a thousand times the scores are the same finding."""
    rng = np.random.default_rng(0)
    prompts, noise = rng.normal(0, 1, 4000), rng.normal(0, 0.01, (2, 3, 4000))
    for scale in (1.0, 1000.0):
        for by, wanted in ((0.02, "tie"), (0.2, "better")):
            values = {"a": scale * (prompts + noise[0] + by), "b": scale * (prompts + noise[1])}
            (pair,) = compare(values, "judge", smallest=smallest_rule([], "judge"))
            assert pair.verdict == wanted


def test_accuracy_of_a_model_that_has_not_moved_is_a_tie() -> None:
    """IPO at KL 1e-7 ranks 80 % of the pairs right by margins of 1e-6 nats: that is no better than the start."""

    def verdict(margin: float) -> str:
        def row(name: str, value: float, by: float, seeds: int) -> Any:
            made = runs(name, 0.0, seeds=seeds)
            for n, one in enumerate(made.finals):
                rng = np.random.default_rng([n, *name.encode()])
                one.arrays["accuracy"] = (
                    rng.binomial(1, value, 300).astype(float) if value != 0.5 else np.full(300, 0.5)
                )
                one.arrays["margin"] = np.full(300, by)
                one.arrays.pop("true_reward")
                one.figures["accuracy"] = float(one.arrays["accuracy"].mean())
            return made

        found = outcome(row("base", 0.5, 0.0, 1), row("ipo", 0.8, margin, 3))
        assert found.metric == "accuracy"
        pair = verdict_of(found.pairs, "ipo", "base")
        assert pair is not None
        return pair.verdict

    assert verdict(1e-6) == "tie"
    assert verdict(0.5) == "better"


def test_a_model_that_moved_in_both_directions_has_moved() -> None:
    """Half of the margins grow by a nat and half shrink: their mean is 0, and the model is far from its start."""
    moved, still = runs("moved", 0.0), runs("still", 0.0)
    for row, by in ((moved, 1.0), (still, 0.05)):
        for one in row.finals:
            one.arrays["margin"] = by * np.resize([1.0, -1.0], 300)
    assert smallest_rule([moved, still], "accuracy")("moved", "still", 1.0) == METRICS["accuracy"].smallest
    assert smallest_rule([still], "accuracy")("still", "still", 1.0) == float("inf")
