"""Compares methods on the same seeds and prompts: which is better, or that the data cannot tell.

A method's figures are (S, P): S training runs, P prompts. Seeds and prompts are samples of what might have been, so
both are random effects, and the squared standard error of a difference is the sum of a part of the seeds and a part of
the prompts. Both hold their interaction, and must: the shares won by three seeds are often equal by chance, and then
nothing but the part of the prompts says how sure they are. t gives p and the interval; the square of its quantile is
the mean of the squares of the two parts' quantiles, weighted by the parts (Banerjee, 1960, Sankhya 22:357).

Seeds: every method has its own noise, so no variance is pooled (Welch, 1947): the part is the sum of the two methods'
variances over seeds, with Satterthwaite's degrees of freedom. That assumes nothing about what a seed does to both
methods alike. Where it does much, the paired test over seeds finds more; it has `PAIRED` of the error, Welch's the
rest, so that taking the better of both is honest. A row without seeds (the model before training; a figure that is the
same everywhere) has no such part, and rows of other seeds (a method under a second name) are not paired.

Prompts: the variance of the difference over prompts, after the mean over seeds. Where it is skewed towards the values
that a sample misses, t is too sure of itself; Hall's transformation (1992, JRSS B 54:221) says by how much, and only
what widens the interval is taken from it.

Better and worse need p below 5 % after Holm's correction over all pairs, and a difference of at least the smallest that
matters. A tie is equivalence: the interval, corrected alike, lies within that smallest difference on either side of 0.
All else is "cannot tell", and all on fewer than `MIN_PROMPTS` prompts. By `benchmarks/verdicts.py`, the study of errors
and power, pooled and moderated variances tell equal methods apart too often where one is noisier than the others.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats
from statsmodels.stats.multitest import multipletests

from prefopt.common.smallest_effects import Verdict, verdict
from prefopt.compare.spec import BASE

Floats = NDArray[np.float64]
Smallest = Callable[[str, str, float], float]  # of a, b and their deviation over prompts; inf: no difference matters

ALPHA = 0.05  # of a whole family of comparisons
POWER = 0.8  # probability of deciding if the difference is the one observed
PAIRED = 0.2  # share of the error that the paired test over seeds may make
# Means of skewed figures and of shares near 0 or 1 are far from normal on fewer prompts (of 20 prompts that are each
# won 19 times in 20, a third of all draws has no variance at all).
MIN_PROMPTS = 50
TOO_MANY = 10_000  # more seeds or prompts than anybody will run
ENDLESS = 1e12
SMALLEST = 1e-100  # of p
ROUNDING = 1e-12  # of the largest figure: standard deviations below it are zeros


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A row's mean and its interval: rows whose intervals do not overlap have a verdict; nan of one seed."""

    point: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The comparison of methods a and b by one metric.

    Attributes:
        difference: mean of a minus mean of b. Its 95 % interval `low` to `high` is corrected for the number of pairs as
            p is: it excludes 0 where one is better.
        effect: the difference in standard deviations over prompts (Cohen's d).
        p: two-sided, for a difference of 0; nan where either was trained once, or the two have one seed in common.
        p_holm: after Holm's correction over all pairs.
        verdict: on a against b, by the direction of the metric; a tie where its interval holds none that matters.
        seeds, prompts: how many of either, with the other as it is, would decide four times in five, if this is the
            true difference; `TOO_MANY + 1` is more than anybody will run. None where the other is what is missing,
            where the variance is unknown, and where there is a verdict.
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


class Variance(NamedTuple):
    """An estimated variance and its degrees of freedom, numbers or arrays."""

    value: Any
    freedom: Any


class Criterion(NamedTuple):
    """A test of a difference: the parts of its squared standard error, and the share of the error that it may make."""

    of_seeds: Variance
    of_prompts: Variance
    share: float

    def half_width(self, alpha: Any) -> Any:
        """Return half the width of the interval that misses with probability `alpha` times the share at most."""
        p = alpha * self.share / 2
        return sum(part.value * special.stdtrit(part.freedom, p) ** 2 for part in self[:2]) ** 0.5

    def p(self, difference: float) -> float:
        """Return the level whose half width is the difference."""
        parts = [part for part in self[:2] if part.value > 0]
        t = abs(difference) / math.sqrt(sum(part.value for part in parts))
        tails = [max(2 * float(special.stdtr(part.freedom, -t)), SMALLEST) for part in parts]
        low, high = math.log(min(tails) / self.share), math.log(max(tails) / self.share)

        def excess(log_p: float) -> float:
            return float(self.half_width(math.exp(log_p))) - abs(difference)

        if excess(low) <= 0 or excess(high) >= 0:  # both ends are equal up to rounding
            return min(1.0, math.exp(high))
        return min(1.0, math.exp(optimize.brentq(excess, low, high, xtol=1e-9)))


def criteria(x: Floats, y: Floats, *, seeded: tuple[bool, bool] = (True, True), paired: bool = True) -> list[Criterion]:
    """Return the tests of the difference of two methods, (..., S, P) figures each.

    Args:
        x, y: the figures; equal prompts stand at equal places.
        seeded: which of the two has seeds.
        paired: equal seeds stand at equal places.
    """
    zero = (ROUNDING * max(float(abs(x).max()), float(abs(y).max()))) ** 2
    of_prompts = _of_prompts(x.mean(-2) - y.mean(-2), zero)
    parts = [_of_seeds(v, zero) for v, is_seeded in zip((x, y), seeded, strict=True) if is_seeded]
    found = [Criterion(_added(parts), of_prompts, 1 - PAIRED if paired else 1.0)]
    return [*found, Criterion(_of_seeds(x - y, zero), of_prompts, PAIRED)] if paired else found


def _of_seeds(values: Floats, zero: float) -> Variance:
    """Return the squared standard error, over seeds, of the mean of (..., S, P) figures."""
    seeds = values.shape[-2]
    value = values.mean(-1).var(-1, ddof=1) / seeds
    return Variance(np.where(value <= zero, 0.0, value), seeds - 1)


def _of_prompts(gap: Floats, zero: float) -> Variance:
    """Return the squared standard error, over prompts, of the mean of (..., P) differences, widened for skew.

    With t the mean in standard deviations and g the skewness, Hall's statistic is t (1 + g t / 3 + (g t)^2 / 27), but
    for a term of order 1 / P; where it is smaller than t, the standard error is raised by their ratio, 4 at most.
    """
    prompts = gap.shape[-1]
    mean = gap.mean(-1)
    centred = gap - mean[..., None]
    square = (centred**2).mean(-1)
    value = square / (prompts - 1)
    spread = np.sqrt(np.where(value <= zero, 1.0, square))
    t = np.where(value <= zero, 0.0, mean / spread * math.sqrt((prompts - 1) / prompts))
    skew = (centred**3).mean(-1) / spread**3
    pull = np.minimum(skew * t, 0)
    ratio = 1 + pull / 3 + pull**2 / 27
    return Variance(np.where(value <= zero, 0.0, value / ratio**2), prompts - 1)


def _added(parts: Sequence[Variance]) -> Variance:
    """Add variances, with Satterthwaite's degrees of freedom; 1 where all are 0."""
    value = np.asarray(sum((part.value for part in parts), 0.0))
    weight = np.asarray(sum((part.value**2 / part.freedom for part in parts), 0.0))
    return Variance(value, np.divide(value**2, weight, out=np.ones_like(value), where=weight > 0))


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


@dataclass(frozen=True, eq=False)
class _Draft:
    a: str
    b: str
    difference: float
    spread: float  # standard deviation over prompts
    criteria: Sequence[Criterion]  # none where a variance is unknown
    p: float
    seeds: int
    prompts: int

    def half_width(self, alpha: float, seeds: float = 0, prompts: float = 0, power: float = 0.5) -> float:
        """Return the least difference that is told apart at level `alpha` with this power.

        Args:
            alpha: the level.
            seeds, prompts: how many there are, instead of those that were run.
            power: 1/2 gives half the width of the interval.
        """
        z = float(special.ndtri(power)) if power != 0.5 else 0.0
        found = []
        for of_seeds, of_prompts, share in self.criteria:
            grown = Criterion(_grown(of_seeds, self.seeds, seeds), _grown(of_prompts, self.prompts, prompts), share)
            error = math.sqrt(grown.of_seeds.value + grown.of_prompts.value)
            found.append(float(grown.half_width(alpha)) + z * error)
        return min(found, default=math.nan)


def _grown(part: Variance, count: int, wanted: float) -> Variance:
    """Return what a part of a squared error would be with `wanted` seeds or prompts instead of `count`; 0: as it is."""
    return Variance(part.value * count / wanted, part.freedom * (wanted - 1) / (count - 1)) if wanted else part


def _draft(a: str, b: str, one: _Row, two: _Row) -> _Draft:
    common = set(one.numbers) & set(two.numbers)
    paired = one.seeded and two.seeded and len(common) > 0
    x, y = (row.at(common) if paired else row.values for row in (one, two))
    known = x.shape[1] > 1 and not any(row.trained and len(v) < 2 for row, v in ((one, x), (two, y)))
    difference = float((x.mean(0) - y.mean(0)).mean())
    made = criteria(x, y, seeded=(one.seeded, two.seeded), paired=paired) if known else ()
    found = [Criterion(_plain(of_seeds), _plain(of_prompts), share) for of_seeds, of_prompts, share in made]
    seeds = min((len(v) for v in (x, y) if len(v) > 1), default=2)
    return _Draft(a, b, difference, _spread(x, y), found, _p(difference, found, x.shape[1]), seeds, x.shape[1])


def _plain(part: Variance) -> Variance:
    return Variance(float(part.value), float(part.freedom))


def _spread(x: Floats, y: Floats) -> float:
    return math.sqrt(sum(float(v.mean(0).var(ddof=1)) for v in (x, y)) / 2) if x.shape[1] > 1 else math.nan


def _p(difference: float, found: Sequence[Criterion], prompts: int) -> float:
    if not found:
        return math.nan
    if difference == 0:
        return 1.0
    if any(test.of_seeds.value + test.of_prompts.value == 0 for test in found):
        # the same for every prompt and seed: only the sign test is left
        return float(stats.binomtest(prompts, prompts).pvalue)
    return min(test.p(difference) for test in found)


def compare(
    values: Mapping[str, Floats],
    metric: str,
    *,
    smallest: Smallest | None,
    better: int = 1,
    numbers: Mapping[str, Sequence[int]] | None = None,
    untrained: Collection[str] = (BASE,),
) -> list[Pair]:
    """Compare every pair of methods, Holm-corrected together.

    Args:
        values: (S, P) by method, on the same prompts; each prompt is an independent draw, so records of one prompt, and
            near copies of a prompt, must be averaged before.
        metric: its name.
        smallest: the smallest difference that matters; None: every one does, so that nothing is a tie.
        better: +1 where more is better, -1 where less is.
        numbers: the seeds of a method's S runs, by which rows are paired; 0, 1, ... for a method that is missing here.
        untrained: methods whose single row involves no seed. Any other row is a training run, even a single one.
    """
    given = numbers or {}
    rows = {
        name: _Row(v, tuple(given.get(name, range(len(v)))), name not in untrained, bool(np.ptp(v) > 0))
        for name, v in values.items()
    }
    drafts = [_draft(a, b, rows[a], rows[b]) for a, b in itertools.combinations(rows, 2)]
    p = np.array([draft.p for draft in drafts])
    known = np.isfinite(p)
    corrected = np.full(len(p), math.nan)
    if known.any():
        corrected[known] = multipletests(p[known], alpha=ALPHA, method="holm")[1]
    family = max(1, int(known.sum()))
    steps = family - np.argsort(np.argsort(np.where(known, p, math.inf), kind="stable"), kind="stable")
    return [
        _judged(draft, float(holm), metric, better, (ALPHA / (int(step) if holm < ALPHA else family), ALPHA / family),
                smallest(draft.a, draft.b, draft.spread) if smallest is not None else 0.0)
        for draft, holm, step in zip(drafts, corrected, steps, strict=True)
    ]  # fmt: skip


def _judged(draft: _Draft, p_holm: float, metric: str, better: int, alphas: Sequence[float], least: float) -> Pair:
    """Judge by the levels of the pair's step and of the first one, and by the least difference that matters."""
    half = draft.half_width(alphas[0])  # at this level, the interval excludes 0 where Holm's procedure rejects
    judged = better != 0 and draft.prompts >= MIN_PROMPTS
    found: Verdict = verdict(draft.difference, half, least, better=better) if judged else "cannot_tell"
    missing = (None, None, False) if found != "cannot_tell" else _needed(draft, alphas[1], least)
    return Pair(
        a=draft.a, b=draft.b, metric=metric, difference=draft.difference, low=draft.difference - half,
        high=draft.difference + half, effect=draft.difference / draft.spread if draft.spread else math.nan,
        p=draft.p, p_holm=p_holm, verdict=found, seeds=missing[0], prompts=missing[1], together=missing[2],
    )  # fmt: skip


def _needed(draft: _Draft, alpha: float, least: float) -> tuple[int | None, int | None, bool]:
    """Return the seeds (or prompts) needed for the wanted power at the first step of Holm's procedure.

    Below `least` that is the power to find a tie. Where even endless seeds, or prompts, would not suffice, their number
    is None; where neither would, both are raised by one factor: the third value.
    """
    size = abs(draft.difference)
    target, power = (size, POWER) if size >= least else (least - size, (1 + POWER) / 2)
    if not math.isfinite(draft.p) or not 0 < target < math.inf:
        return None, None, False

    def enough(seeds: float, prompts: float) -> bool:
        return draft.half_width(alpha, seeds, prompts, power) <= target

    def fewest(start: int, by_seeds: float, by_prompts: float) -> int:
        counts = range(start, TOO_MANY + 1)
        return start + bisect.bisect_left(counts, True, key=lambda n: enough(n * by_seeds, n * by_prompts))

    seeds, prompts = draft.seeds, draft.prompts
    more_prompts = fewest(max(prompts + 1, MIN_PROMPTS), 0, 1) if enough(0, ENDLESS) else None
    if prompts < MIN_PROMPTS:
        return None, more_prompts or MIN_PROMPTS, False
    more_seeds = fewest(seeds + 1, 1, 0) if enough(ENDLESS, 0) else None
    if more_seeds is None and more_prompts is None:
        both = fewest(seeds + 1, 1, prompts / seeds)
        return both, min(TOO_MANY + 1, math.ceil(both * prompts / seeds)), True
    return more_seeds, more_prompts, False


def intervals(values: Mapping[str, Floats], pairs: Sequence[Pair]) -> dict[str, Interval]:
    """Return an interval for each row, such that two rows whose intervals do not overlap have a verdict.

    They are the shortest ones of which every two are together as wide as the pair's: least squares, in units of the
    narrowest interval of a row's pairs (Lawson and Hanson, 1974, chapter 23: least distance programming).
    """
    names = list(values)
    judged = [pair for pair in pairs if math.isfinite(pair.low)]
    half = dict.fromkeys(names, math.nan)
    if judged:
        member = np.array([[name in (pair.a, pair.b) for pair in judged] for name in names])
        width = np.array([(pair.high - pair.low) / 2 for pair in judged])
        untold = np.array([abs(pair.difference) * (pair.verdict == "cannot_tell") for pair in judged])
        width = np.maximum(width, untold)  # of few prompts, too, however far apart
        least = np.where(member, width, math.inf).min(1)
        scale = np.where(np.isfinite(least) & (least > 0), least, float(width.max()) or 1.0)
        system = np.vstack([member * scale[:, None], width]) / scale.max()
        target = np.append(np.zeros(len(names)), 1.0)
        rest = system @ optimize.nnls(system, target)[0] - target
        half |= {name: float(-scale[i] * rest[i] / rest[-1]) for i, name in enumerate(names) if member[i].any()}
    return {
        name: Interval(point=(mean := float(v.mean())), low=mean - half[name], high=mean + half[name])
        for name, v in values.items()
    }


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
    other: dict[Verdict, Verdict] = {"better": "worse", "worse": "better"}
    return replace(
        pair, a=pair.b, b=pair.a, difference=-pair.difference, low=-pair.high, high=-pair.low, effect=-pair.effect,
        verdict=other.get(pair.verdict, pair.verdict),
    )  # fmt: skip
