"""Verdicts: what they are made of, and how often they are wrong."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy import stats

from prefopt.compare.measure_world import by_prompt
from prefopt.compare.statistics import ALPHA, MIN_PROMPTS, TOO_MANY, intervals, reverse, verdict_of
from prefopt.compare.statistics import compare as compare_by

SAME = 6  # methods that differ in nothing
FAMILIES = 100
OTHER = {"again": range(100, 103)}
compare = partial(compare_by, smallest=None)  # every difference matters


@pytest.fixture(autouse=True)
def hundreds_of_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """statsmodels collects garbage at every correction, a tenth of a second each in a process with torch."""
    monkeypatch.setattr(gc, "collect", lambda *args: 0)


def table(
    rng: np.random.Generator, methods: int, seeds: int, prompts: int, *, shared: float = 0.1, **sd: float
) -> dict[str, np.ndarray]:
    """(S, P) figures of methods that are equally good: what a prompt, a seed and their luck do."""
    of_prompt, of_seed = rng.normal(0, 1, prompts), rng.normal(0, shared, (seeds, 1))
    found = {
        str(m): of_prompt + of_seed + rng.normal(0, sd["seed"], (seeds, 1)) + rng.normal(0, sd["prompt"], prompts)
        + rng.normal(0, sd["rest"], (seeds, prompts))
        for m in range(methods)
    }  # fmt: skip
    if sd.get("noisy"):
        found["0"] += rng.normal(0, sd["noisy"], (seeds, 1))
    if sd.get("again"):  # equally good, but at seeds of its own
        other = rng.normal(0, shared, (seeds, 1)) + rng.normal(0, sd["seed"], (seeds, 1))
        found["again"] = of_prompt + other + rng.normal(0, sd["prompt"], prompts)
        found["again"] += rng.normal(0, sd["rest"], (seeds, prompts))
    if sd.get("base"):  # equally good, and of no seed
        found["base"] = (of_prompt + rng.normal(0, sd["prompt"], prompts) + rng.normal(0, sd["rest"], prompts))[None]
    return found


def told_families(families: int, draw: Callable[[np.random.Generator], dict[str, np.ndarray]], **given: Any) -> int:
    """Families with any verdict."""
    every = (compare(draw(np.random.default_rng([i, families])), "m", **given) for i in range(families))
    return sum(any(pair.verdict != "cannot_tell" for pair in pairs) for pairs in every)


def most(families: int) -> int:
    """Families with a wrong verdict that an error of 5 % exceeds in one test of a thousand."""
    return int(stats.binom.ppf(0.999, families, ALPHA))


NULLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # how the figures come about, and what `compare` is told
    "two methods, two seeds": ({"methods": 2, "seeds": 2, "seed": 0.12}, {}),
    "two methods, two loud seeds": ({"methods": 2, "seeds": 2, "seed": 0.4}, {}),
    "two methods, three seeds": ({"methods": 2, "seeds": 3, "seed": 0.4}, {}),
    "six methods, two seeds": ({"methods": SAME, "seeds": 2, "seed": 0.12}, {}),
    "six methods, quiet seeds": ({"methods": SAME, "seeds": 3, "seed": 0.0}, {}),
    "six methods, loud seeds": ({"methods": SAME, "seeds": 3, "seed": 0.4}, {}),
    "base": ({"methods": SAME, "seeds": 3, "seed": 0.1, "shared": 0.0, "base": 1}, {}),
    "base, shared seeds": ({"methods": SAME, "seeds": 3, "seed": 0.1, "shared": 0.2, "base": 1}, {}),
    "base, loud shared seeds": ({"methods": SAME, "seeds": 3, "seed": 0.1, "shared": 0.4, "base": 1}, {}),
    "base, two loud shared seeds": ({"methods": SAME, "seeds": 2, "seed": 0.1, "shared": 0.4, "base": 1}, {}),
    "base, one method": ({"methods": 1, "seeds": 3, "seed": 0.1, "shared": 0.4, "base": 1}, {}),
    "one noisy method": ({"methods": SAME, "seeds": 3, "seed": 0.1, "noisy": 1.0}, {}),
    "one noisy method, two seeds": ({"methods": 10, "seeds": 2, "seed": 0.1, "noisy": 1.0}, {}),
    "other seeds": ({"methods": SAME, "seeds": 3, "seed": 0.1, "shared": 0.2, "again": 1}, {"numbers": OTHER}),
    "other seeds, two": ({"methods": 2, "seeds": 2, "seed": 0.1, "shared": 0.4, "again": 1}, {"numbers": OTHER}),
}


LONG = "one noisy method, two seeds"


@pytest.mark.parametrize("null", [pytest.param(n, marks=pytest.mark.slow) if n == LONG else n for n in NULLS])
def test_equal_methods_are_seldom_told_apart(null: str) -> None:
    """At most one family in twenty has a verdict."""
    how, given = NULLS[null]
    wrong = told_families(FAMILIES, lambda rng: table(rng, prompts=64, prompt=0.3, rest=0.5, **how), **given)
    assert wrong <= most(FAMILIES)


def test_a_constant_row_is_no_sample() -> None:
    """SFT's win rate against itself is 1/2 everywhere: it neither makes seeds look quiet nor has any."""

    def draw(rng: np.random.Generator) -> dict[str, np.ndarray]:
        seeds = rng.normal(0, 0.06, (3, 2, 1))
        return {str(m): 0.5 + seeds[:, m] + rng.normal(0, 0.3, (3, 64)) for m in range(2)} | {
            "sft": np.full((3, 64), 0.5)
        }

    assert told_families(FAMILIES, draw) <= most(FAMILIES)


