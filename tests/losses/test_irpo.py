"""Proofs of `irpo`."""

from __future__ import annotations

from prefopt.testing.samples import Named
from tests.losses.hand import close, on_pair, softplus
from tests.losses.identities import Sides, identity, pairs, values
from tests.losses.trl_peer import ours, trl_dpo

NOT_TESTED = {
    "irpo at_reference": "depends on the reference's likelihood",
}


def test_irpo_by_hand() -> None:
    assert on_pair("irpo", beta=0.5, alpha=0.3) == close(softplus(-1.5) + 0.3 * 1.0)  # NLL 2 over 2 tokens


@identity("irpo(alpha=0.0) = dpo")
def test_irpo_is_dpo(seed: int) -> Sides:
    return values("irpo", pairs(seed), alpha=0.0), values("dpo", pairs(seed))


def test_irpo_parity_but_for_the_mean_of_its_likelihood_term(batch: Named) -> None:
    theirs = trl_dpo(batch, ["sigmoid", "sft"], loss_weights=[1.0, 0.5])
    per_example = float((-batch["chosen"] / batch["chosen_num_tokens"]).mean())
    per_token = float(-batch["chosen"].sum() / batch["chosen_num_tokens"].sum())
    assert ours("irpo", batch, alpha=0.5) - theirs == close(0.5 * (per_example - per_token), abs=1e-6)
