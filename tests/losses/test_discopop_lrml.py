"""Proofs of `discopop_lrml`."""

from __future__ import annotations

import math

import pytest

from prefopt.losses.discopop_lrml import DiscoPOPLRML
from prefopt.testing.samples import Named
from tests.losses.hand import LOG2, close, on_pair, sigmoid, softplus
from tests.losses.identities import Sides, identity, pairs, replaced, values
from tests.losses.step_0 import at_reference, slope
from tests.losses.trl_peer import ours, trl_dpo


def test_discopop_lrml_by_hand() -> None:
    blend = sigmoid(1.5 / 0.5)
    expected = (1 - blend) * softplus(-1.5) + blend * math.exp(-1.5)
    assert on_pair("discopop_lrml", beta=0.5, tau=0.5) == close(expected)


def test_discopop_lrml_at_reference() -> None:
    assert at_reference("discopop_lrml") == close((1 + LOG2) / 2)


def test_discopop_lrml_rises_at_step_0() -> None:
    # L'(0) = -1/2 * 1/2 - (log 2)/(4 tau) + 1/(4 tau) - 1/2 = -3/4 + (1 - log 2)/(4 tau)
    assert slope(DiscoPOPLRML()) == pytest.approx(-0.75 + (1 - LOG2) / (4 * 0.05))
    assert slope(DiscoPOPLRML()) == pytest.approx(0.784, abs=5e-4)


@pytest.mark.parametrize(("z_over_tau", "rises"), [(-2.40, False), (-2.34, True), (1.41, True), (1.47, False)])
def test_discopop_lrml_rises_between_two_margins(z_over_tau: float, rises: bool) -> None:
    loss = DiscoPOPLRML()
    assert (slope(loss, z_over_tau * loss.tau / loss.beta) > 0) is rises


@identity("discopop_lrml where z < -40 tau = dpo")
def test_discopop_lrml_at_low_margins_is_dpo(seed: int) -> Sides:
    numbers = pairs(seed)
    worse = replaced(numbers, chosen=numbers["chosen"] - 60)
    return values("discopop_lrml", worse), values("dpo", worse, beta=0.05)


def test_discopop_lrml_parity(batch: Named) -> None:
    theirs = trl_dpo(batch, "discopop")
    assert ours("discopop_lrml", batch, beta=0.1) == close(theirs, abs=1e-6)
