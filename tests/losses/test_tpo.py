"""Proofs of `tpo`, `tpo_l`."""

from __future__ import annotations

import pytest

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from prefopt.testing.samples import Named
from tests.losses.hand import LIST, close, softplus
from tests.losses.identities import Sides, identity, pairs, triples, values
from tests.losses.trl_peer import ours, trl_tpo, with_gold


def test_tpo_by_hand() -> None:
    # gold is the second of the record, chosen the first, rejected the last
    expected = softplus(-0.5 * (-2.0 + 1.5)) + 0.3 * 1.25
    assert evaluate(load("tpo", beta=0.5, alpha=0.3), **LIST) == close([expected])


def test_tpo_needs_three() -> None:
    two = {"completions": [[-1.0, -2.0]], "num_tokens": [[1, 1]], "scores": [[1.0, 0.0]]}
    with pytest.raises(ValueError, match="at least 3"):
        evaluate(load("tpo"), **two)


@identity("tpo(alpha=0) = cpo(alpha=0)")
def test_tpo_without_gold_is_cpo(seed: int) -> Sides:
    return values("tpo", triples(seed), alpha=0.0, beta=0.1), values("cpo", pairs(seed), alpha=0.0)


def test_tpo_parity(batch: Named) -> None:
    assert ours("tpo", with_gold(batch), beta=0.5, alpha=0.7) == close(trl_tpo(batch, "sigmoid"), abs=1e-6)


def test_tpo_l_by_hand() -> None:
    expected = softplus(-(2 * (-1.0 + 1.5) - 0.5)) + 0.3 * 1.25
    assert evaluate(load("tpo_l", beta=2.0, alpha=0.3, gamma=0.5), **LIST) == close([expected])


def test_tpo_l_defaults_are_those_of_llama_3_base() -> None:
    """beta 0.01, alpha 1, gamma 0.5."""
    assert evaluate(load("tpo_l"), **LIST) == close([softplus(-(0.01 * (-1.0 + 1.5) - 0.5)) + 1.25])


@identity("tpo_l(alpha=0) = alpha_po(alpha=0)")
def test_tpo_l_without_gold_is_alpha_po(seed: int) -> Sides:
    plain = values("alpha_po", pairs(seed), alpha=0.0, beta=2.0, gamma_beta_ratio=0.25)
    return values("tpo_l", triples(seed), alpha=0.0, beta=2.0, gamma=0.5), plain


def test_tpo_l_parity(batch: Named) -> None:
    assert ours("tpo_l", with_gold(batch), beta=0.5, alpha=0.7) == close(trl_tpo(batch, "tpo-l"), abs=1e-6)
