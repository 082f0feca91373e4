"""Who is better, or that it cannot be told: methods compared on the same seeds and the same prompts.

A method's figures are (S, P): S trainings, P prompts. Two methods are compared by the difference D of theirs, so that
what a seed or a prompt does to both cancels. Both are samples of what might have been, so both are random effects:

    D[s, p] = difference + seed[s] + prompt[p] + rest[s, p],
    Var(mean D) = Var(seed)/S + Var(prompt)/P + Var(rest)/(S P).

Prompts are many, so theirs is estimated from the prompts of the pair itself, as variance over p of the mean over s.
Seeds are few: two or three values say next to nothing of a variance. Theirs is therefore pooled over the methods, as
the residual mean square of the table of means, methods by seeds (a randomised block design; Fisher, 1935), whose
degrees of freedom are (methods - 1)(seeds - 1); it rests on methods being about as noisy as each other, so a pair
whose own seeds scatter more than the pool explains (F test, 1 %) is judged by its own seeds and their S - 1 degrees
of freedom. The two parts add up (the rest is counted twice, on the safe side), the degrees of freedom are Welch's and
Satterthwaite's, and t gives p and the interval. A bootstrap over two seeds would know nothing of the seeds that were
not drawn (its interval is too narrow by sqrt((S-1)/S) and more); it is used for one method's own interval, and as a
second opinion: a verdict needs both, p after Holm's correction over all pairs, and a bootstrap interval without 0.

What a simulation of the null says of this is in tests/compare/test_statistics.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

Floats = NDArray[np.float64]
Verdict = Literal["better", "worse", "cannot_tell"]

ALPHA = 0.05  # of a whole family of comparisons
POWER = 0.8  # with which a difference as large as the one seen should be found
HETEROGENEITY = 0.01  # level at which a pair's own seed variance replaces the pooled one
RESAMPLES = 2000
TOO_MANY = 10_000  # seeds or prompts that nobody will run


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and its 95 % interval over prompts and seeds; no interval where there is one value only."""

    point: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What can be told of methods a and b by one metric.

    Attributes:
        difference: mean of a less mean of b, with its 95 % interval `low` to `high`, not corrected.
        effect: the difference in standard deviations over prompts (Cohen's d).
        p: two-sided, that the difference is 0; nan with one seed.
        p_holm: after Holm's correction over all pairs.
        verdict: of a against b; by the metric's direction.
        seeds, prompts: how many of either, the other as it is, would tell a difference as large as this one four times
            in five; None where none would, or the verdict is there.
    """

    a: str
    b: str
    metric: str
    difference: float
    low: float
    high: float
    effect: float
    p: float
    p_holm: float
    verdict: Verdict
    seeds: int | None
    prompts: int | None


def interval(values: Floats, *, seed: int = 0) -> Interval:
    """Of the mean of (S, P) figures, by the percentile bootstrap over both, 2,000 resamples."""
    drawn = _resampled_means(values, seed=seed)
    if drawn is None:
        return Interval(point=float(values.mean()), low=math.nan, high=math.nan)
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
    return Interval(point=float(values.mean()), low=low, high=high)


def compare(values: Mapping[str, Floats], metric: str, *, better: int = 1, seed: int = 0) -> list[Pair]:
    """Every pair of methods, Holm-corrected together.

    Args:
        values: (S, P) by method: the same prompts for all; methods of fewer seeds have the first ones. A method with
            one row is compared as it is: it has no seeds (the base model).
        metric: its name.
        better: +1 where more is better, -1 where less is.
    """
    pooled = _pooled_seed_variance(values)
    drafts = [_pair(a, b, values[a], values[b], pooled, seed) for a, b in itertools.combinations(values, 2)]
    p = np.array([draft.p for draft in drafts])
    known = np.isfinite(p)
    corrected = np.full(len(p), math.nan)
    if known.any():
        corrected[known] = multipletests(p[known], alpha=ALPHA, method="holm")[1]
    return [
        _judged(draft, float(holm), metric, better, int(known.sum()))
        for draft, holm in zip(drafts, corrected, strict=True)
    ]


@dataclass(frozen=True)
class _Draft:
    a: str
    b: str
    difference: float
    seed_part: float  # of the squared standard error, times the seeds
    prompt_part: float  # likewise, times the prompts
    shape: tuple[int, int]
    freedom: float
    effect: float
    p: float
    crosses: bool  # the bootstrap interval has 0 in it


def _pair(a: str, b: str, x: Floats, y: Floats, pooled: tuple[float, int], seed: int) -> _Draft:
    gap = _difference(x, y)
    seeds, prompts = gap.shape
    trained = sum(len(v) > 1 for v in (x, y))  # a model without seeds adds no variance of them
    variance, freedom = trained * pooled[0], pooled[1]
    if seeds > 1 and trained:
        own = float(gap.mean(1).var(ddof=1))
        noisier = freedom > 0 and variance > 0 and stats.f.sf(own / variance, seeds - 1, freedom) < HETEROGENEITY
        if noisier or freedom < 1 or variance == 0:
            variance, freedom = own, seeds - 1
    over_prompts = float(gap.mean(0).var(ddof=1)) if prompts > 1 else math.nan
    parts = variance / seeds, over_prompts / prompts
    error = sum(parts)
    weights = [part**2 / f for part, f in zip(parts, (freedom, prompts - 1), strict=True) if part > 0]
    welch = error**2 / sum(weights) if weights and sum(weights) > 0 else math.inf
    difference = float(gap.mean())
    p = math.nan if trained and seeds < 2 and pooled[1] < 1 else _p(difference, error, welch)
    drawn = _resampled_means(gap, seed=seed)
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist() if drawn is not None else (math.nan, math.nan)
    spread = math.sqrt((float(x.mean(0).var(ddof=1)) + float(y.mean(0).var(ddof=1))) / 2) if prompts > 1 else 0.0
    return _Draft(
        a, b, difference, variance, over_prompts, (seeds, prompts), welch, difference / spread if spread else math.nan,
        p, not (low > 0 or high < 0),
    )  # fmt: skip


def _difference(x: Floats, y: Floats) -> Floats:
    """(S, P) of the seeds that both have; a single row stands beside every seed of the other."""
    if len(x) == 1 or len(y) == 1:
        return np.asarray(x - y)
    seeds = min(len(x), len(y))
    return np.asarray(x[:seeds] - y[:seeds])


def _p(difference: float, error: float, freedom: float) -> float:
    if error == 0:
        return 1.0 if difference == 0 else 0.0
    return float(2 * stats.t.sf(abs(difference) / math.sqrt(error), freedom))


def _pooled_seed_variance(values: Mapping[str, Floats]) -> tuple[float, int]:
    """The variance of one method's seed mean about what method and seed say, and its degrees of freedom."""
    trained = [v for v in values.values() if len(v) > 1]
    seeds = min((len(v) for v in trained), default=0)
    if seeds < 2 or len(trained) < 2:
        return math.nan, 0
    table = np.array([v[:seeds].mean(1) for v in trained])
    residual = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    freedom = (len(trained) - 1) * (seeds - 1)
    return float((residual**2).sum() / freedom), freedom


def _resampled_means(values: Floats, *, seed: int) -> Floats | None:
    """(RESAMPLES,) means of (S, P) figures over redrawn seeds and redrawn prompts; None of a single value.

    scipy.stats.bootstrap redraws along one axis, so the two-way resampling is by counts here (Owen, 2007,
    https://doi.org/10.1214/07-AOAS122).
    """
    seeds, prompts = values.shape
    if prompts < 2:
        return None
    by_seed, by_prompt = _weights(seeds, prompts, seed)
    means: Floats = ((by_seed @ values) * by_prompt).sum(1)
    return means


@lru_cache(maxsize=4)
def _weights(seeds: int, prompts: int, seed: int) -> tuple[Floats, Floats]:
    """(RESAMPLES, S) and (RESAMPLES, P): how much of each resample is which seed, which prompt; the same for all."""
    rng = np.random.default_rng(seed)
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    by_prompt = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES) / prompts
    return by_seed, by_prompt


