"""Proofs of `minor_dpo`."""

from __future__ import annotations

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import LOG2, PAIR, close, on_pair, softplus
from tests.losses.identities import Sides, identity, pairs, replaced, values
from tests.losses.step_0 import at_reference, sides_at_step_0

NOT_TESTED = {
    "minor_dpo parity": "not in TRL",
}


def test_minor_dpo_by_hand() -> None:
    assert on_pair("minor_dpo", beta=0.5) == close(softplus(-0.5))  # rho_l = -2 < 0 counts as 0
    risen = PAIR | {"rejected": [-3.0]}  # rho_l = 0.5
    assert evaluate(load("minor_dpo", beta=0.5), **risen)[0] == close(softplus(-0.5 * (1 - 0.5)))


def test_minor_dpo_at_reference() -> None:
    assert at_reference("minor_dpo") == close(LOG2)


def test_minor_dpo_leaves_the_rejected_side_alone_at_step_0() -> None:
    assert sides_at_step_0("minor_dpo") == close((-0.5, 0.0))  # relu has slope 0 at its kink


@identity("minor_dpo where rho_l > 0 = dpo")
def test_minor_dpo_above_its_kink_is_dpo(seed: int) -> Sides:
    numbers = pairs(seed)
    above = replaced(numbers, ref_rejected=numbers["rejected"] - 0.5)
    return values("minor_dpo", above), values("dpo", above)
