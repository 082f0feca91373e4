"""Losses on pairs with a reference, against arithmetic on the pair of `hand.py`."""

from __future__ import annotations

import math

import pytest

from prefopt.losses.f_dpo import Divergence
from prefopt.losses.gpo import Convex
from prefopt.losses.registry import load
from prefopt.losses.reward_aware_po import Distance
from prefopt.testing import evaluate
from tests.losses.hand import PAIR, on_pair, sigmoid, softplus

close = pytest.approx


def test_dpo_by_hand() -> None:
    assert on_pair("dpo", beta=0.5) == close(softplus(-1.5))  # beta Delta = 0.5 * 3


def test_cdpo_by_hand() -> None:
    assert on_pair("cdpo", beta=0.5, label_smoothing=0.2) == close(0.8 * softplus(-1.5) + 0.2 * softplus(1.5))


def test_robust_dpo_by_hand() -> None:
    expected = (0.8 * softplus(-1.5) - 0.2 * softplus(1.5)) / 0.6
    assert on_pair("robust_dpo", beta=0.5, label_smoothing=0.2) == close(expected)


def test_hinge_by_hand() -> None:
    assert on_pair("hinge", beta=0.1) == close(1 - 0.3)
    assert on_pair("hinge", beta=0.5) == 0.0  # 1 - 1.5


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (Convex.LOGISTIC, softplus(-1.5)),
        (Convex.HINGE, 0.0),
        (Convex.SQUARE, 0.25),
        (Convex.EXPONENTIAL, math.exp(-1.5)),
        (Convex.TRUNCATED_SQUARE, 0.0),
        (Convex.SAVAGE, 1 / (1 + math.exp(1.5)) ** 2),
    ],
)
def test_gpo_by_hand(f: Convex, expected: float) -> None:
    assert on_pair("gpo", beta=0.5, f=f) == close(expected)


def test_gpo_truncated_square_below_its_margin() -> None:
    assert on_pair("gpo", beta=0.1, f=Convex.TRUNCATED_SQUARE) == close(0.7**2)


def test_discopop_lrml_by_hand() -> None:
    blend = sigmoid(1.5 / 0.5)
    expected = (1 - blend) * softplus(-1.5) + blend * math.exp(-1.5)
    assert on_pair("discopop_lrml", beta=0.5, tau=0.5) == close(expected)


def test_focal_dpo_by_hand() -> None:
    assert on_pair("focal_dpo", beta=0.5, gamma=0.5) == close(math.sqrt(sigmoid(1.5)) * softplus(-1.5))


def test_dpo_shift_by_hand() -> None:
    assert on_pair("dpo_shift", beta=0.5, lam=0.75) == close(softplus(-0.5 * (1 + 0.75 * 2)))


def test_dpop_by_hand() -> None:
    assert on_pair("dpop", beta=0.5, lam=50.0) == close(softplus(-1.5))  # rho_w = 1 > 0: no penalty
    fallen = PAIR | {"chosen": [-3.25]}  # rho_w = -0.25, Delta = 1.75
    assert evaluate(load("dpop", beta=0.5, lam=4.0), **fallen)[0] == close(softplus(-0.5 * (1.75 - 4 * 0.25)))


def test_minor_dpo_by_hand() -> None:
    assert on_pair("minor_dpo", beta=0.5) == close(softplus(-0.5))  # rho_l = -2 < 0 counts as 0
    risen = PAIR | {"rejected": [-3.0]}  # rho_l = 0.5
    assert evaluate(load("minor_dpo", beta=0.5), **risen)[0] == close(softplus(-0.5 * (1 - 0.5)))


def test_cal_dpo_by_hand() -> None:
    expected = softplus(-3) + ((1 - 5) ** 2 + (-2 + 5) ** 2) / 2  # targets +-1/(2 * 0.1)
    assert on_pair("cal_dpo", beta=0.1) == close(expected)


def test_exo_by_hand() -> None:
    p = sigmoid(1.5)
    expected = p * math.log(p / 0.9) + (1 - p) * math.log((1 - p) / 0.1)
    assert on_pair("exo", beta=0.5, label_smoothing=0.1) == close(expected)


@pytest.mark.parametrize(
    ("divergence", "slope_w", "slope_l"),
    [
        (Divergence.REVERSE_KL, 1.0, -2.0),
        (Divergence.FORWARD_KL, -math.exp(-1), -math.exp(2)),
        (
            Divergence.JENSEN_SHANNON,
            math.log(2 * math.e / (1 + math.e)),
            math.log(2 * math.exp(-2) / (1 + math.exp(-2))),
        ),
        (Divergence.ALPHA, (1 - math.exp(-0.25)) / 0.25, (1 - math.exp(0.5)) / 0.25),
    ],
)
def test_f_dpo_by_hand(divergence: Divergence, slope_w: float, slope_l: float) -> None:
    value = on_pair("f_dpo", beta=0.5, divergence=divergence, alpha=0.25)
    assert value == close(softplus(-0.5 * (slope_w - slope_l)))