def test_skewed_figures_are_seldom_told_from_constant_ones() -> None:
    """Log-normal figures of 50 prompts, whose sample mean and variance are low together."""

    def draw(rng: np.random.Generator) -> dict[str, np.ndarray]:
        skewed = np.exp(rng.normal(size=MIN_PROMPTS)) - math.exp(0.5)
        return {"a": skewed + rng.normal(0, 0.05, (5, 1)), "base": rng.normal(0, 0.1, (1, MIN_PROMPTS))}

    assert told_families(4 * FAMILIES, draw) <= most(4 * FAMILIES)


@pytest.mark.parametrize("each", [1, 4, 8])
def test_pairs_of_one_prompt_are_one(each: int) -> None:
    """Equal pairs behind each of 40 prompts, the worst case; taken as 320 prompts, every other family is told apart."""
    prompts = [i // each for i in range(40 * each)]

    def draw(rng: np.random.Generator, grouped: bool = True) -> dict[str, np.ndarray]:
        wins = {name: np.repeat(rng.random(40) < 0.5, each).astype(float) for name in "ab"}
        return {n: np.stack([by_prompt(w, prompts) if grouped else w] * 2) for n, w in wins.items()}

    assert told_families(FAMILIES, draw) <= most(FAMILIES)
    if each == 8:
        assert told_families(FAMILIES, lambda rng: draw(rng, grouped=False)) > 2 * most(FAMILIES)


@pytest.mark.parametrize("prompts", [2, 8, MIN_PROMPTS - 1])
def test_few_prompts_tell_nothing(prompts: int) -> None:
    """However far apart, and with no variance at all: p is that of the sign of `prompts` values."""
    (pair,) = compare({"a": np.ones((2, prompts)), "base": np.full((1, prompts), 0.5)}, "m")
    assert pair.verdict == "cannot_tell"
    assert pair.p == pytest.approx(2 * 0.5**prompts)
    assert (pair.seeds, pair.prompts) == (None, MIN_PROMPTS)
    (many,) = compare({"a": np.ones((2, MIN_PROMPTS)), "base": np.full((1, MIN_PROMPTS), 0.5)}, "m")
    assert many.verdict == "better"


@pytest.mark.parametrize("level", [0.1, 0.7, 1 / 3])
def test_rounding_is_no_variance(level: float) -> None:
    (pair,) = compare({"a": np.full((2, 30), level) + 0.2, "base": np.full((1, 30), level)}, "m")
    assert pair.p == pytest.approx(2 * 0.5**30)


def test_rows_are_paired_by_the_number_of_the_seed() -> None:
    """What seeds share cancels in the rows that share them, wherever they stand."""
    values = table(np.random.default_rng(0), 2, 5, 64, shared=5.0, seed=0.01, prompt=0.1, rest=0.1)
    a, b = values["0"][:4] + 0.5, values["1"][[4, 1, 2, 3]]
    (pair,) = compare({"a": a, "b": b}, "m", numbers={"a": [0, 1, 2, 3], "b": [4, 1, 2, 3]})
    assert (pair.verdict, round(pair.difference, 1)) == ("better", 0.5)
    (by_place,) = compare({"a": a, "b": b}, "m")
    assert by_place.verdict == "cannot_tell"


@pytest.mark.parametrize("numbers", [[2], [2, 3], [5]])
def test_one_training_or_one_common_seed_tells_nothing(numbers: list[int]) -> None:
    """Beside others of many seeds, and against the model before training, which is a row of one, too."""
    values = table(np.random.default_rng(1), 3, 3, 64, seed=0.01, prompt=0.1, rest=0.1, base=1)
    values["lone"] = values["0"][: len(numbers)] + 9
    pairs = compare(values, "m", numbers={"lone": numbers})
    for other in ("0", "1", "2", *(["base"] if len(numbers) == 1 else [])):
        pair = verdict_of(pairs, "lone", other)
        assert pair is not None
        assert math.isnan(pair.p)
        assert (pair.verdict, pair.seeds, pair.prompts) == ("cannot_tell", None, None)


def test_the_untrained_row_is_named() -> None:
    """A row of one is a training unless it is said to be none."""
    values = table(np.random.default_rng(1), 2, 3, 64, seed=0.01, prompt=0.1, rest=0.1, base=1)
    values = {"start": values.pop("base") - 9, **values}
    assert math.isnan(compare(values, "m")[0].p)
    assert compare(values, "m", untrained=["start"])[0].verdict == "worse"


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
        assert verdict_of(pairs, other, "3") == reverse(pair)
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

    Seeds: variance of (2, 3) = .5, over 2 seeds .25. Prompts: variance of (1.5, 3.5) = 2, over 2 prompts 1. Squared
    error 1.25, of both parts on 1 degree of freedom.
    """
    (pair,) = compare({"a": np.array([[1.0, 3.0], [2.0, 4.0]]), "b": np.zeros((2, 2))}, "m")
    assert pair.difference == 2.5
    assert pair.p == pytest.approx(2 * stats.t.sf(2.5 / math.sqrt(1.25), 1))
    assert pair.high - pair.difference == pytest.approx(math.sqrt(1.25) * stats.t.ppf(0.975, 1))


def test_the_seed_variances_by_hand() -> None:
    """Two methods, two seeds, means 0, 2 and 0, 4: variances 2 and 8, 1 and 4 of a mean; prompts do not vary.

    Welch: 5 on (1 + 4)^2 / (1 + 16) degrees of freedom, with 4/5 of the error. Paired: differences 0 and -2, 1 on 1,
    with 1/5. Against the model before training: 1, or 4, on 1.
    """
    prompts = np.linspace(-1, 1, 60)
    values = {name: np.array([[low], [high]]) + prompts for name, low, high in (("a", 0, 2), ("b", 0, 4))}
    (pair,) = compare(values, "m")
    welch = math.sqrt(5) * stats.t.ppf(1 - ALPHA * 0.8 / 2, 25 / 17)
    paired = stats.t.ppf(1 - ALPHA * 0.2 / 2, 1)
    assert pair.high - pair.difference == pytest.approx(min(welch, paired))
    assert pair.p == pytest.approx(2 * min(stats.t.sf(1 / math.sqrt(5), 25 / 17) / 0.8, stats.t.sf(1, 1) / 0.2, 0.5))
    (alone,) = compare({"a": values["a"], "base": prompts[None]}, "m")
    assert alone.high - 1 == pytest.approx(stats.t.ppf(0.975, 1))


def test_skewed_prompts_by_hand() -> None:
    """Differences 0, 0, 0, 4 less 2: mean -1, variance 3 (biased), skewness 6 / 3^1.5; t = -(1 / 3) * 3^0.5 * ...

    t = -1 / (3 * 4 / 3)^0.5 = -.5 standard deviations, g t = -.577; Hall's statistic is smaller by
    1 - .577 / 3 + .577^2 / 27. The other way round, with the mean on the side of the long tail, nothing changes.
    """
    gap = np.array([[0.0, 0.0, 0.0, 4.0]])
    skew_t = -0.5 * 6 / 3**1.5
    error = 1 / (1 + skew_t / 3 + skew_t**2 / 27)
    (pair,) = compare({"a": gap - 2, "base": np.zeros((1, 4))}, "m", untrained=["a", "base"])
    assert pair.high - pair.difference == pytest.approx(error * stats.t.ppf(0.975, 3))
    (pair,) = compare({"a": gap, "base": np.zeros((1, 4))}, "m", untrained=["a", "base"])
    assert pair.high - pair.difference == pytest.approx(stats.t.ppf(0.975, 3))


def test_a_pair_is_told_apart_where_its_interval_excludes_zero() -> None:
    """The intervals of pairs, and of rows that do not overlap, are the tests."""
    told = 0
    for i in range(30):
        rng = np.random.default_rng([9, i])
        values = table(rng, 5, 5, 64, seed=0.1, prompt=0.3, rest=0.5, base=1)
        values |= {name: values[name] + 0.4 * int(name) for name in "1234"}
        pairs = compare(values, "m")
        rows = intervals(values, pairs)
        for pair in pairs:
            found = pair.verdict != "cannot_tell"
            told += found
            assert found == (pair.low > 0 or pair.high < 0)
            apart = max(rows[pair.a].low, rows[pair.b].low) > min(rows[pair.a].high, rows[pair.b].high)
            assert found or not apart
    assert 100 < told < 400


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


def test_what_it_would_take_is_said_wherever_it_is_known() -> None:
    """One alone where it suffices, both where neither does, and never a number that nobody would run."""
    for i in range(40):
        rng = np.random.default_rng([8, i])
        for pair in compare(table(rng, 4, 3, 64, seed=0.1, prompt=0.3, rest=0.5, base=1), "m"):
            wanted = [count for count in (pair.seeds, pair.prompts) if count is not None]
            assert bool(wanted) == (pair.verdict == "cannot_tell")
            assert all(3 < count <= TOO_MANY + 1 for count in wanted)
            assert not pair.together or len(wanted) == 2


def test_the_model_before_training_has_no_seeds() -> None:
    rng = np.random.default_rng(1)
    trained = 1 + rng.normal(0, 0.02, (3, 1)) + rng.normal(0, 0.2, (3, 80))
    pairs = compare({"base": rng.normal(0, 0.2, (1, 80)), "a": trained, "b": trained[::-1] + 0.01}, "m")
    assert verdict_of(pairs, "a", "base").verdict == "better"  # type: ignore[union-attr]


def test_a_noisy_row_has_the_wide_interval() -> None:
    """The others keep intervals as narrow as without it."""
    values = table(np.random.default_rng(2), 5, 5, 256, seed=0.02, prompt=0.1, rest=0.1)
    values["4"] = values["4"] + np.array([[-9.0], [7.0], [1.0], [6.0], [-5.0]])
    rows = intervals(values, compare(values, "m"))
    wide = {name: row.high - row.low for name, row in rows.items()}
    assert wide["4"] > 5 * max(wide[name] for name in "0123")
    assert all(row.low < row.point < row.high for row in rows.values())
    assert {name: row.point for name, row in rows.items()} == {name: v.mean() for name, v in values.items()}


def test_rows_of_one_seed_have_no_interval() -> None:
    values = table(np.random.default_rng(2), 3, 1, 100, seed=0.02, prompt=0.1, rest=0.1)
    assert all(math.isnan(row.low) for row in intervals(values, compare(values, "m")).values())


def test_intervals_of_few_prompts_overlap() -> None:
    """There is no verdict, so they do not look like one."""
    values = table(np.random.default_rng(2), 2, 5, MIN_PROMPTS - 1, seed=0.02, prompt=0.1, rest=0.1)
    values["1"] = values["1"] + 9
    rows = intervals(values, compare(values, "m"))
    assert rows["0"].high == pytest.approx(rows["1"].low)


@pytest.mark.parametrize(
    ("difference", "noise", "verdict"),
    [(0.0, 0.01, "tie"), (0.02, 0.01, "tie"), (0.0455, 0.1, "cannot_tell"), (0.0, 0.6, "cannot_tell"),
     (0.1, 0.1, "better"), (0.07, 0.6, "cannot_tell")],
)  # fmt: skip
def test_a_tie_is_an_interval_without_a_difference_that_matters(difference: float, noise: float, verdict: str) -> None:
    """[-0.002, 0.002] is a tie though it holds 0; [0.03, 0.06] is none though it does not."""
    draw = np.random.default_rng(0).normal(0, noise, (2, 5, 200))
    draw -= draw.mean((1, 2), keepdims=True)  # the difference is exact
    values = {"a": draw[0] + difference, "b": draw[1]}
    (pair,) = compare_by(values, "m", smallest=lambda a, b, spread: 0.05)
    assert pair.verdict == verdict
    assert (max(-pair.low, pair.high) < 0.05) == (verdict == "tie")
    assert (pair.seeds or pair.prompts or 0) > 0 if verdict == "cannot_tell" else pair.seeds is pair.prompts is None
    assert compare(values, "m")[0].verdict != "tie"


def test_more_prompts_decide_what_is_too_close_to_the_smallest_that_matters() -> None:
    draw = np.random.default_rng(0).normal(0, 0.1, (2, 5, 200))
    draw -= draw.mean((1, 2), keepdims=True)
    (pair,) = compare_by({"a": draw[0] + 0.04, "b": draw[1]}, "m", smallest=lambda a, b, spread: 0.05)
    assert pair.low > 0, "sure of its sign"
    assert pair.verdict == "cannot_tell"
    assert pair.prompts is not None
    more = np.random.default_rng(1).normal(0, 0.1, (2, 5, pair.prompts))
    more -= more.mean((1, 2), keepdims=True)
    (decided,) = compare_by({"a": more[0] + 0.04, "b": more[1]}, "m", smallest=lambda a, b, spread: 0.05)
    assert decided.verdict == "tie"
