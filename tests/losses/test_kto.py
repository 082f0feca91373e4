"""Proofs of `kto`, `kto_zero`."""

from __future__ import annotations

import pytest
import torch

from prefopt.losses.registry import load
from prefopt.plugin import Logps, UnpairedLogps
from prefopt.testing import evaluate
from prefopt.testing.numbers import call
from prefopt.testing.samples import Named
from tests.losses.hand import ITEMS, MISMATCHED, close, sigmoid
from tests.losses.identities import Sides, as_unpaired, identity, paired_sum, pairs, replaced, values
from tests.losses.step_0 import at_reference
from tests.losses.trl_peer import PAIRS, as_items, ours, trl_kto

NOT_TESTED = {
    "kto optimum": "bounded: a larger margin is always better",
    "kto_zero optimum": "bounded: a larger margin is always better",
}


def test_kto_by_hand() -> None:
    z0 = (1 + 1 + 0 + 2) / 4
    loss = load("kto", beta=0.5, desirable_weight=1.5, undesirable_weight=2.0)
    expected = [
        1.5 * (1 - sigmoid(0.5 * (1 - z0))),
        1.5 * (1 - sigmoid(0.5 * (-2 - z0))),
        2.0 * (1 - sigmoid(0.5 * (z0 - 0.5))),
        2.0 * (1 - sigmoid(0.5 * (z0 + 1))),
    ]
    assert evaluate(loss, **ITEMS, **MISMATCHED) == close(expected)


def test_kto_clamps_z0_and_logs_both() -> None:
    completion = Logps(sum=torch.tensor([-1.0]), ref_sum=torch.tensor([-2.0]), num_tokens=torch.tensor([1]))
    mismatched = Logps(sum=torch.tensor([-9.0]), ref_sum=torch.tensor([-5.0]), num_tokens=torch.tensor([1]))
    batch = UnpairedLogps(completion=completion, desirable=torch.tensor([True]), mismatched=mismatched)
    output = call(load("kto"), batch)
    assert output.metrics["z0"] == 0
    assert output.metrics["z0_unclamped"] == -4
    assert output.loss.item() == close(1 - sigmoid(0.1), rel=1e-6)


def test_kto_z0_carries_no_gradient() -> None:
    mismatched_sum = torch.tensor([-1.0], requires_grad=True)
    mismatched = Logps(sum=mismatched_sum, ref_sum=torch.tensor([-5.0]), num_tokens=torch.tensor([1]))
    completion = Logps(
        sum=torch.tensor([-1.0], requires_grad=True), ref_sum=torch.tensor([-2.0]), num_tokens=torch.tensor([1])
    )
    call(
        load("kto"), UnpairedLogps(completion=completion, desirable=torch.tensor([True]), mismatched=mismatched)
    ).loss.sum().backward()
    assert mismatched_sum.grad is None


def test_kto_without_mismatched_names_the_remedy() -> None:
    completion = Logps(sum=torch.tensor([-1.0]), ref_sum=torch.tensor([-2.0]), num_tokens=torch.tensor([1]))
    with pytest.raises(ValueError, match="kto_zero"):
        load("kto")(UnpairedLogps(completion=completion, desirable=torch.tensor([True])))


def test_kto_at_reference() -> None:
    assert at_reference("kto") == close(0.5)


@identity("kto where the mismatched mean is below 0 = kto_zero")
def test_kto_below_0_is_kto_zero(seed: int) -> Sides:
    numbers = as_unpaired(pairs(seed))
    below = replaced(numbers, mismatched=numbers["completion"] - 9, ref_mismatched=numbers["completion"])
    return values("kto", below), values("kto_zero", numbers)


@pytest.mark.parametrize("shift", [-2.0, 0.0, 2.0])
def test_kto_parity(batch: Named, shift: float) -> None:
    items = as_items(batch)
    mismatched = (items["completion"].flip(0) + shift, items["ref_completion"].flip(0))
    numbers = items | {"mismatched": mismatched[0], "ref_mismatched": mismatched[1]}
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.8}
    expected = trl_kto(items, mismatched, "kto", **weights)
    assert ours("kto", numbers, **weights) == close(expected, abs=1e-6)


def test_kto_zero_by_hand() -> None:
    loss = load("kto_zero", beta=0.5, desirable_weight=1.5, undesirable_weight=2.0)
    expected = [1.5 * sigmoid(-0.5), 1.5 * sigmoid(1.0), 2.0 * sigmoid(0.25), 2.0 * sigmoid(-0.5)]
    assert evaluate(loss, **ITEMS) == close(expected)


def test_kto_zero_at_reference_is_half_per_item() -> None:
    assert evaluate(load("kto_zero"), **(ITEMS | {"ref_completion": ITEMS["completion"]})) == [0.5] * 4


def test_kto_zero_at_reference() -> None:
    assert at_reference("kto_zero") == close(0.5)


@identity("kto_zero, both items of a pair = apo_zero")
def test_kto_zero_on_both_sides_is_apo_zero(seed: int) -> Sides:
    return paired_sum(values("kto_zero", as_unpaired(pairs(seed)))), values("apo_zero", pairs(seed))


def test_kto_zero_parity(batch: Named) -> None:
    items = as_items(batch)
    nothing = (torch.zeros(2 * PAIRS), torch.zeros(2 * PAIRS))
    assert ours("kto_zero", items) == close(trl_kto(items, nothing, "apo_zero_unpaired"), abs=1e-6)
