"""Proofs of `nca`, `nca_list`, `info_nca`."""

from __future__ import annotations

import math

import torch

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from prefopt.testing.samples import Named
from tests.losses.hand import LIST, LOG2, close, on_pair, softmax, softplus
from tests.losses.identities import Sides, as_list, identity, pairs, values
from tests.losses.optima import SMALL, distance
from tests.losses.step_0 import at_reference, turns_back_at
from tests.losses.trl_peer import ours, trl_dpo

NOT_TESTED = {
    "nca_list parity": "not in TRL",
    "info_nca parity": "not in TRL",
}


def test_nca_by_hand() -> None:
    assert on_pair("nca", beta=0.5) == close(softplus(-0.5) + (softplus(0.5) + softplus(-1.0)) / 2)


def test_nca_at_reference() -> None:
    assert at_reference("nca") == close(2 * LOG2)


def test_nca_turns_back_past_its_target() -> None:
    assert turns_back_at(LOG2, "nca", beta=1.0)  # beta rho_w = log 2


def test_nca_parity(batch: Named) -> None:
    theirs = trl_dpo(batch, "nca_pair")
    assert ours("nca", batch, beta=0.1) == close(theirs, abs=1e-6)


def test_nca_at_beta_1_reaches_the_distribution_of_winners() -> None:
    # q_w sigmoid(-r) = mu sigmoid(r), as q_w + q_l = 2 mu: e^r = q_w / mu = 2 p(y > mu), which is normalised
    assert distance("nca", {"beta": 1.0}, (2 * SMALL.win_rate()).log(), world=SMALL) < 1e-4


def test_nca_list_by_hand() -> None:
    target, r = softmax([0.5, 1.0, 0.0]), [0.5, -1.0, 0.25]
    attract = sum(t * softplus(-x) for t, x in zip(target, r, strict=True))
    repel = sum(softplus(x) for x in r) / 3
    assert evaluate(load("nca_list", alpha=1.0, beta=0.5), **LIST) == close([attract + repel])


def test_nca_list_at_reference() -> None:
    assert at_reference("nca_list") == close(2 * LOG2)


@identity("nca_list on two completions, one-hot target = nca")
def test_nca_list_on_two_completions_is_nca(seed: int) -> Sides:
    return values("nca_list", as_list(pairs(seed)), alpha=1e-3), values("nca", pairs(seed))


def test_nca_list_at_the_authors_temperature() -> None:
    """At alpha 1e-4 the 0.01 that their code adds to the first score makes the target of a tie one-hot."""
    tie = as_list(pairs(0)) | {"scores": torch.tensor([[0.01, 0.0]], dtype=torch.float64).repeat(6, 1)}
    assert values("nca_list", tie, alpha=1e-4).tolist() == close(values("nca", pairs(0)).tolist())


def test_info_nca_by_hand() -> None:
    target, p = softmax([0.5, 1.0, 0.0]), softmax([0.5, -1.0, 0.25])
    expected = -sum(t * math.log(q) for t, q in zip(target, p, strict=True))
    assert evaluate(load("info_nca", alpha=1.0, beta=0.5), **LIST) == close([expected])


def test_info_nca_at_reference() -> None:
    assert at_reference("info_nca") == close(math.log(4))


@identity("info_nca on two completions, one-hot target = dpo")
def test_info_nca_on_two_completions_is_dpo(seed: int) -> Sides:
    return values("info_nca", as_list(pairs(seed)), alpha=1e-3, beta=0.1), values("dpo", pairs(seed))


def test_info_nca_reaches_the_optimum_of_dpo() -> None:
    assert distance("info_nca", {"beta": 1.0, "alpha": 1.0}, SMALL.reward, world=SMALL) < 1e-4
