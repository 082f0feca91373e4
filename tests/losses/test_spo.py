"""Proofs of `spo`."""

from __future__ import annotations

import math

import torch

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import close, on_pair, sigmoid
from tests.losses.identities import Sides, identity, pairs, replaced, values

NOT_TESTED = {
    "spo parity": "not in TRL",
}


def test_spo_by_hand() -> None:
    """Log-probs per token -1 and -1.375: z = 2 * (0.375 - 0.125)."""
    assert on_pair("spo", beta=2.0, gamma_beta_ratio=0.125) == close(-0.5 * sigmoid(-0.5))


def test_spo_is_least_at_a_finite_margin() -> None:
    """x sigmoid(x) has its minimum where 1 + x sigmoid(-x) = 0: -0.2784645, at x = -1.2784645."""
    z = torch.linspace(-10, 10, 20001, dtype=torch.float64)
    numbers = {"chosen": z.tolist(), "rejected": [0.0] * len(z)}
    lengths = {f"{side}_num_tokens": [1] * len(z) for side in numbers}
    found = torch.tensor(evaluate(load("spo", beta=1.0, gamma_beta_ratio=0.0), **numbers, **lengths))
    assert z[found.argmin()].item() == close(1.278, abs=1e-3)
    assert found.min().item() == close(-0.2784645, abs=1e-6)


def test_spo_bounds_simpo_as_the_abstract_says() -> None:
    for seed in range(5):
        spo, simpo = (values(name, pairs(seed), beta=2.0, gamma_beta_ratio=0.25) for name in ("spo", "simpo"))
        assert (simpo <= spo + math.log(2) + 1e-12).all()
        assert (simpo > spo).all()


@identity("spo = spo(gamma_beta_ratio=0.0) on pairs whose margin is smaller by gamma_beta_ratio")
def test_spo_shifts_the_margin(seed: int) -> Sides:
    numbers = pairs(seed)
    smaller = replaced(numbers, chosen=numbers["chosen"] - 0.32 * numbers["chosen_num_tokens"].double())
    return values("spo", numbers), values("spo", smaller, gamma_beta_ratio=0.0)
