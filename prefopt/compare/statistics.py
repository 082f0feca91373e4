"""Compares methods on the same seeds and prompts: which is better, or that the data cannot tell.

A method's figures are (S, P): S training runs, P prompts. Seeds and prompts are samples of what might have been, so
both are random effects. For method m, seed s, prompt p:

    figure = method[m] + seed[s] + own[m, s] + prompt[p] + its[m, p] + rest[m, s, p].

Two methods trained at the same seeds are compared by the difference D of their figures, from which seed[s] and
prompt[p] cancel, so that Var(mean D) = 2 Var(own)/S + Var(D over prompts)/P. Nothing cancels seed[s] where one of the
two has no seeds (the model before training; a row whose figure is the same everywhere), nor where the two were trained
at different seeds (a method under a second name): there a method has Var(seed) + Var(own), over its own S.

Prompts are many, so their variance is estimated from the pair itself, over p of the mean over s. Seeds are few: two or
three values hardly determine a variance. It is therefore pooled over the methods, from the table of means, methods by
seeds (a randomised block design; Fisher, 1935): Var(own) is its residual mean square; Var(seed) + Var(own) is the mean
of the methods' variances over seeds, a sum of the two mean squares, with Satterthwaite's degrees of freedom. Pooling
assumes that methods are about equally noisy, so a pair whose own seeds scatter more than the pool explains (F test,
1 %) is judged by its own.

The parts of seeds and prompts add up (the rest is counted twice, which is conservative). t gives p and the interval;
the square of its quantile is the mean of the squares of the two parts' quantiles, weighted by the parts (Banerjee,
1960, Sankhya 22:357), which is conservative. Satterthwaite's degrees of freedom for both parts are not where the seeds
have one or two: they told equal methods apart in up to 14 % of families of two seeds, and 8 % of three. A bootstrap
over two seeds ignores the seeds that were not drawn (its interval is too narrow by sqrt((S-1)/S) and more); it gives
one method's own interval and a second opinion: a verdict needs p below 5 % after Holm's correction over all pairs, a
bootstrap interval without 0, and `MIN_PROMPTS` prompts.

tests/compare/test_statistics.py simulates the null hypothesis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats
from statsmodels.stats.multitest import multipletests

from prefopt.compare.spec import BASE

Floats = NDArray[np.float64]
Verdict = Literal["better", "worse", "cannot_tell"]

ALPHA = 0.05  # of a whole family of comparisons
POWER = 0.8  # probability of finding a difference as large as the one observed
HETEROGENEITY = 0.01  # level at which a pair's own seed variance replaces the pooled one
RESAMPLES = 2000
# Means of shares are far from normal on fewer prompts (of ten prompts that are each won nine times in ten, a third of
# all draws has no variance at all), and a verdict claims a difference over the prompts of this data.
MIN_PROMPTS = 20
TOO_MANY = 10_000  # more seeds or prompts than anybody will run
SMALLEST = 1e-300  # of p
ROUNDING = 1e-12  # of the largest figure: standard deviations below it are zeros


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and its 95 % interval over prompts and seeds; nan where there is a single value."""

    point: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The comparison of methods a and b by one metric.

    Attributes:
        difference: mean of a minus mean of b, with its 95 % interval `low` to `high`, not corrected.
        effect: the difference in standard deviations over prompts (Cohen's d).
        p: two-sided, for a difference of 0; nan where either was trained once, or the two have one seed in common.
        p_holm: after Holm's correction over all pairs.
        verdict: on a against b, by the direction of the metric.
        seeds, prompts: how many of either, with the other as it is, would reveal a difference as large as this one four
            times in five; `TOO_MANY + 1` is more than anybody will run. None where the other is what is missing, where
            the variance is unknown, and where there is a verdict.
        together: neither alone suffices; `seeds` and `prompts` must both be raised.
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
    together: bool = False

    def describe(self) -> str:
        """Describe the verdict, with what a verdict would take where there is none."""
        needed = self.describe_needed()
        return self.verdict.replace("_", " ") + (f" ({needed})" if needed else "")

    def describe_needed(self) -> str:
        """Describe what a verdict would take: `42 seeds might`; empty where that is unknown or there is one."""
        needs = [
            f"{count:,} {name}" if count <= TOO_MANY else f"more than {TOO_MANY:,} {name}"
            for name, count in (("seeds", self.seeds), ("prompts", self.prompts))
            if count
        ]
        return f"{(' and ' if self.together else ' or ').join(needs)} might" if needs else ""


def interval(values: Floats, *, seed: int = 0) -> Interval:
    """Return the interval of the mean of (S, P) figures, by the percentile bootstrap over both (2,000 resamples)."""
    point = float(values.mean())
    if values.shape[1] < 2:
        return Interval(point=point, low=math.nan, high=math.nan)
    low, high = np.quantile(_resampled_means(values, seed), (0.025, 0.975)).tolist()
    return Interval(point=point, low=low, high=high)


def compare(
    values: Mapping[str, Floats],
    metric: str,
    *,
    better: int = 1,
    seed: int = 0,
    numbers: Mapping[str, Sequence[int]] | None = None,
    untrained: Collection[str] = (BASE,),
) -> list[Pair]:
    """Compare every pair of methods, Holm-corrected together.

    Args:
        values: (S, P) by method, on the same prompts; each prompt is an independent draw, so several records of one
            prompt must be averaged before.
        metric: its name.
        better: +1 where more is better, -1 where less is.
        seed: seeds the bootstrap.
        numbers: the seeds of a method's S runs, by which rows are paired; 0, 1, ... for a method that is missing here.
        untrained: methods whose single row involves no seed. Any other row is a training run, even a single one.
    """
    given = numbers or {}
    rows = {
        name: _Row(v, tuple(given.get(name, range(len(v)))), name not in untrained, bool(np.ptp(v) > 0))
        for name, v in values.items()
    }
    pool = _pool(list(rows.values()))
    drafts = [_draft(a, b, rows[a], rows[b], pool) for a, b in itertools.combinations(rows, 2)]
    p = np.array([draft.p for draft in drafts])
    known = np.isfinite(p)
    corrected = np.full(len(p), math.nan)
    if known.any():
        corrected[known] = multipletests(p[known], alpha=ALPHA, method="holm")[1]
    return [
        _judged(draft, float(holm), metric, better, int(known.sum()), seed)
        for draft, holm in zip(drafts, corrected, strict=True)
    ]


class _Row(NamedTuple):
    values: Floats
    numbers: tuple[int, ...]
    trained: bool
    varies: bool  # False: a constant that no seed influences, such as SFT's win rate against itself

    @property
    def seeded(self) -> bool:
        return self.trained and self.varies

    def at(self, numbers: Collection[int]) -> Floats:
        return self.values[[i for i, number in enumerate(self.numbers) if number in numbers]]


class _Variance(NamedTuple):
    """An estimated variance and its degrees of freedom; nan and 0 where there is none."""

    value: float
    freedom: float


class _Pool(NamedTuple):
    own: _Variance  # of a seed mean around the effects of method and seed
    total: _Variance  # of a seed mean around the effect of the method


def _pool(rows: Sequence[_Row]) -> _Pool:
    """Pool the seed variances over all methods; those with the same seeds form one (methods, seeds) table of means."""
    tables: dict[tuple[int, ...], list[Floats]] = {}
    for row in rows:
        if row.seeded and len(row.numbers) > 1:
            tables.setdefault(row.numbers, []).append(row.values.mean(1))
    squares: list[_Variance] = []  # sums of squares of the seeds, by table
    rest = _Variance(0.0, 0)
    count = 0
    for table in map(np.array, tables.values()):
        methods, seeds = table.shape
        centred = table - table.mean(1, keepdims=True)
        column = centred.mean(0)
        squares.append(_Variance(methods * float((column**2).sum()), seeds - 1))
        over = float(((centred - column) ** 2).sum())
        rest = _Variance(rest.value + over, rest.freedom + (methods - 1) * (seeds - 1))
        count += methods * (seeds - 1)
    total = _summed([*squares, rest])
    return _Pool(
        _Variance(rest.value / rest.freedom if rest.freedom else 0.0, rest.freedom),
        _Variance(total.value / count if count else 0.0, total.freedom),
    )


@dataclass(frozen=True, eq=False)
class _Draft:
    a: str
    b: str
    x: Floats  # (S, P) each, at the seeds that are compared
    y: Floats
    paired: bool  # rows are paired by seed
    difference: float
    of_seeds: _Variance  # parts of the squared standard error of the difference
    of_prompts: _Variance
    p: float

    def half_width(self) -> float:
        """Return half the width of the 95 % interval."""
        parts = (self.of_seeds, self.of_prompts)
        error = math.sqrt(self.of_seeds.value + self.of_prompts.value)
        return error * _quantile(parts, ALPHA) if error > 0 else error

    def effect(self) -> float:
        if self.x.shape[1] < 2:
            return math.nan
        spread = math.sqrt(sum(float(v.mean(0).var(ddof=1)) for v in (self.x, self.y)) / 2)
        return self.difference / spread if spread else math.nan

    def crosses(self, seed: int) -> bool:
        """Whether the bootstrap interval contains 0."""
        if self.paired:
            drawn = _resampled_means(self.x - self.y, seed)
        else:
            drawn = _resampled_means(self.x, seed) - _resampled_means(self.y, seed, other_seeds=True)
        low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
        return not (low > 0 or high < 0)


def _draft(a: str, b: str, one: _Row, two: _Row, pool: _Pool) -> _Draft:
    common = set(one.numbers) & set(two.numbers)
    paired = one.seeded and two.seeded and len(common) > 0
    x, y = (row.at(common) if paired else row.values for row in (one, two))
    gap = x.mean(0) - y.mean(0)
    difference = float(gap.mean())
    prompts = len(gap)
    unknown = any(row.trained and len(v) < 2 for row, v in ((one, x), (two, y)))
    of_seeds = _Variance(math.nan, 0) if unknown else _of_seeds(one, two, x, y, paired, pool)
    of_prompts = _Variance(float(gap.var(ddof=1)) / prompts if prompts > 1 else math.nan, prompts - 1)
    zero = (ROUNDING * max(float(abs(x).max()), float(abs(y).max()))) ** 2
    of_seeds, of_prompts = (_Variance(0.0, v.freedom) if v.value <= zero else v for v in (of_seeds, of_prompts))
    p = _p(difference, (of_seeds, of_prompts), prompts)
    return _Draft(a, b, x, y, paired, difference, of_seeds, of_prompts, p)


def _of_seeds(one: _Row, two: _Row, x: Floats, y: Floats, paired: bool, pool: _Pool) -> _Variance:
    """Return the part of the squared standard error of a pair that is due to its seeds."""
    if paired:
        pooled, share, own = pool.own, 2 / len(x), _of_means(x - y)
    else:
        seeded = [v for row, v in ((one, x), (two, y)) if row.seeded]
        pooled, share = pool.total, sum(1 / len(v) for v in seeded)
        own = _summed([_of_means(v) for v in seeded])
    found = _Variance(share * pooled.value, pooled.freedom)
    if found.value == 0:
        return own
    noisier = special.fdtrc(own.freedom, found.freedom, own.value / found.value) < HETEROGENEITY
    return own if noisier else found


def _of_means(values: Floats) -> _Variance:
    """Return the squared standard error, over seeds, of the mean of (S, P) figures."""
    return _Variance(float(values.mean(1).var(ddof=1)) / len(values), len(values) - 1)


def _summed(parts: Sequence[_Variance]) -> _Variance:
    """Add variances, with Satterthwaite's degrees of freedom; 1 where all are 0."""
    value = sum((part.value for part in parts), 0.0)
    weight = sum(part.value**2 / part.freedom for part in parts if part.value > 0)
    return _Variance(value, value**2 / weight if weight > 0 else 1)


def _quantile(parts: Sequence[_Variance], p: float) -> float:
    """Return what |t| exceeds with probability `p` at most: the parts' squared quantiles, weighted by the parts."""
    own = sum(part.value * float(special.stdtrit(part.freedom, p / 2)) ** 2 for part in parts if part.value > 0)
    return math.sqrt(own / sum(part.value for part in parts))


def _p(difference: float, parts: Sequence[_Variance], prompts: int) -> float:
    """Return the probability whose quantile is the difference in standard errors."""
    variance = sum(part.value for part in parts)
    if math.isnan(variance):
        return math.nan
    if difference == 0:
        return 1.0
    if variance == 0:  # the same for every prompt and seed: only the sign test is left
        return float(stats.binomtest(prompts, prompts).pvalue)
    t = abs(difference) / math.sqrt(variance)
    tails = [max(2 * float(special.stdtr(part.freedom, -t)), SMALLEST) for part in parts if part.value > 0]
    low, high = math.log(min(tails)), math.log(max(tails))

    def excess(log_p: float) -> float:
        return _quantile(parts, math.exp(log_p)) - t

    if excess(low) <= 0 or excess(high) >= 0:  # both ends are equal up to rounding
        return math.exp(high)
    return math.exp(optimize.brentq(excess, low, high, xtol=1e-9))


def _resampled_means(values: Floats, seed: int, *, other_seeds: bool = False) -> Floats:
    """Return (RESAMPLES,) means of (S, P) figures over resampled seeds and prompts.

    scipy.stats.bootstrap resamples one axis, so the two-way resampling works with counts here (Owen, 2007,
    https://doi.org/10.1214/07-AOAS122).

    Args:
        values: the figures.
        seed: seeds the draws; equal seeds draw the same seeds and prompts.
        other_seeds: draw the same prompts, but the seeds independently.
    """
    seeds, prompts = values.shape
    by_seed, by_prompt = _weights(seeds, seed, 2 if other_seeds else 0), _weights(prompts, seed, 1)
    means: Floats = ((by_seed @ values) * by_prompt).sum(1)
    return means


@lru_cache(maxsize=8)
def _weights(count: int, seed: int, stream: int) -> Floats:
    """Return (RESAMPLES, count) shares of each seed or prompt in each resample, the same for all methods."""
    rng = np.random.default_rng([seed, stream])
    return rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count


def _judged(draft: _Draft, p_holm: float, metric: str, better: int, family: int, seed: int) -> Pair:
    significant = p_holm < ALPHA and better != 0 and draft.x.shape[1] >= MIN_PROMPTS and not draft.crosses(seed)
    verdict: Verdict = "cannot_tell"
    if significant:
        verdict = "better" if draft.difference * better > 0 else "worse"
    seeds, prompts, together = (None, None, False) if significant else _needed(draft, ALPHA / max(1, family))
    half = draft.half_width()
    return Pair(
        a=draft.a, b=draft.b, metric=metric, difference=draft.difference, low=draft.difference - half,
        high=draft.difference + half, effect=draft.effect(), p=draft.p, p_holm=p_holm, verdict=verdict, seeds=seeds,
        prompts=prompts, together=together,
    )  # fmt: skip


def _needed(draft: _Draft, alpha: float) -> tuple[int | None, int | None, bool]:
    """Return the seeds (or prompts) needed for the wanted power at the first step of Holm's procedure.

    By the normal approximation the squared error of seeds and prompts together must fall to (difference /
    (z[1 - alpha/2] + z[power]))^2, a lower bound where seeds are few. Where the part of one is too large already, more
    of the other does not help: None. Where that holds for both, both must be raised by one factor: the third value.
    """
    if not math.isfinite(draft.p) or not draft.difference:
        return None, None, False
    allowed = (draft.difference / float(special.ndtri(1 - alpha / 2) + special.ndtri(POWER))) ** 2
    seeds, prompts = min((len(v) for v in (draft.x, draft.y) if len(v) > 1), default=1), draft.x.shape[1]
    of_seeds, of_prompts = draft.of_seeds.value, draft.of_prompts.value
    if prompts < MIN_PROMPTS:
        more = _times(prompts, of_prompts, allowed - of_seeds) if allowed > of_seeds else 0
        return None, max(MIN_PROMPTS, more), False
    more_seeds = _times(seeds, of_seeds, allowed - of_prompts) if allowed > of_prompts and of_seeds else None
    more_prompts = _times(prompts, of_prompts, allowed - of_seeds) if allowed > of_seeds else None
    if more_seeds is None and more_prompts is None:
        error = of_seeds + of_prompts
        return _times(seeds, error, allowed), _times(prompts, error, allowed), True
    return more_seeds, more_prompts, False


def _times(count: int, part: float, room: float) -> int:
    """Return the smallest larger count at which a part of the squared error, falling as 1 / count, fits into `room`."""
    wanted = count * part / room if room > 0 else math.inf
    return max(count + 1, math.ceil(wanted)) if wanted <= TOO_MANY else TOO_MANY + 1


def verdict_of(pairs: Sequence[Pair], a: str, b: str) -> Pair | None:
    """Find the comparison of `a` against `b`, reversed if necessary."""
    for pair in pairs:
        if (pair.a, pair.b) == (a, b):
            return pair
        if (pair.a, pair.b) == (b, a):
            return reverse(pair)
    return None


def reverse(pair: Pair) -> Pair:
    """Return the same comparison seen from the other side."""
    other: dict[Verdict, Verdict] = {"better": "worse", "worse": "better", "cannot_tell": "cannot_tell"}
    return replace(
        pair, a=pair.b, b=pair.a, difference=-pair.difference, low=-pair.high, high=-pair.low, effect=-pair.effect,
        verdict=other[pair.verdict],
    )  # fmt: skip
