"""Proofs of `simnpo`."""

from __future__ import annotations

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import LOG2, PAIR, close, on_pair, softplus
from tests.losses.identities import Sides, identity, no_reference, pairs, same_length, values
from tests.losses.step_0 import sides_at_step_0

NOT_TESTED = {
    "simnpo parity": "not in TRL",
}


def test_simnpo_by_hand() -> None:
    assert on_pair("simnpo", beta=2.0, gamma=0.5) == close(softplus(2 * (-1.375 + 0.5)))  # 2/beta = 1


def test_simnpo_margin_is_in_nats_per_token() -> None:
    """A log-prob per token of -gamma gives 2/beta log 2; an absolute margin would give 0.1611."""
    value = evaluate(load("simnpo", beta=2.5, gamma=1.0), **(PAIR | {"rejected": [-4.0]}))[0]
    assert value == close(2 / 2.5 * LOG2)
    assert value == close(0.5545, abs=5e-5)
    absolute = evaluate(load("simnpo", beta=2.5, gamma=1 / 2.5), **(PAIR | {"rejected": [-4.0]}))
    assert absolute == close([0.1611], abs=5e-5)


def test_simnpo_moves_only_the_rejected_side() -> None:
    chosen, rejected = sides_at_step_0("simnpo")
    assert chosen == 0
    assert rejected > 0


@identity("simnpo at lengths 1 = npo with a zero reference")
def test_simnpo_at_lengths_1_is_npo(seed: int) -> Sides:
    numbers = same_length(no_reference(pairs(seed)), 1)
    return values("simnpo", numbers, beta=0.1), values("npo", numbers)
