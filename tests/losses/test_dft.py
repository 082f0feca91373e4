"""Proofs of `dft`."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace

import torch

from prefopt.losses.registry import load
from prefopt.plugin import Data
from prefopt.testing import evaluate
from prefopt.testing.numbers import value_of
from prefopt.testing.samples import Named, declared, random_numbers
from tests.losses.hand import close
from tests.losses.identities import Sides, identity, values
from tests.losses.trl_peer import TOKENS


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
    from trl import SFTTrainer

    one_side = {name: value for name, value in batch.items() if not name.startswith(("rejected", "ref_"))}
    inside = torch.arange(TOKENS) < batch["chosen_num_tokens"].unsqueeze(-1)
    zero = torch.zeros_like(batch["chosen_token"])
    outputs = SimpleNamespace(log_probs=batch["chosen_token"], label_mask=inside, entropy=zero, is_top1=zero.bool())
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(parallelism_config=None, num_processes=1, gather_for_metrics=lambda x: x),
        args=SimpleNamespace(loss_type="dft", average_tokens_across_devices=False),
        aux_loss_enabled=False,
        compute_loss_func=None,
        label_smoother=None,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    theirs = SFTTrainer.compute_loss(trainer, lambda **kwargs: outputs, {"labels": None})
    loss = load("dft")
    values = value_of(loss, declared(loss.needs, {k: v for k, v in one_side.items() if "log_sum_sq" not in k}))
    weights = batch["chosen_num_tokens"] / batch["chosen_num_tokens"].double().mean()
    assert float((weights * values).mean()) == close(float(theirs), abs=1e-6)
