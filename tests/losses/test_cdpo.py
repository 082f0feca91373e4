"""Proofs of `cdpo`."""

from __future__ import annotations

import math

import torch

from prefopt.testing.samples import Named
from tests.losses.hand import LOG2, close, on_pair, softplus
from tests.losses.identities import Sides, identity, margin, pairs, values
from tests.losses.step_0 import at_reference, turns_back_at
from tests.losses.trl_peer import ours, trl_dpo


def test_cdpo_by_hand() -> None:
    assert on_pair("cdpo", beta=0.5, label_smoothing=0.2) == close(0.8 * softplus(-1.5) + 0.2 * softplus(1.5))


def test_cdpo_at_reference() -> None:
    assert at_reference("cdpo") == close(LOG2)


def test_cdpo_turns_back_past_its_target() -> None:
    assert turns_back_at(math.log(9), "cdpo", beta=1.0, label_smoothing=0.1)  # beta Delta = log((1 - e)/e)


@identity("cdpo(label_smoothing=0.0) = dpo")
def test_cdpo_is_dpo(seed: int) -> Sides:
    return values("cdpo", pairs(seed), label_smoothing=0.0), values("dpo", pairs(seed))


@identity("cdpo = dpo + epsilon beta Delta")
def test_cdpo_is_dpo_plus_a_linear_term(seed: int) -> Sides:
    return values("cdpo", pairs(seed)), values("dpo", pairs(seed)) + 0.1 * margin(pairs(seed), 0.1)


def test_cdpo_parity_with_robust(batch: Named) -> None:
    """`robust` is cdpo's terms with a minus: theirs = (cdpo - 2 epsilon l(-z)) / (1 - 2 epsilon)."""
    z = 0.1 * (batch["chosen"] - batch["ref_chosen"] - batch["rejected"] + batch["ref_rejected"])
    flipped = float(torch.log1p(torch.exp(z)).mean())
    theirs = trl_dpo(batch, "robust", label_smoothing=0.1)
    assert (ours("cdpo", batch) - 2 * 0.1 * flipped) / 0.8 == close(theirs, abs=1e-6)
