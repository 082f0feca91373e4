"""Proofs of `mallows_dpo`."""

from __future__ import annotations

import math

import pytest

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import ENTROPY, LOG2, PAIR, close, softplus
from tests.losses.identities import Sides, identity, output, pairs, uniform_statistic, values
from tests.losses.step_0 import at_reference

NOT_TESTED = {
    "mallows_dpo parity": "not in TRL",
}


def test_mallows_dpo_by_hand() -> None:
    phi = -0.29 * math.log((1.5 + 0.75) / 2 / math.log(50))
    value = evaluate(load("mallows_dpo", vocab_size=50, beta=0.5), **PAIR, **ENTROPY)
    assert value == close([softplus(-0.5 * phi * 3)])


def test_mallows_dpo_scale_is_a_field() -> None:
    phi = -0.5 * math.log((1.5 + 0.75) / 2 / math.log(50))
    value = evaluate(load("mallows_dpo", vocab_size=50, beta=0.5, neg_log_dispersion_mean=0.5), **PAIR, **ENTROPY)
    assert value == close([softplus(-0.5 * phi * 3)])


@pytest.mark.parametrize(("dispersion", "phi"), [(3.45, 1.0), (3.45 / 2, 0.5)])
def test_mallows_dpo_scale_fits_llama_3(dispersion: float, phi: float) -> None:
    """Its mean of -log(H / log V) is 3.45, 1 / 0.29; a model with half of that has half of beta."""
    numbers = uniform_statistic(pairs(0), "ref_entropy", math.log(100) * math.exp(-dispersion))
    assert output("mallows_dpo", numbers, vocab_size=100).metrics["phi"].tolist() == close([phi] * 6, abs=1e-3)


def test_mallows_dpo_at_reference() -> None:
    assert at_reference("mallows_dpo", vocab_size=50) == close(LOG2)


@identity("mallows_dpo where phi = 1 = dpo")
def test_mallows_dpo_where_phi_is_1_is_dpo(seed: int) -> Sides:
    entropy = math.log(100) * math.exp(-1 / 0.29)
    sure = uniform_statistic(pairs(seed), "ref_entropy", entropy)
    return values("mallows_dpo", sure, vocab_size=100), values("dpo", sure)
