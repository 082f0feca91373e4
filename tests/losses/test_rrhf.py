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


@identity("rrhf on two completions less the likelihood of the best = re_po(gamma=0)")
def test_rrhf_on_two_completions_is_re_po(seed: int) -> Sides:
    numbers = pairs(seed)
    likelihood = numbers["chosen"] / numbers["chosen_num_tokens"]
    return values("rrhf", as_list(numbers)) + likelihood, values("re_po", numbers, gamma=0.0)
