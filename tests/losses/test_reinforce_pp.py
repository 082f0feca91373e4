"""Proofs of `reinforce_pp`."""

from __future__ import annotations

import math

import torch

from prefopt.losses.registry import load
from prefopt.plugin import Data
from prefopt.testing import evaluate
from prefopt.testing.numbers import build, call, whole
from prefopt.testing.samples import at_reference, declared, random_numbers
from tests.losses.hand import close
from tests.losses.identities import Sides, identity, values
from tests.losses.rollouts import just_drawn, population_gradient, true_gradient, world

NOT_TESTED = {"reinforce_pp parity": "not in TRL"}


def test_reinforce_pp_by_hand() -> None:
    # Two texts of 2 tokens and 1; rho_old (1, -1) and (2); r = 1 and 0, beta = 0.5: G = 1, 1.5 and -1.
    # Mean 0.5, squares 0.25 + 1 + 2.25 = 3.5, deviation sqrt(3.5 / 2); at the sampling policy every ratio is 1.
    token = torch.tensor([[[-1.0, -2.0], [-1.0, 0.0]]], dtype=torch.float64)
    reference = torch.tensor([[[-2.0, -1.0], [-3.0, 0.0]]], dtype=torch.float64)
    numbers = {
        "completions_token": token,
        "old_completions_token": token,
        "ref_completions_token": reference,
        "num_tokens": torch.tensor([[2, 1]]),
        "scores": torch.tensor([[1.0, 0.0]], dtype=torch.float64),
    }
    assert evaluate(load("reinforce_pp", beta=0.5), **numbers) == close([0.0], abs=1e-7)  # whitened: they sum to 0
    moved = {**numbers, "completions_token": token + torch.tensor([[[0.1, 0.0], [0.0, 0.0]]], dtype=torch.float64)}
    expected = -(math.exp(0.1) - 1) * 0.5 / math.sqrt(1.75) / 3
    assert evaluate(load("reinforce_pp", beta=0.5), **moved) == close([expected], rel=1e-6)


def test_reinforce_pp_at_reference() -> None:
    """The means over lists differ; that of the rollout, over its tokens, is 0."""
    loss = load("reinforce_pp")
    numbers = declared(loss.needs, at_reference(random_numbers(Data.LISTS, seed=3)))
    batch = whole(loss, build(loss.needs, numbers))
    assert float(call(loss, batch).loss.mean()) == close(0.0, abs=1e-9)


@identity("reinforce_pp of rewards + 1 = reinforce_pp")
def test_a_constant_added_to_all_rewards_changes_nothing(seed: int) -> Sides:
    numbers = just_drawn(seed)
    return values("reinforce_pp", {**numbers, "scores": numbers["scores"] + 1}), values("reinforce_pp", numbers)


def test_reinforce_pp_gives_the_direction_of_the_true_gradient() -> None:
    """On a rollout of every text once, where all are equally likely, whitening included."""
    at = world()
    found = population_gradient("reinforce_pp", at, beta=0.3)
    true = true_gradient(at, torch.zeros_like(at.start), 0.3)
    torch.testing.assert_close(found / found.norm(), true / true.norm(), rtol=0, atol=1e-10)
