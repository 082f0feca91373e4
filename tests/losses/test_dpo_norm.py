"""Proofs of `dpo_norm`."""

from __future__ import annotations

from prefopt.testing.samples import Named
from tests.losses.hand import LOG2, close, on_pair, softplus
from tests.losses.identities import Sides, identity, no_reference, pairs, values
from tests.losses.step_0 import at_reference
from tests.losses.trl_peer import ours, trl_dpo


def test_dpo_norm_by_hand() -> None:
    assert on_pair("dpo_norm", beta=2.0) == close(softplus(-2 * (0.5 + 0.5)))


def test_dpo_norm_at_reference() -> None:
    assert at_reference("dpo_norm") == close(LOG2)


@identity("dpo_norm with a zero reference = simpo(gamma_beta_ratio=0)")
def test_dpo_norm_without_a_reference_is_simpo(seed: int) -> Sides:
    numbers = no_reference(pairs(seed))
    return values("dpo_norm", numbers, beta=2.0), values("simpo", numbers, gamma_beta_ratio=0.0)


def test_dpo_norm_parity(batch: Named) -> None:
    theirs = trl_dpo(batch, "sigmoid_norm", beta=0.7)
    assert ours("dpo_norm", batch, beta=0.7) == close(theirs, abs=1e-6)
