"""Proofs of `dft`."""

from __future__ import annotations

import math

import torch

from prefopt.losses.registry import load
from prefopt.plugin import Data
from prefopt.testing import evaluate
from prefopt.testing.numbers import value_of
from prefopt.testing.samples import Named, declared, random_numbers
from tests.losses.hand import close
from tests.losses.identities import Sides, identity, values


def test_dft_by_hand() -> None:
    value = evaluate(load("dft"), chosen_token=[[-1.0, -0.5], [-2.0]])
    assert value == close([(math.exp(-1) * 1 + math.exp(-0.5) * 0.5) / 2, math.exp(-2) * 2])


@identity("dft where every token has probability 1/2 = sft / 2")
def test_dft_at_probability_half_is_half_sft(seed: int) -> Sides:
    numbers = random_numbers(Data.DEMONSTRATIONS, seed=seed)
    token = torch.where(numbers["chosen_token"] != 0, -math.log(2), 0.0).double()
    even = {"chosen_token": token, "chosen_num_tokens": numbers["chosen_num_tokens"]}
    return values("dft", even), values("sft", even) / 2


def test_dft_parity(batch: Named) -> None:
    """Theirs is a mean over the batch's tokens: ours weighted by n_i / mean(n)."""
    from prefopt.testing.peers.trl_losses import dft_loss

    one_side = {name: value for name, value in batch.items() if not name.startswith(("rejected", "ref_"))}
    theirs = dft_loss(one_side)
    loss = load("dft")
    values = value_of(loss, declared(loss.needs, {k: v for k, v in one_side.items() if "log_sum_sq" not in k}))
    weights = batch["chosen_num_tokens"] / batch["chosen_num_tokens"].double().mean()
    assert float((weights * values).mean()) == close(float(theirs), abs=1e-6)
