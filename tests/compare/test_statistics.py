"""Verdicts: what they are made of, and how often they are wrong."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest
from scipy import stats

from prefopt.compare.statistics import compare, interval, turned, verdict_of

SAME = 6  # methods that differ in nothing


@pytest.fixture(autouse=True)
def hundreds_of_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """statsmodels collects garbage at every correction, a tenth of a second each in a process with torch."""
    monkeypatch.setattr(gc, "collect", lambda *args: 0)


def table(rng: np.random.Generator, methods: int, seeds: int, prompts: int, **sd: float) -> dict[str, np.ndarray]:
    """(S, P) figures of methods that are equally good: what a prompt, a seed and their luck do."""
    of_prompt, of_seed = rng.normal(0, 1, prompts), rng.normal(0, 0.1, (seeds, 1))
    return {
        str(m): of_prompt + of_seed + rng.normal(0, sd["seed"], (seeds, 1)) + rng.normal(0, sd["prompt"], prompts)
        + rng.normal(0, sd["rest"], (seeds, prompts))
        for m in range(methods)
    }  # fmt: skip


@pytest.mark.parametrize("methods", [2, SAME])
@pytest.mark.parametrize(("seeds", "noise"), [(2, 0.12), (3, 0.0), (3, 0.12), (3, 0.4)])
def test_equal_methods_are_seldom_told_apart(methods: int, seeds: int, noise: float) -> None:
    """At most one family in twenty has a verdict. Of 60 families at 5 %, more than 8 are wrong once in 400 tests."""
    wrong = 0
    for i in range(60):
        values = table(np.random.default_rng([i, seeds]), methods, seeds, 64, seed=noise, prompt=0.3, rest=0.5)
        wrong += any(pair.verdict != "cannot_tell" for pair in compare(values, "m"))
    assert wrong <= 8


def test_a_real_difference_is_found() -> None:
    """Twelve standard deviations of the seed's luck are enough with three seeds; the verdict says which way."""
    values = table(np.random.default_rng(0), 4, 3, 256, seed=0.05, prompt=0.3, rest=0.5)
    values["3"] = values["3"] + 0.6
    pairs = compare(values, "m")
    for other in ("0", "1", "2"):
        pair = verdict_of(pairs, "3", other)
        assert pair is not None
        assert pair.verdict == "better"
        assert pair.low < 0.6 < pair.high or abs(pair.difference - 0.6) < 0.2
        assert verdict_of(pairs, other, "3") == turned(pair)
    assert all(p.verdict == "worse" for p in compare(values, "m", better=-1) if p.a == "3")


def test_the_same_numbers_twice_cannot_be_told() -> None:
    values = np.random.default_rng(0).normal(size=(3, 50))
    (pair,) = compare({"a": values, "b": values.copy()}, "m")
    assert (pair.difference, pair.p, pair.verdict) == (0.0, 1.0, "cannot_tell")


def test_one_seed_tells_nothing() -> None:
    """Of one training each, however far apart, nothing is known of what another seed would do."""
    rng = np.random.default_rng(0)
    (pair,) = compare({"a": rng.normal(size=(1, 50)), "b": 9 + rng.normal(size=(1, 50))}, "m")
    assert pair.verdict == "cannot_tell"
    assert math.isnan(pair.p)


def test_the_parts_of_the_variance_by_hand() -> None:
    """Two methods, two seeds, two prompts; D = [[1, 3], [2, 4]]: mean 2.5, seed means 2 and 3, prompt means 1.5, 3.5.

    Seeds: variance of (2, 3) = .5, over 2 seeds .25 (by the pool: residuals of the 2 x 2 table of means are +-.25, mean
    square .25 on 1 degree of freedom, for two methods .5: the same). Prompts: variance of (1.5, 3.5) = 2, over 2
    prompts 1. Squared error 1.25; degrees of freedom 1.25^2 / (.25^2 / 1 + 1^2 / 1) = 1.4706.
    """
    (pair,) = compare({"a": np.array([[1.0, 3.0], [2.0, 4.0]]), "b": np.zeros((2, 2))}, "m")
    assert pair.difference == 2.5
    freedom = 1.25**2 / (0.25**2 + 1)
    assert pair.p == pytest.approx(2 * stats.t.sf(2.5 / math.sqrt(1.25), freedom))
    assert pair.high - pair.difference == pytest.approx(math.sqrt(1.25) * stats.t.ppf(0.975, freedom))


def test_p_values_are_corrected_together() -> None:
    """Holm: sorted p times what is left to test, never falling."""
    values = table(np.random.default_rng(3), 4, 3, 40, seed=0.1, prompt=0.3, rest=0.5)
    pairs = sorted(compare(values, "m"), key=lambda pair: pair.p)
    running = 0.0
    for left, pair in zip(range(len(pairs), 0, -1), pairs, strict=True):
        running = max(running, min(1.0, left * pair.p))
        assert pair.p_holm == pytest.approx(running)


def test_what_it_would_take_is_enough() -> None:
    """A difference of one seed-luck at two seeds: with the seeds that were named it is told most of the time."""

    def draw(i: int, seeds: int) -> dict[str, np.ndarray]:
        values = table(np.random.default_rng([7, i]), 2, seeds, 256, seed=0.1, prompt=0.05, rest=0.3)
        return {"0": values["0"] + 0.12, "1": values["1"]}

    needed = [pair.seeds for i in range(20) for pair in compare(draw(i, 4), "m") if pair.verdict == "cannot_tell"]
    known = [count for count in needed if count is not None]
    assert known
    assert all(count > 4 for count in known)
    told = sum(compare(draw(i, 24), "m")[0].verdict == "better" for i in range(20))
    assert told >= 16


def test_the_model_before_training_has_no_seeds() -> None:
    rng = np.random.default_rng(1)
    trained = 1 + rng.normal(0, 0.05, (3, 1)) + rng.normal(0, 0.2, (3, 80))
    pairs = compare({"base": rng.normal(0, 0.2, (1, 80)), "a": trained, "b": trained[::-1] + 0.01}, "m")
    assert verdict_of(pairs, "a", "base").verdict == "better"  # type: ignore[union-attr]


def test_intervals_hold_the_mean() -> None:
    """Of independent values: the two-way resampling is wide, at most three times the variance (Owen, 2007)."""
    values = np.random.default_rng(0).normal(2, 1, (3, 100))
    found = interval(values)
    assert found.low < found.point == pytest.approx(values.mean())
    assert found.point < found.high
    assert 1 < (found.high - found.low) / (2 * 1.96 / math.sqrt(300)) < math.sqrt(3)
    assert interval(values) == found  # the same resamples every time
