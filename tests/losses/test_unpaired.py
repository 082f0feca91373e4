"""Losses on single completions, against arithmetic."""

from __future__ import annotations

import math

import pytest
import torch

from prefopt.losses.registry import load
from prefopt.plugin import Logps, UnpairedLogps
from prefopt.testing import evaluate
from prefopt.testing.numbers import call
from tests.losses.hand import sigmoid, softplus

close = pytest.approx

# rho: 1, -2 (desirable), 0.5, -1 (undesirable)
ITEMS = {
    "completion": [-2.0, -5.0, -1.0, -4.0],
    "ref_completion": [-3.0, -3.0, -1.5, -3.0],
    "num_tokens": [2, 5, 1, 4],
    "desirable": [True, True, False, False],
}
MISMATCHED = {"mismatched": [-3.0, -4.0, -6.0, -2.0], "ref_mismatched": [-4.0, -5.0, -6.0, -4.0]}  # rho 1, 1, 0, 2


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


def test_kto_zero_by_hand() -> None:
    loss = load("kto_zero", beta=0.5, desirable_weight=1.5, undesirable_weight=2.0)
    expected = [1.5 * sigmoid(-0.5), 1.5 * sigmoid(1.0), 2.0 * sigmoid(0.25), 2.0 * sigmoid(-0.5)]
    assert evaluate(loss, **ITEMS) == close(expected)


def test_bco_by_hand() -> None:
    delta = 0.5 * (1 - 2 + 0.5 - 1) / 4  # the mean reward
    rewards = [0.5, -1.0, 0.25, -0.5]
    expected = [softplus(delta - rewards[0]), softplus(delta - rewards[1])]
    expected += [softplus(rewards[2] - delta), softplus(rewards[3] - delta)]
    assert evaluate(load("bco", beta=0.5), **ITEMS) == close(expected)


def test_bco_delta_is_the_mean_of_all_items_seen() -> None:
    loss = load("bco", beta=1.0)
    seen = {"delta": torch.tensor(2.0, dtype=torch.float64), "count": torch.tensor(3.0, dtype=torch.float64)}
    value = evaluate(loss, completion=[-1.0], ref_completion=[-5.0], desirable=[True], state=seen)
    assert value == close([softplus((3 * 2 + 4) / 4 - 4)])


def test_aot_unpaired_by_hand() -> None:
    # sorted: desirable -2, 1; undesirable -1, 0.5; each item has the value of its own rank
    low, high = softplus(-0.5 * (-2 + 1)), softplus(-0.5 * (1 - 0.5))
    assert evaluate(load("aot_unpaired", beta=0.5), **ITEMS) == close([high, low, high, low])


def test_aot_unpaired_with_unequal_counts_integrates_over_quantiles() -> None:
    # desirable -2, 1 (halves), undesirable -1, 0.5, 3 (thirds): steps end at 1/3, 1/2, 2/3, 1
    items = {
        "completion": [1.0, -2.0, 0.5, 3.0, -1.0],
        "ref_completion": [0.0] * 5,
        "desirable": [True, True, False, False, False],
    }
    steps = [softplus(-0.5 * gap) for gap in (-2 + 1, -2 - 0.5, 1 - 0.5, 1 - 3)]
    widths = [1 / 3, 1 / 6, 1 / 6, 1 / 3]
    integral = sum(w * s for w, s in zip(widths, steps, strict=True))
    value = evaluate(load("aot_unpaired", beta=0.5), **items)
    assert sum(value) / 5 == close(integral)
    assert value[1] == close((steps[0] / 3 + steps[1] / 6) * 2)  # the lower half
    assert value[3] == close(steps[3])  # the upper third


def test_aot_unpaired_with_one_label_has_nothing_to_compare() -> None:
    one_label = {"completion": [-1.0, -2.0], "ref_completion": [-1.0, -1.0], "desirable": [True, True]}
    assert evaluate(load("aot_unpaired"), **one_label) == [0.0, 0.0]


def test_csft_by_hand() -> None:
    assert evaluate(load("csft"), **ITEMS) == close([1.0, 1.0, 1.0, 1.0])


def test_csft_texts_must_differ() -> None:
    with pytest.raises(ValueError, match="bad"):
        load("csft", good="same", bad="same")


def test_value_is_half_per_item_where_policy_is_reference() -> None:
    same = ITEMS | {"ref_completion": ITEMS["completion"]}
    assert evaluate(load("kto_zero"), **same) == [0.5] * 4
    assert evaluate(load("bco"), **same) == close([math.log(2)] * 4)
