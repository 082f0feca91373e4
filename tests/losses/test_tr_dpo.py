"""Proofs of `tr_dpo`."""

from __future__ import annotations

from prefopt.losses.registry import load
from prefopt.testing.samples import Named
from tests.losses.hand import LOG2, close, on_pair, softplus
from tests.losses.identities import Sides, identity, pairs, values
from tests.losses.optima import SMALL, distance
from tests.losses.step_0 import at_reference
from tests.losses.trl_peer import ours, trl_dpo


def test_tr_dpo_by_hand() -> None:
    assert on_pair("tr_dpo", beta=0.5) == close(softplus(-1.5))
    assert load("tr_dpo", alpha=1.0, tau=64).reference_update == (1.0, 64)  # type: ignore[attr-defined]


def test_tr_dpo_at_reference() -> None:
    assert at_reference("tr_dpo") == close(LOG2)


@identity("tr_dpo(beta=0.3) = dpo(beta=0.3)")
def test_tr_dpo_is_dpo(seed: int) -> Sides:
    return values("tr_dpo", pairs(seed), beta=0.3), values("dpo", pairs(seed), beta=0.3)


def test_tr_dpo_parity(batch: Named) -> None:
    """The moving reference is not in the loss."""
    theirs = trl_dpo(batch, "sigmoid")
    assert ours("tr_dpo", batch, beta=0.1) == close(theirs, abs=1e-6)


def test_tr_dpo_reaches_the_optimum_of_dpo() -> None:
    assert distance("tr_dpo", {"beta": 1.0}, SMALL.reward, world=SMALL) < 1e-4
