"""Proofs of `rainbow_po`."""

from __future__ import annotations

import math

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import ENTROPY, PAIR, close, softplus
from tests.losses.identities import Sides, identity, pairs, uniform_statistic, values

NOT_TESTED = {
    "rainbow_po parity": "not in TRL",
    "rainbow_po at_reference": "depends on the reference's margin",
}


def test_rainbow_po_by_hand() -> None:
    phi = -0.29 * math.log((1.5 + 0.75) / 2 / math.log(50))
    target = 0.25 * (-1.5 + 0.875) + 0.75 * 0.1
    value = evaluate(load("rainbow_po", vocab_size=50), **PAIR, **ENTROPY)
    assert value == close([softplus(-10 * phi * (0.375 - target))])


def test_rainbow_po_scale_is_a_field() -> None:
    plain = evaluate(load("rainbow_po", vocab_size=50, beta=2.0), **PAIR, **ENTROPY)
    scaled = load("rainbow_po", vocab_size=50, beta=1.0, neg_log_dispersion_mean=0.58)
    assert evaluate(scaled, **PAIR, **ENTROPY) == close(plain)


@identity("rainbow_po(alpha=0) where phi = 1 = simpo")
def test_rainbow_po_where_phi_is_1_is_simpo(seed: int) -> Sides:
    entropy = math.log(100) * math.exp(-1 / 0.29)
    sure = uniform_statistic(pairs(seed), "ref_entropy", entropy)
    plain = values("simpo", sure, gamma_beta_ratio=0.3)
    return values("rainbow_po", sure, vocab_size=100, alpha=0.0, beta=2.0, gamma=0.3), plain