def test_chi_po_by_hand() -> None:
    difference = 0.1 * ((math.e + 1) - (math.exp(-2) - 2))  # 0.1 * (phi_w - phi_l) = 0.558
    assert on_pair("chi_po", beta=0.1, r_max=5.0) == close(softplus(-difference))
    assert on_pair("chi_po", beta=0.1, r_max=0.2) == close(softplus(-0.4))  # clipped at 2 r_max


def test_nca_by_hand() -> None:
    assert on_pair("nca", beta=0.5) == close(softplus(-0.5) + (softplus(0.5) + softplus(-1.0)) / 2)


def test_bco_pair_by_hand() -> None:
    assert on_pair("bco_pair", beta=0.5) == close(softplus(-0.5) + softplus(-1.0))


def test_apo_zero_by_hand() -> None:
    assert on_pair("apo_zero", beta=0.5) == close(1 - sigmoid(0.5) + sigmoid(-1.0))


def test_apo_down_by_hand() -> None:
    assert on_pair("apo_down", beta=0.5) == close(sigmoid(0.5) + 1 - sigmoid(1.5))


def test_sppo_by_hand() -> None:
    assert on_pair("sppo", beta=0.1) == close((1 - 5) ** 2 + (-2 + 5) ** 2)


def test_sppo_soft_by_hand() -> None:
    target = (sigmoid(1.25) - 0.5) / 0.1
    assert on_pair("sppo_soft", beta=0.1) == close((1 - target) ** 2 + (-2 + target) ** 2)


def test_npo_by_hand() -> None:
    assert on_pair("npo", beta=0.5) == close(4 * softplus(-1.0))


def test_irpo_by_hand() -> None:
    assert on_pair("irpo", beta=0.5, alpha=0.3) == close(softplus(-1.5) + 0.3 * 1.0)  # NLL 2 over 2 tokens


def test_rpo_sft_by_hand() -> None:
    assert on_pair("rpo_sft", beta=0.5, eta=0.3) == close(softplus(-1.5) + 0.3 * 0.5 * 2.0)


def test_tr_dpo_by_hand() -> None:
    assert on_pair("tr_dpo", beta=0.5) == close(softplus(-1.5))
    assert load("tr_dpo", alpha=1.0, tau=64).reference_update == (1.0, 64)  # type: ignore[attr-defined]


def test_dpo_norm_by_hand() -> None:
    assert on_pair("dpo_norm", beta=2.0) == close(softplus(-2 * (0.5 + 0.5)))


def test_ipo_by_hand() -> None:
    assert on_pair("ipo", tau=0.1) == close((0.5 + 0.5 - 5) ** 2)


def test_ipo_sum_by_hand() -> None:
    assert on_pair("ipo_sum", tau=0.1) == close((3 - 5) ** 2)


def test_r_dpo_by_hand() -> None:
    assert on_pair("r_dpo", beta=0.5, alpha=0.1) == close(softplus(-(1.5 + 0.1 * (2 - 4))))


def test_odpo_by_hand() -> None:
    assert on_pair("odpo", beta=0.5, alpha=2.0) == close(softplus(-(1.5 - 2 * math.log(1.25))))


def test_odpo_refuses_ties() -> None:
    with pytest.raises(ValueError, match="chosen_score > rejected_score"):
        evaluate(load("odpo"), **(PAIR | {"chosen_score": [0.25]}))


def test_rebel_by_hand() -> None:
    assert on_pair("rebel", eta=2.0) == close((3 / 2 - 1.25) ** 2)


def test_distill_dpo_by_hand() -> None:
    assert on_pair("distill_dpo", beta=0.5) == close((1.5 - 1.25) ** 2)


@pytest.mark.parametrize("distance", Distance)
def test_reward_aware_po_by_hand(distance: Distance) -> None:
    a, b = sigmoid(1.5), sigmoid(2 * 1.25)
    expected = {
        Distance.SQUARE: (1.5 - 2.5) ** 2,
        Distance.BACKWARD_KL: b * math.log(b / a) + (1 - b) * math.log((1 - b) / (1 - a)),
        Distance.FORWARD_KL: a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b)),
    }
    assert on_pair("reward_aware_po", beta=0.5, eta=2.0, distance=distance) == close(expected[distance])


def test_hypo_by_hand() -> None:
    assert on_pair("hypo", beta=0.5) == close(softplus(-0.5 * (3.5 - 0.5)))
    opposed = PAIR | {"ref_rejected": [-1.0]}  # d_ref = -2 counts as 0
    assert evaluate(load("hypo", beta=0.5), **opposed)[0] == close(softplus(-0.5 * 3.5))


def test_bdpo_by_hand() -> None:
    mixed = math.log(0.25 * math.exp(-2) + 0.75)
    assert on_pair("bdpo", beta=0.5, lam=0.25) == close(softplus(-0.5 * (1 - mixed)))
