"""Proofs of `rpo_sft`."""

from __future__ import annotations

from tests.losses.hand import close, on_pair, softplus
from tests.losses.identities import Sides, identity, pairs, values

NOT_TESTED = {
    "rpo_sft parity": "not in TRL",
    "rpo_sft at_reference": "depends on the reference's likelihood",
}


def test_rpo_sft_by_hand() -> None:
    assert on_pair("rpo_sft", beta=0.5, eta=0.3) == close(softplus(-1.5) + 0.3 * 0.5 * 2.0)


@identity("rpo_sft(eta=0.0, beta=0.3) = dpo(beta=0.3)")
def test_rpo_sft_is_dpo(seed: int) -> Sides:
    return values("rpo_sft", pairs(seed), eta=0.0, beta=0.3), values("dpo", pairs(seed), beta=0.3)
