"""Proofs of `ld_dpo`."""

from __future__ import annotations

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from prefopt.testing.samples import Named
from tests.losses.hand import LOG2, TOKENS, close, softplus
from tests.losses.identities import Sides, identity, pairs, values
from tests.losses.step_0 import at_reference
from tests.losses.trl_peer import ours, trl_dpo


def test_ld_dpo_by_hand() -> None:
    rejected = -1.0 - 0.5 + 0.25 * (0 - 0.5)  # past two shared tokens, a quarter
    assert evaluate(load("ld_dpo", beta=0.5, alpha=0.25), **TOKENS) == close([softplus(-0.5 * (1.0 - rejected))])


def test_ld_dpo_at_reference() -> None:
    assert at_reference("ld_dpo") == close(LOG2)


@identity("ld_dpo(alpha=1.0) = dpo")
def test_ld_dpo_is_dpo(seed: int) -> Sides:
    return values("ld_dpo", pairs(seed), alpha=1.0), values("dpo", pairs(seed))


def test_ld_dpo_parity(batch: Named) -> None:
    theirs = trl_dpo(batch, "sigmoid", ld_alpha=0.3)
    assert ours("ld_dpo", batch, alpha=0.3) == close(theirs, abs=1e-6)
