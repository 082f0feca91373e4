"""Reward at matched KL, its intervals, and the yardsticks that need no training."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.compare.frontier import Runs, at_matched_kl, best_of_n, interpolate, matched, tilt
from prefopt.compare.statistics import compare
from tests.worlds.enumerable import make_world


def runs(
    slope: float, *, kl: tuple[float, ...] = (0.25, 1.0, 2.25, 4.0), noise: float = 0.0, seed: int = 0, seeds: int = 3
) -> Runs:
    """Runs whose reward is slope * sqrt(KL), with noise of prompts that methods share and noise of their own."""
    rng = np.random.default_rng(7)
    shape = (seeds, len(kl), 200)
    shared = rng.normal(0, noise, 200)
    shared -= shared.mean()
    own = np.random.default_rng(seed).normal(0, noise / 4, shape)
    distance = np.broadcast_to(np.array(kl)[None, :, None], shape)
    return Runs(slope * np.sqrt(distance) + shared + own, distance.copy())


def test_interpolation_by_hand() -> None:
    kl, reward = np.array([4.0, 1.0, 2.25]), np.array([2.0, 1.0, 1.5])  # reward is the square root of KL
    # between 1 and 4 the straight line in sqrt(KL); nothing beyond
    found = interpolate(kl, reward, [0.5, 1.0, 1.44, 4.0, 4.1])
    assert found == pytest.approx([math.nan, 1.0, 1.2, 2.0, math.nan], nan_ok=True)
    # two points of one KL count as their mean; a single KL is no curve; what is not finite is left out
    assert interpolate(np.array([1.0, 1.0, 4.0]), np.array([0.0, 2.0, 2.0]), [1.0]) == pytest.approx([1.0])
    assert np.isnan(interpolate(np.array([1.0, 1.0]), np.array([0.0, 2.0]), [1.0])).all()
    nearly_flat = np.array([0.0, 0.0, 2e-311])
    assert interpolate(np.array([1.0, 2.0, 3.0]), nearly_flat, [1.0]) == pytest.approx([0.0])
    assert interpolate(np.array([1.0, np.nan, 4.0]), np.array([1.0, 5.0, 2.0]), [4.0]) == pytest.approx([2.0])


@given(st.lists(st.tuples(st.floats(0.01, 20), st.floats(-3, 4)), min_size=2, max_size=8), st.floats(0.01, 20))
def test_interpolation_stays_between_neighbours(points: list[tuple[float, float]], at: float) -> None:
    kl, reward = (np.array(values) for values in zip(*points, strict=True))
    value = interpolate(kl, reward, [at])[0]
    if np.isnan(value):
        return
    assert reward.min() - 1e-9 <= value <= reward.max() + 1e-9


def test_reward_at_matched_kl() -> None:
    found = at_matched_kl(runs(1.0, noise=0.4), (0.1, 1.44, 3.5, 9.0), resamples=300)
    assert [math.isnan(row.value) for row in found] == [True, False, False, True]
    assert [row.covered for row in found] == [0, 1, 1, 0]
    for row in found[1:3]:
        assert row.low < math.sqrt(row.kl) < row.high
        assert row.low < row.value < row.high
    # 200 prompts of standard deviation 0.4: an interval of about 4 * 0.4 / sqrt(200)
    assert found[1].high - found[1].low == pytest.approx(4 * 0.4 / math.sqrt(200), rel=0.3)


def test_matched_rewards_by_hand() -> None:
    """Between KL 1 and 4 the square root goes from 1 to 2: at KL 2.25 half of either point, by seed and prompt."""
    reward = np.array([[[0.0, 2.0], [4.0, 8.0]], [[1.0, 1.0], [3.0, 5.0]]])  # two seeds, two strengths, two prompts
    kl = np.broadcast_to(np.array([1.0, 4.0])[None, :, None], reward.shape)
    assert matched(Runs(reward, kl), 2.25) == pytest.approx(np.array([[2.0, 5.0], [2.0, 3.0]]))
    # the second seed's far point is nearer: at KL 2.25 it is that point
    nearer = kl.copy()
    nearer[1, 1] = 2.25
    assert matched(Runs(reward, nearer), 2.25) == pytest.approx(np.array([[2.0, 5.0], [3.0, 5.0]]))
    assert matched(Runs(reward, nearer), 3.0) is None  # a seed that does not reach so far
    assert matched(Runs(reward, kl), 0.5) is None
    with pytest.raises(ValueError, match="must both be"):
        Runs(np.zeros((3, 4, 5)), np.zeros((3, 4, 6)))


def test_matched_rewards_are_compared_in_pairs() -> None:
    """What prompts have in common cancels: a difference of 0.1 is told where each interval is 0.11 wide."""
    methods = {"a": runs(1.0, noise=0.4, seed=1), "b": runs(1.1, noise=0.4, seed=2), "c": runs(1.0, noise=0.4, seed=3)}
    values = {name: found for name, one in methods.items() if (found := matched(one, 1.0)) is not None}
    pairs = compare(values, "true_reward", smallest=None)
    verdicts = {(pair.a, pair.b): pair.verdict for pair in pairs}
    assert verdicts == {("a", "b"): "worse", ("a", "c"): "cannot_tell", ("b", "c"): "better"}
    assert pairs[0].difference == pytest.approx(-0.1, abs=0.03)


def test_an_end_that_resamples_leave_is_not_quoted() -> None:
    """At its own end, a curve covers a KL in about half of the resamples."""
    rng = np.random.default_rng(0)
    kl = np.array([1.0, 2.0])[None, :, None] + rng.normal(0, 0.3, (3, 2, 50))
    (row,) = at_matched_kl(Runs(kl.copy(), kl), (float(kl[:, 1].mean()),), resamples=300)
    assert 0.3 < row.covered < 0.7
    assert math.isnan(row.value)


def test_best_of_n_by_hand() -> None:
    """Half the texts earn 1, half 0: the best of two earns 1 three times in four."""
    (one, two) = best_of_n(np.tile([0.0, 1.0], (5, 200)), [1, 2])
    assert (one.kl, one.reward, one.bound) == pytest.approx((0, 0.5, 0))
    assert two.reward == pytest.approx(0.75)
    assert two.kl == pytest.approx(0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert two.bound == pytest.approx(math.log(2) - 1 / 2)
    assert two.kl < two.bound
    assert two.reward_se == 0
    # 400 samples, weights 1.5 and 0.5 in equal parts: (sum)^2 / sum of squares = 400 / 1.25
    assert two.effective == pytest.approx(320)


def test_best_of_n_without_ties_reaches_its_bound() -> None:
    rewards = np.random.default_rng(0).normal(size=(20, 4000))
    for point in best_of_n(rewards, [2, 4, 8, 16]):
        assert point.kl == pytest.approx(point.bound, rel=0.02)


def test_tilt_by_hand() -> None:
    (point,) = tilt(np.tile([0.0, 1.0], (5, 200)), [1.0])
    q = math.e / (1 + math.e)
    assert point.reward == pytest.approx(q)
    assert point.kl == pytest.approx(q * math.log(2 * q) + (1 - q) * math.log(2 * (1 - q)))


def test_nothing_beats_the_tilt() -> None:
    rewards = np.random.default_rng(1).normal(size=(64, 2000))
    best = best_of_n(rewards, [2, 4, 8])
    kl, reward = zip(*((p.kl, p.reward) for p in tilt(rewards, [4.0, 2.0, 1.0, 0.7, 0.5])), strict=True)
    on_tilt = interpolate(np.array(kl), np.array(reward), [p.kl for p in best])
    assert (on_tilt > [p.reward for p in best]).all()


def test_yardsticks_of_too_few_samples_are_not_given() -> None:
    rewards = np.random.default_rng(2).normal(size=(10, 64))
    assert [p.setting for p in best_of_n(rewards, [2, 32])] == [2]
    assert tilt(rewards, [0.05]) == []


def test_yardsticks_of_samples_against_the_enumerable_world() -> None:
    """Every text of the enumerable world is known, so that both policies are, exactly; samples give them to noise.

    Standard errors at 40,000 samples: of the rewards below 0.01, of the KL about as much; six of them.
    """
    world = make_world(3)
    p, reward = world.reference.exp().numpy(), world.reward.numpy()
    drawn = np.random.default_rng(0).choice(reward, size=(4, 10_000), p=p / p.sum())
    for point in tilt(drawn, [2.0, 1.0]):
        q = world.tilted(world.reward / point.setting).numpy()
        assert point.reward == pytest.approx(q @ reward, abs=0.06)
        assert point.kl == pytest.approx((q * np.log(q / p)).sum(), abs=0.06)
    rising = np.argsort(reward)
    cumulative = np.cumsum(p[rising])
    for point in best_of_n(drawn, [2, 4]):
        q = np.diff(np.concatenate(([0.0], cumulative / cumulative[-1])) ** point.setting)
        assert point.reward == pytest.approx(q @ reward[rising], abs=0.06)
        assert point.kl == pytest.approx((q * np.log(q / p[rising])).sum(), abs=0.06)
        assert point.kl < point.bound  # texts are few, so the best of several is often drawn twice
