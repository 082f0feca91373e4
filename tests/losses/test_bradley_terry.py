"""Proofs of `bradley_terry` and `bradley_terry_margin`."""

from __future__ import annotations

import pytest
import torch

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import PAIR, close, softplus
from tests.losses.identities import Sides, identity, no_reference, pairs, replaced, values
from tests.losses.trl_peer import frozen_pairs, ours, trl_reward

SCORES = {name: PAIR[name] for name in ("chosen", "rejected", "chosen_num_tokens", "rejected_num_tokens")}


def test_bradley_terry_by_hand() -> None:
    assert evaluate(load("bradley_terry"), **SCORES) == close([softplus(-3.5)])
    assert evaluate(load("bradley_terry", centre=0.01), **SCORES) == close([softplus(-3.5) + 0.01 * 7.5**2])


def test_bradley_terry_margin_by_hand() -> None:
    with_scores = {**SCORES, "margin": [1.25]}
    assert evaluate(load("bradley_terry_margin"), **with_scores) == close([softplus(1.25 - 3.5)])
    expected = softplus(0.5 * 1.25 - 3.5) + 0.1 * 7.5**2
    assert evaluate(load("bradley_terry_margin", scale=0.5, centre=0.1), **with_scores) == close([expected])


@identity("bradley_terry = dpo(beta=1.0) on scores with a reference of 0")
def test_bradley_terry_is_dpo(seed: int) -> Sides:
    return values("bradley_terry", pairs(seed)), values("dpo", no_reference(pairs(seed)), beta=1.0)


@identity("bradley_terry_margin(scale=0.0) = bradley_terry")
def test_without_margin(seed: int) -> Sides:
    return values("bradley_terry_margin", pairs(seed), scale=0.0), values("bradley_terry", pairs(seed))


@identity("bradley_terry_margin = margin_dpo(beta=1.0) on scores with a reference of 0")
def test_margin_is_margin_dpo(seed: int) -> Sides:
    return values("bradley_terry_margin", pairs(seed)), values("margin_dpo", no_reference(pairs(seed)), beta=1.0)


@pytest.mark.parametrize("centre", [0.0, 0.01])
def test_bradley_terry_parity(centre: float) -> None:
    pytest.importorskip("trl", reason="the peers extra is not installed")
    numbers = frozen_pairs()
    expected = trl_reward(numbers, margin=False, centre=centre)
    assert ours("bradley_terry", numbers, centre=centre) == close(expected, abs=1e-9)


def test_bradley_terry_margin_parity() -> None:
    pytest.importorskip("trl", reason="the peers extra is not installed")
    gap = torch.linspace(0.1, 1.0, 5, dtype=torch.float64)
    numbers = replaced(frozen_pairs(), margin=gap)
    expected = trl_reward(numbers, margin=True, centre=0.02)
    assert ours("bradley_terry_margin", numbers, centre=0.02) == close(expected, abs=1e-9)
