"""Proofs of `gamma_po`."""

from __future__ import annotations

import math

import torch

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from prefopt.testing.samples import rows
from tests.losses.hand import THREE, close, sigmoid, softplus
from tests.losses.identities import Sides, identity, output, pairs, values

NOT_TESTED = {
    "gamma_po parity": "not in TRL",
}


def test_gamma_po_by_hand() -> None:
    """d = -1 + 1.375, -0.5 + 1, -1 + 1; after 20 steps the margins are the optimum, which is checked here instead."""
    loss = load("gamma_po", beta=2.0, gamma_beta_ratio=0.5, tau=1.0)
    gaps = [2 * 0.375, 2 * 0.5, 2 * 0.0]
    margins = [g + math.log(math.expm1(v)) for g, v in zip(gaps, evaluate(loss, **THREE), strict=True)]
    # gamma0 sigmoid(gamma_i - r_i) + tau log(gamma_i / gamma0) is the same for all
    level = [sigmoid(m - g) + math.log(m) for m, g in zip(margins, gaps, strict=True)]
    assert sum(margins) == close(3.0)
    assert level == close([level[0]] * 3, abs=1e-5)
    assert margins[1] > margins[0] > margins[2]  # more for wider margins


def test_gamma_po_is_the_authors_descent() -> None:
    """Two pairs, the first of the twenty steps from p = 1/2, 1/2, at tau so small that the rate is 1."""
    gap, gamma, tau = (1.0, -1.0), 2.0, 0.25
    share = [0.5, 0.5]
    for _ in range(20):
        slope = [
            gamma * 2 / (1 + math.exp(g - gamma * 2 * p)) / 2 + tau * (1 + math.log(2 * (p + 1e-10)))
            for g, p in zip(gap, share, strict=True)
        ]
        raw = [p * math.exp(-s) for p, s in zip(share, slope, strict=True)]
        share = [r / sum(raw) for r in raw]
    sides = {
        "chosen": [-1.0, -2.0],
        "rejected": [-2.0, -1.0],
        "chosen_num_tokens": [1, 1],
        "rejected_num_tokens": [1, 1],
    }
    found = evaluate(load("gamma_po", beta=1.0, gamma_beta_ratio=2.0, tau=tau), **sides)
    assert found == close([softplus(-(g - gamma * 2 * p)) for g, p in zip(gap, share, strict=True)])


@identity("gamma_po on one pair = simpo(beta=10, gamma_beta_ratio=0.4)")
def test_gamma_po_of_one_pair_is_simpo(seed: int) -> Sides:
    one = rows(pairs(seed), torch.tensor([0]))
    return values("gamma_po", one), values("simpo", one, beta=10.0, gamma_beta_ratio=0.4)


@identity("gamma_po(tau to infinity) = simpo(beta=10, gamma_beta_ratio=0.4)", tolerance=1e-6)
def test_gamma_po_with_equal_margins_is_simpo(seed: int) -> Sides:
    return values("gamma_po", pairs(seed), tau=1e9), values("simpo", pairs(seed), beta=10.0, gamma_beta_ratio=0.4)


def test_gamma_po_margins_sum_to_simpos() -> None:
    target = output("gamma_po", pairs(0)).metrics["target_margin"]
    assert float(target.mean()) == close(4.0)
