"""Proofs of `beta_dpo`."""

from __future__ import annotations

import math

import torch

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from prefopt.testing.numbers import build, call, to_tensor
from tests.losses.hand import THREE, close, softplus
from tests.losses.identities import Sides, identity, pairs, values

NOT_TESTED = {
    "beta_dpo parity": "not in TRL",
    "beta_dpo at_reference": "depends on its draw",
}


def test_beta_dpo_by_hand() -> None:
    # no filter, the second batch: M moves from 0.2 by 0.1 / (1 - 0.81) of the way; beta grows with the mean less M
    mean = 2.5 / 3
    moving = 0.2 + 0.1 / 0.19 * (mean - 0.2)
    beta = 0.5 * (1 + 0.6 * (mean - moving))
    expected = [softplus(-beta * delta) for delta in (3, -1, 0.5)]
    state = {"mean": torch.tensor(0.2).double(), "deviation": torch.tensor(1.0).double(), "batches": torch.tensor(1)}
    assert evaluate(load("beta_dpo", beta=0.5, keep=1.0), **THREE, state=state) == close(expected)


def test_beta_dpo_has_its_base_beta_in_the_first_batch_and_in_rewards() -> None:
    loss = load("beta_dpo", beta=0.5, keep=1.0)
    batch = build(loss.needs, {name: to_tensor(name, value) for name, value in THREE.items()})
    first = call(loss, batch)
    assert first.loss.tolist() == close([softplus(-0.5 * delta) for delta in (3, -1, 0.5)])
    later = call(loss, batch, {**loss.initial_state(), "mean": torch.tensor(-5.0).double(), "batches": torch.tensor(9)})  # type: ignore[attr-defined]
    assert later.metrics["beta"].item() > 0.5
    assert later.chosen_reward is not None
    assert later.chosen_reward.tolist() == close([0.5 * 1, 0.5 * -0.5, 0.0])


def test_beta_dpo_keeps_a_share_and_its_mean() -> None:
    batch = {key: value * 5 for key, value in THREE.items()} | {"ids": list(range(15))}
    values = evaluate(load("beta_dpo", alpha=0.0, keep=0.8), **batch)
    kept = [i for i, value in enumerate(values) if value > 0]
    assert len(kept) == 12
    plain = evaluate(load("dpo"), **batch)
    assert sum(values) / 15 == close(sum(plain[i] for i in kept) / 12)


def test_beta_dpo_draws_by_id_not_by_place() -> None:
    batch = {key: value * 5 for key, value in THREE.items()} | {"ids": list(range(15))}
    values = evaluate(load("beta_dpo"), **batch)
    backwards = evaluate(load("beta_dpo"), **{key: value[::-1] for key, value in batch.items()})
    assert values == close(backwards[::-1])


def test_beta_dpo_draws_less_often_far_from_the_mean() -> None:
    """A pair 3 deviations off has weight e^-4.5 against about 1: over 200 batches it is rarely among the kept half."""
    count = {"far": 0, "near": 0}
    for seed in range(200):
        delta = [0.0, 0.1, -0.1, 0.05, -0.05, 3.0]
        deviation = torch.tensor(delta).std().item()
        state = {
            "mean": torch.tensor(0.0, dtype=torch.float64),
            "deviation": torch.tensor(deviation / 0.9 * 0.6, dtype=torch.float64),
            "batches": torch.tensor(seed),
        }
        values = evaluate(
            load("beta_dpo", keep=0.5),
            chosen=delta,
            rejected=[0.0] * 6,
            ref_chosen=[0.0] * 6,
            ref_rejected=[0.0] * 6,
            ids=list(range(6)),
            state=state,
        )
        count["far"] += values[5] > 0
        count["near"] += values[0] > 0
    assert count["far"] < count["near"] / 3


def test_beta_dpo_draws_uniformly_in_a_batch_without_deviation() -> None:
    same = THREE | {"chosen": THREE["ref_chosen"], "rejected": THREE["ref_rejected"]}
    assert sum(evaluate(load("beta_dpo"), **same)) / 3 == close(math.log(2))


def test_beta_dpo_carries_its_moments_over() -> None:
    loss = load("beta_dpo", keep=1.0)
    batch = build(loss.needs, {name: to_tensor(name, value) for name, value in THREE.items()})
    first = call(loss, batch)
    assert first.state is not None
    assert first.state["mean"].item() == close(2.5 / 3)
    further = build(
        loss.needs, {name: to_tensor(name, value) for name, value in (THREE | {"chosen": [-1.0, -1.5, 0.0]}).items()}
    )
    second = call(loss, further, first.state)
    assert second.state is not None
    assert second.state["mean"].item() == close(2.5 / 3 + 0.1 / 0.19 * 1)
    assert second.state["batches"].item() == 2


@identity("beta_dpo(alpha=0.0, keep=1.0) = dpo")
def test_beta_dpo_is_dpo(seed: int) -> Sides:
    return values("beta_dpo", pairs(seed), alpha=0.0, keep=1.0), values("dpo", pairs(seed))
