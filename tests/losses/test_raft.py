"""Proofs of `raft`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from prefopt.losses.registry import load
from prefopt.plugin import Data, ListLogps, Logps
from prefopt.testing import evaluate
from prefopt.testing.samples import random_numbers
from tests.losses.hand import close
from tests.losses.identities import Sides, identity, values
from tests.losses.rollouts import logits_of, world
from tests.train import own_texts, tiny
from tests.worlds.enumerable import token_log_probs

NOT_TESTED = {"raft parity": "not in TRL"}
LIST = {
    "completions": [[-2.0, -5.0, -1.5]],
    "ref_completions": [[-3.0, -3.0, -2.0]],  # rho = 1, -2, 0.5
    "num_tokens": [[2, 4, 1]],
    "scores": [[0.5, 0.4, 0.0]],
}


def test_raft_by_hand() -> None:
    assert evaluate(load("raft", beta=0.0), **LIST) == close([2.0 / 2])  # the first has the largest reward
    assert evaluate(load("raft", beta=0.1), **LIST) == close([5.0 / 4])  # r - beta rho = 0.4, 0.6, -0.05


def test_samples_that_tie_share_the_weight() -> None:
    tied = {**LIST, "scores": [[0.5, 0.2, 0.45]]}  # less 0.1 rho: 0.4, 0.4, 0.4
    assert evaluate(load("raft", beta=0.1), **tied) == close([(2.0 / 2 + 5.0 / 4 + 1.5 / 1) / 3])


def test_raft_at_reference() -> None:
    there = {**LIST, "completions": LIST["ref_completions"]}
    assert evaluate(load("raft"), **there) == close([3.0 / 2])  # the largest reward, whatever beta


@identity("raft(beta=0.0) = sft on the completion with the largest score")
def test_raft_is_sft_on_the_best(seed: int) -> Sides:
    numbers = {name: value[1:] for name, value in random_numbers(Data.LISTS, seed=seed).items()}
    best = numbers["scores"].argmax(-1, keepdim=True)
    chosen = {"chosen": numbers["completions"].gather(-1, best).squeeze(-1)}
    chosen["chosen_num_tokens"] = numbers["num_tokens"].gather(-1, best).squeeze(-1)
    return values("raft", numbers, beta=0.0), values("sft", chosen)


def test_on_own_samples_it_is_sft_on_the_best(tmp_path: Path) -> None:
    """The same texts, the same best ones, the same steps."""
    raft = own_texts.run("raft", tmp_path / "raft", loss={"beta": 0.0}, max_steps=3)
    sft = own_texts.run("sft", tmp_path / "sft", max_steps=3)
    assert raft.losses == pytest.approx(sft.losses, rel=1e-6)
    assert tiny.apart(raft.weights, sft.weights) < 1e-6


def expected_gradient(beta: float, logits: torch.Tensor) -> torch.Tensor:
    """By the logits, in expectation over two samples of the policy, by enumeration of all pairs of texts."""
    at = world()
    logits = logits.clone().requires_grad_()
    total, reference = token_log_probs(logits).sum(-1), token_log_probs(at.start).sum(-1)
    pairs = torch.cartesian_prod(torch.arange(len(total)), torch.arange(len(total)))
    batch = ListLogps(
        completions=Logps(sum=total[pairs], num_tokens=torch.full(pairs.shape, 3), ref_sum=reference[pairs]),
        scores=at.reward[pairs],
        mask=torch.ones(pairs.shape, dtype=torch.bool),
    )
    value = dataclasses.replace(load("raft"), beta=beta)(batch).loss
    (found,) = torch.autograd.grad((total.detach().exp()[pairs].prod(-1) * value).sum(), logits)
    return found


def test_the_fixed_point_is_the_optimum_of_rlhf() -> None:
    at = world()
    optimum = logits_of(at.tilted(at.reward / 0.5))
    assert float(expected_gradient(0.5, optimum).abs().max()) < 1e-12
    assert float(expected_gradient(0.0, optimum).abs().max()) > 1e-3, "the reward alone goes further"
    assert float(expected_gradient(0.5, at.start).abs().max()) > 1e-3
