"""Proofs of `simnpo`."""

from __future__ import annotations

from tests.losses.hand import close, on_pair, softplus
from tests.losses.identities import Sides, identity, no_reference, pairs, same_length, values
from tests.losses.step_0 import sides_at_step_0

NOT_TESTED = {
    "simnpo parity": "not in TRL",
}


def test_simnpo_by_hand() -> None:
    assert on_pair("simnpo", beta=2.0, gamma=0.5) == close(softplus(2 * -1.375 + 0.5))  # 2/beta = 1


def test_simnpo_moves_only_the_rejected_side() -> None:
    chosen, rejected = sides_at_step_0("simnpo")
    assert chosen == 0
    assert rejected > 0


@identity("simnpo at lengths 1 = npo with a zero reference")
def test_simnpo_at_lengths_1_is_npo(seed: int) -> Sides:
    numbers = same_length(no_reference(pairs(seed)), 1)
    return values("simnpo", numbers, beta=0.1), values("npo", numbers)
