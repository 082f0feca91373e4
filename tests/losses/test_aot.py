"""Proofs of `aot`, `aot_unpaired`."""

from __future__ import annotations

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from prefopt.testing.samples import Named
from tests.losses.hand import ITEMS, LOG2, THREE, close, softplus
from tests.losses.identities import Sides, as_unpaired, identity, pairs, values
from tests.losses.step_0 import at_reference
from tests.losses.trl_peer import as_items, ours, trl_dpo


def test_aot_by_hand() -> None:
    batch = THREE | {"ref_rejected": [-3.5, -3.0, -1.0]}  # d_ref 0.5, 1, 0; sorted 0, 0.5, 1; d sorted -0.5, 1, 3.5
    expected = [softplus(-0.5 * (3.5 - 1)), softplus(-0.5 * (-0.5 - 0)), softplus(-0.5 * (1 - 0.5))]
    assert evaluate(load("aot", beta=0.5), **batch) == close(expected)


def test_aot_at_reference() -> None:
    assert at_reference("aot") == close(LOG2)


@identity("aot on one pair = dpo")
def test_aot_on_one_pair_is_dpo(seed: int) -> Sides:
    one = {name: value[:1] for name, value in pairs(seed).items()}
    return values("aot", one, beta=0.1), values("dpo", one)


def test_aot_parity(batch: Named) -> None:
    theirs = trl_dpo(batch, "aot")
    assert ours("aot", batch, beta=0.1) == close(theirs, abs=1e-6)


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


def test_aot_unpaired_at_reference() -> None:
    assert at_reference("aot_unpaired") == close(LOG2)


@identity("aot_unpaired on one item of each label = dpo")
def test_aot_unpaired_on_one_pair_is_dpo(seed: int) -> Sides:
    one = {name: value[:1] for name, value in pairs(seed).items()}
    return values("aot_unpaired", as_unpaired(one), beta=0.1).mean(), values("dpo", one).mean()


def test_aot_unpaired_parity_at_equal_counts(batch: Named) -> None:
    assert ours("aot_unpaired", as_items(batch), beta=0.1) == close(trl_dpo(batch, "aot_unpaired"), abs=1e-6)
