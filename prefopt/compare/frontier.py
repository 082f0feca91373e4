"""Compares the reward of methods at matched KL, beside yardsticks that need no training.

Points are the ends of whole runs at different strengths, never checkpoints of one run: a run that is stopped early has
not annealed its learning rate, and is worse at the same KL for that reason alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

Floats = NDArray[np.float64]

KLS = (0.5, 1.0, 2.0, 3.5)  # nats at which methods are compared
MIN_COVERED = 0.9  # share of resamples that must reach a KL for its reward to be given
MIN_EFFECTIVE = 20.0  # effective samples per prompt that a reweighted estimate needs to be given
RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class Runs:
    """The finished runs of one method: S seeds, K strengths, P prompts; seeds and prompts are the same for all methods.

    Attributes:
        reward: (S, K, P) mean true reward for each prompt.
        kl: (S, K, P) mean KL to the start for each prompt, in nats.
    """

    reward: Floats
    kl: Floats

    def __post_init__(self) -> None:
        if self.reward.ndim != 3 or self.reward.shape != self.kl.shape:
            raise ValueError(
                f"reward {self.reward.shape} and kl {self.kl.shape} must both be (seeds, strengths, prompts)"
            )

    def points(self) -> tuple[Floats, Floats]:
        """Return (K,) KL and (K,) reward, averaged over seeds and prompts."""
        return self.kl.mean((0, 2)), self.reward.mean((0, 2))


@dataclass(frozen=True, kw_only=True)
class AtKL:
    """A method's reward at one KL; all nan where it is not covered.

    Attributes:
        kl: in nats.
        value: the reward of the runs themselves.
        low, high: the 95 % percentile interval over resampled prompts and seeds.
        covered: the share of resamples whose points enclose this KL.
    """

    kl: float
    value: float
    low: float
    high: float
    covered: float


def interpolate(kl: Floats, reward: Floats, at: Sequence[float]) -> Floats:
    """Interpolate the reward at each KL of `at` between measured points; nan outside, nothing is extrapolated.

    Monotone between neighbours (PCHIP; Fritsch and Carlson, 1980, https://doi.org/10.1137/0717021), in the square root
    of KL, in which reward is nearly linear at first (Gao et al., 2023, https://arxiv.org/abs/2210.10760). Between two
    points it never leaves their range. Where points with more KL have less reward it falls with them: overshoot is
    shown if those points are given. A caller that leaves beaten points out, as the page of a comparison does, gets nan.

    Args:
        kl, reward: (K,) points in any order; points with the same KL count as their mean.
        at: KLs in nats.
    """
    finite = np.isfinite(kl) & np.isfinite(reward)
    x, inverse = np.unique(np.sqrt(np.maximum(kl[finite], 0)).round(6), return_inverse=True)
    if len(x) < 2:
        return np.full(len(at), np.nan)
    y = np.bincount(inverse, reward[finite]) / np.bincount(inverse)
    with np.errstate(over="ignore"):  # a slope near 0 has an infinite inverse, whose inverse is right again
        found: Floats = PchipInterpolator(x, y, extrapolate=False)(np.sqrt(np.asarray(at, dtype=np.float64)))
    return found


def _resampled(runs: Runs, at: Sequence[float], resamples: int, seed: int) -> Floats:
    """Return (resamples, len(at)) rewards at matched KL over resampled prompts and seeds, nan where not covered."""
    seeds, _, prompts = runs.reward.shape
    rng = np.random.default_rng(seed)
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    by_prompt = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples) / prompts
    kl, reward = (np.einsum("skp,bs,bp->bk", x, by_seed, by_prompt, optimize=True) for x in (runs.kl, runs.reward))
    return np.stack([interpolate(k, r, at) for k, r in zip(kl, reward, strict=True)])


def at_matched_kl(runs: Runs, at: Sequence[float] = KLS, *, resamples: int = RESAMPLES, seed: int = 0) -> list[AtKL]:
    """Return the reward at each KL, with bootstrap intervals over prompts and seeds.

    With few seeds, their part of the interval is too narrow by a factor sqrt((S - 1) / S). Compare two methods with
    `matched`, not by whether their intervals overlap.
    """
    drawn = _resampled(runs, at, resamples, seed)
    summaries = []
    for target, point, column in zip(at, interpolate(*runs.points(), at).tolist(), drawn.T, strict=True):
        finite = column[np.isfinite(column)]
        covered = len(finite) / len(column)
        low, high = np.quantile(finite, (0.025, 0.975)).tolist() if len(finite) else (np.nan, np.nan)
        if not np.isfinite(point) or covered < MIN_COVERED:
            point, low, high = np.nan, np.nan, np.nan
        summaries.append(AtKL(kl=target, value=point, low=low, high=high, covered=covered))
    return summaries


def matched(runs: Runs, kl: float) -> Floats | None:
    """Return (S, P) rewards at one KL, to compare with those of another method (`prefopt.compare.statistics.compare`).

    Each seed is interpolated on its own frontier, linearly in the square root of KL between the two points that enclose
    this KL, with the same weights for all of its prompts.

    Returns:
        None where a seed's points do not enclose this KL.
    """
    found = []
    for reward, distance in zip(runs.reward, np.sqrt(np.maximum(runs.kl.mean(2), 0)), strict=True):
        order = np.argsort(distance)
        above = int(np.searchsorted(distance[order], np.sqrt(kl)))
        if above == 0 or above == len(order):
            return None
        low, high = order[above - 1], order[above]
        share = (np.sqrt(kl) - distance[low]) / (distance[high] - distance[low])
        found.append((1 - share) * reward[low] + share * reward[high])
    return np.stack(found)


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """A point of a curve that needs no training.

    Attributes:
        setting: n of best-of-n, or the temperature of the tilt.
        kl: measured KL to the sampled model, in nats.
        reward, reward_se: the mean over prompts and its standard error.
        bound: the bound on the KL of best-of-n; nan for the tilt.
        effective: effective samples per prompt, (sum w)^2 / sum w^2, averaged over prompts.
    """

    setting: float
    kl: float
    reward: float
    reward_se: float
    bound: float
    effective: float


def best_of_n(rewards: Floats, sizes: Sequence[int]) -> list[Yardstick]:
    """Return the best-of-n policies of the model that wrote the samples, with their exact KL.

    A text with reward r is the best of n with probability pi(text) * (F(r)^n - F(r-)^n) / P(r), where F is the
    distribution of rewards for its prompt and P(r) the share of that reward. The ratio depends on r alone, so the KL is
    the sum over r of q log(q / P), q = F(r)^n - F(r-)^n, which samples give. It is at most log n - (n - 1) / n (Beirami
    et al., 2024, https://arxiv.org/abs/2401.01879), with equality without ties.

    Args:
        rewards: (P, N) exact rewards of N samples for each of P prompts, N well above the largest n.
        sizes: values of n; those that leave fewer than 20 effective samples are left out.
    """
    points = []
    for n in sizes:
        found = np.array([_best_of(row, n) for row in rewards])
        points.append(_yardstick(float(n), found, float(np.log(n) - (n - 1) / n)))
    return [point for point in points if point.effective >= MIN_EFFECTIVE]


def _best_of(row: Floats, n: int) -> tuple[float, float, float]:
    levels, counts = np.unique(row, return_counts=True)
    share = counts / len(row)
    cumulative = np.minimum(np.cumsum(share), 1.0)
    mass = cumulative**n - np.concatenate(([0.0], cumulative[:-1])) ** n
    mass /= mass.sum()
    there = mass > 0
    kl = float((mass[there] * np.log(mass[there] / share[there])).sum())
    return kl, float(mass @ levels), float(len(row) / (mass**2 / share).sum())


def tilt(rewards: Floats, temperatures: Sequence[float]) -> list[Yardstick]:
    """Return the policies pi * exp(reward / temperature) / Z, which have the most reward at their KL, by reweighting.

    Args:
        rewards: (P, N) exact rewards of N samples for each of P prompts.
        temperatures: in units of reward; those that leave fewer than 20 effective samples are left out.
    """
    points = []
    for temperature in temperatures:
        log_weight = (rewards - rewards.max(1, keepdims=True)) / temperature
        weight = np.exp(log_weight)
        weight /= weight.sum(1, keepdims=True)
        kl = (weight * np.log(np.maximum(weight, 1e-300) * rewards.shape[1])).sum(1)
        found = np.stack([kl, (weight * rewards).sum(1), 1 / (weight**2).sum(1)], axis=1)
        points.append(_yardstick(temperature, found, float("nan")))
    return [point for point in points if point.effective >= MIN_EFFECTIVE]


def _yardstick(setting: float, found: Floats, bound: float) -> Yardstick:
    kl, reward, effective = found.mean(0).tolist()
    error = float(found[:, 1].std(ddof=1) / np.sqrt(len(found)))
    return Yardstick(setting=setting, kl=kl, reward=reward, reward_se=error, bound=bound, effective=effective)