def _judged(draft: _Draft, p_holm: float, metric: str, better: int, family: int) -> Pair:
    told = p_holm < ALPHA and not draft.crosses and better != 0
    verdict: Verdict = "cannot_tell"
    if told:
        verdict = "better" if draft.difference * better > 0 else "worse"
    seeds, prompts = (None, None) if told else _needed(draft, ALPHA / max(1, family))
    seeds_now, prompts_now = draft.shape
    error = math.sqrt(draft.seed_part / seeds_now + draft.prompt_part / prompts_now)
    half = error * float(stats.t.ppf(1 - ALPHA / 2, draft.freedom)) if math.isfinite(draft.p) else math.nan
    return Pair(
        a=draft.a, b=draft.b, metric=metric, difference=draft.difference, low=draft.difference - half,
        high=draft.difference + half, effect=draft.effect, p=draft.p, p_holm=p_holm, verdict=verdict, seeds=seeds,
        prompts=prompts,
    )  # fmt: skip


def _needed(draft: _Draft, alpha: float) -> tuple[int | None, int | None]:
    """Seeds at these prompts, and prompts at these seeds, for the power wanted at the first step of Holm's procedure.

    By the normal approximation, (z[1 - alpha/2] + z[power])^2 * (seed_part / S + prompt_part / P) <= difference^2: a
    lower bound where the seeds are few.
    """
    z = float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(POWER))
    allowed = (draft.difference / z) ** 2
    seeds, prompts = draft.shape
    return (
        _enough(draft.seed_part, allowed - draft.prompt_part / prompts, at_least=max(2, seeds)),
        _enough(draft.prompt_part, allowed - draft.seed_part / seeds, at_least=prompts),
    )


def _enough(part: float, room: float, *, at_least: int) -> int | None:
    if not (room > 0 and math.isfinite(part)):
        return None
    count = max(at_least + 1, math.ceil(part / room))
    return count if count <= TOO_MANY else None


def verdict_of(pairs: Sequence[Pair], a: str, b: str) -> Pair | None:
    """The comparison of `a` against `b`, turned round if need be."""
    for pair in pairs:
        if (pair.a, pair.b) == (a, b):
            return pair
        if (pair.a, pair.b) == (b, a):
            return turned(pair)
    return None


def turned(pair: Pair) -> Pair:
    """The same comparison seen from the other side."""
    from dataclasses import replace

    other: dict[Verdict, Verdict] = {"better": "worse", "worse": "better", "cannot_tell": "cannot_tell"}
    return replace(
        pair, a=pair.b, b=pair.a, difference=-pair.difference, low=-pair.high, high=-pair.low, effect=-pair.effect,
        verdict=other[pair.verdict],
    )  # fmt: skip
