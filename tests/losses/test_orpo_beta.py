"""Proofs of `orpo_beta`."""

from __future__ import annotations

from tests.losses.hand import close, on_pair, softplus
from tests.losses.identities import Sides, identity, pairs, values
from tests.losses.test_asft import odds

NOT_TESTED = {
    "orpo_beta parity": "TRL has no beta inside the sigmoid",
}


def test_orpo_beta_by_hand() -> None:
    assert on_pair("orpo_beta", beta=2.0, lam=0.3) == close(1.0 + 0.3 * softplus(-2 * (odds(-1.0) - odds(-1.375))))


@identity("orpo_beta(beta=1.0, lam=0.1) = orpo")
def test_orpo_beta_at_beta_1_is_orpo(seed: int) -> Sides:
    return values("orpo_beta", pairs(seed), beta=1.0, lam=0.1), values("orpo", pairs(seed))
