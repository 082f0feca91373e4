"""Proofs of `robust_dpo`."""

from __future__ import annotations

import pytest

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from prefopt.testing.samples import Named
from tests.losses.hand import LOG2, close, on_pair, softplus
from tests.losses.identities import Sides, identity, margin, pairs, swapped, values
from tests.losses.optima import SMALL, distance
from tests.losses.step_0 import at_reference
from tests.losses.trl_peer import ours, trl_dpo


def test_robust_dpo_by_hand() -> None:
    expected = (0.8 * softplus(-1.5) - 0.2 * softplus(1.5)) / 0.6
    assert on_pair("robust_dpo", beta=0.5, label_smoothing=0.2) == close(expected)


def test_robust_dpo_at_reference() -> None:
    assert at_reference("robust_dpo") == close(LOG2)


def test_robust_dpo_is_unbounded_below() -> None:
    far = {"chosen": [0.0], "ref_chosen": [-1e6], "rejected": [-1e6], "ref_rejected": [0.0]}
    assert evaluate(load("robust_dpo"), **far)[0] == close(-0.1 / 0.8 * 0.1 * 2e6)


@identity("robust_dpo(label_smoothing=0.0) = dpo")
def test_robust_dpo_is_dpo(seed: int) -> Sides:
    return values("robust_dpo", pairs(seed), label_smoothing=0.0), values("dpo", pairs(seed))


@identity("robust_dpo = dpo - epsilon / (1 - 2 epsilon) beta Delta")
def test_robust_dpo_is_dpo_less_a_linear_term(seed: int) -> Sides:
    return values("robust_dpo", pairs(seed)), values("dpo", pairs(seed)) - 0.1 / 0.8 * margin(pairs(seed), 0.1)


@identity("mean of robust_dpo over flips at rate epsilon = dpo on clean labels")
def test_robust_dpo_is_unbiased(seed: int) -> Sides:
    robust, flipped = values("robust_dpo", pairs(seed)), values("robust_dpo", swapped(pairs(seed)))
    return 0.9 * robust + 0.1 * flipped, values("dpo", pairs(seed))


def test_robust_dpo_parity(batch: Named) -> None:
    theirs = trl_dpo(batch, "robust", label_smoothing=0.1)
    assert ours("robust_dpo", batch) == close(theirs, abs=1e-6)


@pytest.mark.slow
def test_robust_dpo_undoes_flipped_labels_and_others_do_not() -> None:
    clean = SMALL.reward / 1.0
    assert distance("robust_dpo", {"beta": 1.0, "label_smoothing": 0.2}, clean, flips=0.2, world=SMALL) < 1e-4
    assert distance("dpo", {"beta": 1.0}, clean, flips=0.2, world=SMALL) > 0.05
    assert distance("cdpo", {"beta": 1.0, "label_smoothing": 0.2}, clean, flips=0.2, world=SMALL) > 0.05
