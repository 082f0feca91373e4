"""Proofs of `wpo`."""

from __future__ import annotations

import math

import torch

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from prefopt.testing.samples import Named
from tests.losses.hand import PAIR, close, softplus
from tests.losses.identities import Sides, identity, pairs, replaced, values
from tests.losses.trl_peer import ours, trl_dpo

NOT_TESTED = {
    "wpo at_reference": "depends on the reference's tokens",
}


def test_wpo_by_hand() -> None:
    statistics = {
        "chosen_log_sum_sq": [[-0.5, -0.75]],  # mean of log p less this: (-0.5 - 0.25) / 2
        "rejected_log_sum_sq": [[-0.5, -0.5, -0.5, -0.5]],  # -1.375 + 0.5
    }
    weight = math.exp(-0.375) * math.exp(-0.875)
    assert evaluate(load("wpo", beta=0.5), **PAIR, **statistics) == close([weight * softplus(-1.5)])
    sure = {"chosen_log_sum_sq": [[-3.0, -3.0]], "rejected_log_sum_sq": [[-3.0] * 4]}
    assert evaluate(load("wpo", beta=0.5), **PAIR, **sure) == close([softplus(-1.5)])  # min(1, ...)


@identity("wpo where tokens are as likely as sum_v p_v^2 = dpo")
def test_wpo_of_weight_1_is_dpo(seed: int) -> Sides:
    numbers = pairs(seed)
    aligned = replaced(
        numbers, chosen_log_sum_sq=numbers["chosen_token"], rejected_log_sum_sq=numbers["rejected_token"]
    )
    return values("wpo", aligned, beta=0.1), values("dpo", numbers)


def test_wpo_parity_but_for_the_min(batch: Named) -> None:
    """Theirs is w_w w_l l(z), ours min(1, w_w w_l) l(z)."""
    theirs = trl_dpo(batch, "sigmoid", use_weighting=True)
    aligned = [
        (batch[f"{side}_token"] - batch[f"{side}_log_sum_sq"]).sum(-1) / batch[f"{side}_num_tokens"]
        for side in ("chosen", "rejected")
    ]
    weight = (aligned[0] + aligned[1]).exp()
    z = 0.1 * (batch["chosen"] - batch["ref_chosen"] - batch["rejected"] + batch["ref_rejected"])
    plain = torch.log1p(torch.exp(-z))
    assert theirs == close(float((weight * plain).mean()), abs=1e-6)
    assert ours("wpo", batch, beta=0.1) == close(float((weight.clamp(max=1) * plain).mean()), abs=1e-6)
