"""Proofs of `pmpo`."""

from __future__ import annotations

import torch

from prefopt.losses.registry import load
from prefopt.plugin import Data
from prefopt.testing import evaluate
from prefopt.testing.numbers import build, call
from prefopt.testing.samples import random_numbers
from tests.losses.hand import close
from tests.losses.identities import Sides, identity, replaced, values

NOT_TESTED = {
    "pmpo parity": "not in TRL",
}


def test_pmpo_by_hand() -> None:
    items = {
        "completion": [-2.0, -5.0],
        "num_tokens": [2, 3],
        "completion_kl": [[0.25, 0.5, 0.0], [0.5, 0.25, 1.0]],
        "desirable": [True, False],
    }
    found = evaluate(load("pmpo", alpha=0.75, beta=2.0), **items)
    assert found == close([0.75 * 2 + 2 * 0.75, 0.25 * -5 + 2 * 1.75])


@identity("pmpo(alpha=1.0) where the KL is 0, on desirable items = sft times the length")
def test_pmpo_of_good_items_is_sft(seed: int) -> Sides:
    numbers = random_numbers(Data.UNPAIRED, seed=seed)
    good = replaced(
        numbers,
        desirable=torch.ones_like(numbers["desirable"]),
        completion_kl=torch.zeros_like(numbers["completion_kl"]),
    )
    demonstrations = {"chosen": numbers["completion"], "chosen_num_tokens": numbers["num_tokens"]}
    return values("pmpo", good, alpha=1.0), values("sft", demonstrations) * numbers["num_tokens"]


def test_pmpo_optimum_of_one_token() -> None:
    """pi = (beta pi_ref + alpha good - (1 - alpha) bad) / (beta + 2 alpha - 1), also with bad tokens alone."""
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    good, bad = torch.tensor([[0.2, 0.2, 0.6], [0.6, 0.3, 0.1]], dtype=torch.float64)
    for alpha, beta in ((0.5, 1.0), (0.25, 1.5), (0.0, 2.0)):
        optimum = (beta * reference + alpha * good - (1 - alpha) * bad) / (beta + 2 * alpha - 1)
        logits = optimum.log().requires_grad_()
        logp = logits.log_softmax(-1)
        kl = (reference * (reference.log() - logp)).sum().expand(6)
        numbers = {
            "completion": logp.repeat(2),
            "num_tokens": torch.ones(6, dtype=torch.int64),
            "completion_kl": kl.unsqueeze(-1),
            "desirable": torch.arange(6) < 3,
        }
        loss = load("pmpo", alpha=alpha, beta=beta)
        # Half of the KL of each label, so that it counts once beside the expectations over good and over bad tokens.
        found = call(loss, build(loss.needs, numbers | {"completion_kl": kl.unsqueeze(-1) / 2})).loss
        (found * torch.cat([good, bad])).sum().backward()
        assert logits.grad is not None
        assert logits.grad.abs().max() < 1e-12
