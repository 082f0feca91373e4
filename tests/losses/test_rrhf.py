"""Proofs of `rrhf`."""

from __future__ import annotations

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import LIST, close
from tests.losses.identities import Sides, as_list, identity, pairs, values

NOT_TESTED = {
    "rrhf parity": "not in TRL",
}


def test_rrhf_by_hand() -> None:
    # best -1.25 below middle -1: 0.25; best above worst; middle above worst; NLL of the best: 5 / 4
    assert evaluate(load("rrhf", lam=2.0), **LIST) == close([2 * 0.25 + 1.25])


def test_rrhf_likelihood_is_a_mean_per_token() -> None:
    """The best has 20 tokens of -2, below the other by 1. Beside the likelihood's sum, 40, the ranking term would weigh
    40 times less than beside the authors' mean over a padded width of 40, which is 1."""
    two = {"completions": [[-40.0, -10.0]], "num_tokens": [[20, 10]], "scores": [[1.0, 0.0]]}
    assert evaluate(load("rrhf"), **two) == close([1.0 + 40 / 20])


@identity("rrhf on two completions less the likelihood of the best = re_po(gamma=0)")
def test_rrhf_on_two_completions_is_re_po(seed: int) -> Sides:
    numbers = pairs(seed)
    likelihood = numbers["chosen"] / numbers["chosen_num_tokens"]
    return values("rrhf", as_list(numbers)) + likelihood, values("re_po", numbers, gamma=0.0)
