"""Losses on pairs without a reference, against arithmetic on the pair of `hand.py`."""

from __future__ import annotations

import math

import pytest

from prefopt.losses.registry import load
from prefopt.testing import evaluate
from tests.losses.hand import PAIR, on_pair, softplus

close = pytest.approx


def test_unlikelihood_by_hand() -> None:
    assert on_pair("unlikelihood", alpha=0.2) == close(2.0 + 0.2 * -5.5)


def test_slic_hf_by_hand() -> None:
    assert on_pair("slic_hf", delta=5.0, lam=0.1) == close(5 - 3.5 + 0.1 * 2)
    assert on_pair("slic_hf", delta=1.0, lam=0.1) == close(0.1 * 2)


def test_cpo_by_hand() -> None:
    assert on_pair("cpo", beta=0.5, alpha=0.3) == close(softplus(-1.75) + 0.3 * 1.0)


def test_cpo_simpo_by_hand() -> None:
    value = on_pair("cpo_simpo", beta=4.0, gamma_beta_ratio=0.5, alpha=0.3)
    assert value == close(softplus(-4 * (0.375 - 0.5)) + 0.3 * 1.0)


def test_simpo_by_hand() -> None:
    assert on_pair("simpo", beta=4.0, gamma_beta_ratio=0.5) == close(softplus(-4 * (0.375 - 0.5)))


def test_orpo_by_hand() -> None:
    chosen, rejected = math.exp(-1), math.exp(-1.375)
    odds_ratio = math.log(chosen / (1 - chosen)) - math.log(rejected / (1 - rejected))
    assert on_pair("orpo", lam=0.25) == close(1.0 + 0.25 * softplus(-odds_ratio))


def test_re_po_by_hand() -> None:
    assert on_pair("re_po", gamma=0.5) == close(0.125)
    assert on_pair("re_po", gamma=0.25) == 0.0


def test_alpha_po_by_hand() -> None:
    chosen, rejected = (1 - math.exp(0.25)) / 0.25, (1 - math.exp(0.25 * 1.375)) / 0.25
    expected = softplus(-(2 * (chosen - rejected) - 0.1))
    assert on_pair("alpha_po", beta=2.0, alpha=0.25, gamma=0.1) == close(expected)


def test_simper_by_hand() -> None:
    assert on_pair("simper") == close(math.exp(-1.375) - math.exp(-1))


def test_simnpo_by_hand() -> None:
    assert on_pair("simnpo", beta=2.0, gamma=0.5) == close(softplus(2 * -1.375 + 0.5))  # 2/beta = 1


def test_amapo_by_hand() -> None:
    two = {
        "chosen": [-2.0, -3.0],  # per token -1, -3
        "rejected": [-5.5, -2.5],  # per token -1.375, -2.5
        "chosen_num_tokens": [2, 1],
        "rejected_num_tokens": [4, 1],
    }
    d = [0.375, -0.5]
    mean, deviation = -0.0625, 0.875 / math.sqrt(2)  # (n - 1) deviation of two values: their distance / sqrt 2
    margin = math.exp(mean * (mean - d[1]) / deviation)  # only the second is below the mean
    expected = [softplus(-2 * d[0]), softplus(-2 * (d[1] - margin))]
    assert evaluate(load("amapo", beta=2.0), **two) == close(expected)


def test_sft_by_hand() -> None:
    value = evaluate(load("sft"), chosen=[-2.0, -6.0], chosen_num_tokens=[2, 3])
    assert value == close([1.0, 2.0])


def test_sft_token_mean_by_hand() -> None:
    value = evaluate(load("sft_token_mean"), chosen=[-2.0, -6.0], chosen_num_tokens=[2, 3])
    assert value == close([2 * 2 / 5, 6 * 2 / 5])
    assert sum(value) / 2 == close((2 + 6) / 5)  # the mean over tokens


def test_dft_by_hand() -> None:
    value = evaluate(load("dft"), chosen_token=[[-1.0, -0.5], [-2.0]])
    assert value == close([(math.exp(-1) * 1 + math.exp(-0.5) * 0.5) / 2, math.exp(-2) * 2])


def test_no_reference_is_read() -> None:
    """A loss without a reference is given none, and asks for none."""
    bare = {name: value for name, value in PAIR.items() if not name.startswith("ref_")}
    for name in ("simpo", "orpo", "cpo", "simper", "re_po"):
        assert not load(name).needs.reference
        assert evaluate(load(name), **bare) == evaluate(load(name), **PAIR)
