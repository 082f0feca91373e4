"""Proofs of `bpo`."""

from __future__ import annotations

from tests.losses.hand import LOG2, close, on_pair, softplus
from tests.losses.identities import Sides, identity, pairs, replaced, values
from tests.losses.step_0 import at_reference, sides_at_step_0

NOT_TESTED = {
    "bpo parity": "not in TRL",
}


def test_bpo_by_hand() -> None:
    # rho_w = 1, rho_l = -2
    assert on_pair("bpo", beta=0.5, alpha=0.25) == close(softplus(-0.5 * 0.5))  # the rejected side lags: 0.25 * 2
    assert on_pair("bpo", beta=0.5, alpha=0.75) == close(softplus(-0.5 * 1.0))  # the chosen side lags


def test_bpo_at_reference() -> None:
    assert at_reference("bpo") == close(LOG2)


def test_bpo_splits_the_gradient_at_the_kink() -> None:
    assert sides_at_step_0("bpo", alpha=0.5) == close((-0.25, 0.125))


@identity("bpo(alpha=1.0) where rho_l = -rho_w = dpo(beta halved)")
def test_bpo_at_equal_progress_is_dpo(seed: int) -> Sides:
    numbers = pairs(seed)
    rejected = numbers["ref_rejected"] - (numbers["chosen"] - numbers["ref_chosen"])
    numbers = replaced(numbers, rejected=rejected)
    return values("bpo", numbers, alpha=1.0), values("dpo", numbers, beta=0.05)
