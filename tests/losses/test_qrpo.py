"""Proofs of `qrpo`."""

from __future__ import annotations

import math

import pytest
import torch

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import LIST, close
from tests.losses.identities import Sides, as_list, identity, pairs, replaced, values

NOT_TESTED = {
    "qrpo parity": "not in TRL",
    "qrpo_norm parity": "not in TRL",
}


def log_z(beta: float) -> float:
    return math.log(beta * (math.exp(1 / beta) - 1))


def test_qrpo_by_hand() -> None:
    # rho: 1, -2, 0.5; scores: middle, best, worst, so quantiles 2/3, 1, 1/3
    errors = [q - 0.5 * log_z(0.5) - 0.5 * rho for q, rho in ((2 / 3, 1.0), (1.0, -2.0), (1 / 3, 0.5))]
    assert evaluate(load("qrpo", beta=0.5), **LIST) == close([sum(e**2 for e in errors) / 3])


def test_qrpo_ties_share_the_higher_quantile() -> None:
    tied = LIST | {"scores": [[0.0, 0.0, 0.0]], "ref_completions": LIST["completions"]}
    assert evaluate(load("qrpo", beta=0.5), **tied) == close([(1 - 0.5 * log_z(0.5)) ** 2])


def test_qrpo_at_reference() -> None:
    same = LIST | {"ref_completions": LIST["completions"]}
    expected = sum((q - 0.1 * log_z(0.1)) ** 2 for q in (2 / 3, 1.0, 1 / 3)) / 3
    assert evaluate(load("qrpo", beta=0.1), **same) == close([expected])


def test_qrpo_partition_function_is_the_mean_over_uniform_quantiles() -> None:
    beta, quantiles = 0.5, torch.linspace(0, 1, 100_001, dtype=torch.float64)
    assert log_z(beta) == close(float(torch.trapezoid((quantiles / beta).exp(), quantiles).log()), abs=1e-9)


@pytest.mark.parametrize(("beta", "error"), [(0.1, 0.0), (0.2, 0.0014), (0.5, 0.0727), (1.0, 0.4587)])
def test_qrpo_needs_the_1_in_its_partition_function(beta: float, error: float) -> None:
    """Without it, as in the authors' code, beta log Z is beta log beta + 1: the same below 0.2."""
    one = {"completions": [[-1.0]], "ref_completions": [[-1.0]], "num_tokens": [[1]], "scores": [[0.0]]}
    value = evaluate(load("qrpo", beta=beta), **one)[0]  # one completion has quantile 1
    without = 1 - (beta * math.log(beta) + 1)
    assert math.sqrt(value) - without == close(error, abs=5e-5)


@identity("qrpo where rho = q/beta - log Z = 0")
def test_qrpo_vanishes_at_its_target(seed: int) -> Sides:
    numbers = as_list(pairs(seed))  # scores 1 and 0: quantiles 1 and 1/2
    target = torch.tensor([1.0, 0.5], dtype=torch.float64) / 0.25 - log_z(0.25)
    found = values("qrpo", replaced(numbers, completions=numbers["ref_completions"] + target), beta=0.25)
    return found, torch.zeros_like(found)


NORM = LIST | {"num_tokens": [[20, 5, 40]]}


def test_qrpo_norm_by_hand() -> None:
    # beta: 1/20, 1/5 cut to 0.1, 1/40; rho: 1, -2, 0.5; quantiles 2/3, 1, 1/3
    rows = ((2 / 3, 1.0, 0.05), (1.0, -2.0, 0.1), (1 / 3, 0.5, 0.025))
    errors = [q - b * log_z(b) - b * rho for q, rho, b in rows]
    assert evaluate(load("qrpo_norm", beta=1.0), **NORM) == close([sum(e**2 for e in errors) / 3])


def test_qrpo_norm_at_reference() -> None:
    same = NORM | {"ref_completions": LIST["completions"]}
    expected = sum((q - b * log_z(b)) ** 2 for q, b in ((2 / 3, 0.05), (1.0, 0.1), (1 / 3, 0.025))) / 3
    assert evaluate(load("qrpo_norm", beta=1.0), **same) == close([expected])


@identity("qrpo_norm at n tokens each = qrpo(beta/n)")
def test_qrpo_norm_divides_beta_by_the_length(seed: int) -> Sides:
    numbers = as_list(pairs(seed))
    numbers = replaced(numbers, num_tokens=torch.full_like(numbers["completions"], 50))
    return values("qrpo_norm", numbers, beta=2.0), values("qrpo", numbers, beta=0.04)
