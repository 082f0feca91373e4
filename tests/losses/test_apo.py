"""Proofs of `apo_zero`, `apo_down`."""

from __future__ import annotations

from prefopt.testing.samples import Named
from tests.losses.hand import close, on_pair, sigmoid
from tests.losses.identities import Sides, identity, pairs, values
from tests.losses.step_0 import at_reference, sides_at_step_0
from tests.losses.trl_peer import ours, trl_dpo

NOT_TESTED = {
    "apo_zero optimum": "bounded: a larger margin is always better",
    "apo_down optimum": "bounded: a larger margin is always better",
}


def test_apo_zero_by_hand() -> None:
    assert on_pair("apo_zero", beta=0.5) == close(1 - sigmoid(0.5) + sigmoid(-1.0))


def test_apo_zero_at_reference() -> None:
    assert at_reference("apo_zero") == close(1.0)


def test_apo_zero_parity(batch: Named) -> None:
    theirs = trl_dpo(batch, "apo_zero")
    assert ours("apo_zero", batch) == close(theirs, abs=1e-6)


def test_apo_down_by_hand() -> None:
    assert on_pair("apo_down", beta=0.5) == close(sigmoid(0.5) + 1 - sigmoid(1.5))


def test_apo_down_at_reference() -> None:
    assert at_reference("apo_down") == close(1.0)


def test_apo_down_leaves_the_chosen_side_alone_at_step_0() -> None:
    assert sides_at_step_0("apo_down") == close((0.0, 0.25))  # sigmoid' - sigmoid' = 0; sigmoid'(0) = 1/4


@identity("apo_down + 1 = apo_zero + 2 sigmoid(r_w) - sigmoid(r_l) + sigmoid(r_l - r_w), r = beta rho")
def test_apo_down_from_apo_zero(seed: int) -> Sides:
    numbers = pairs(seed)
    ratios = [0.1 * (numbers[side] - numbers[f"ref_{side}"]) for side in ("chosen", "rejected")]
    difference = values("apo_down", numbers) - values("apo_zero", numbers) + 1
    return difference, 2 * ratios[0].sigmoid() - ratios[1].sigmoid() + (ratios[1] - ratios[0]).sigmoid()


def test_apo_down_parity(batch: Named) -> None:
    theirs = trl_dpo(batch, "apo_down")
    assert ours("apo_down", batch) == close(theirs, abs=1e-6)
