"""Where policy = reference: the value of every loss there, and which way it pulls, with the exceptions derived."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from prefopt.losses import MENU, load_class
from prefopt.losses.discopop_lrml import DiscoPOPLRML
from prefopt.losses.focal_dpo import FocalDPO
from prefopt.losses.gpo import Convex
from prefopt.losses.registry import load
from prefopt.plugin import Data
from prefopt.testing import evaluate, example
from prefopt.testing.numbers import build, call
from prefopt.testing.samples import at_reference, declared, random_numbers

LOG2 = math.log(2)

# name, hyper-parameters, value per example at equal lengths where policy = reference
VALUES: list[tuple[str, dict[str, Any], float]] = [
    ("dpo", {}, LOG2),
    ("cdpo", {}, LOG2),
    ("robust_dpo", {}, LOG2),
    ("dpop", {}, LOG2),
    ("r_dpo", {}, LOG2),
    ("dpo_norm", {}, LOG2),
    ("tr_dpo", {}, LOG2),
    ("dpo_shift", {}, LOG2),
    ("minor_dpo", {}, LOG2),
    ("f_dpo", {}, LOG2),
    ("chi_po", {"r_max": 2.0}, LOG2),
    ("tdpo1", {}, LOG2),
    ("tdpo2", {}, LOG2),
    ("bdpo", {}, LOG2),
    ("ld_dpo", {}, LOG2),
    ("sam_po", {}, LOG2),
    ("aot", {}, LOG2),
    ("dr_dpo", {}, LOG2),
    ("mallows_dpo", {"vocab_size": 50}, LOG2),
    ("bco", {}, LOG2),
    ("aot_unpaired", {}, LOG2),
    ("hinge", {}, 1.0),
    ("ipo", {"tau": 0.1}, 25.0),  # 1 / (4 tau^2)
    ("ipo_sum", {"tau": 0.5}, 1.0),
    ("kto", {}, 0.5),
    ("kto_zero", {}, 0.5),
    ("apo_zero", {}, 1.0),
    ("apo_down", {}, 1.0),
    ("nca", {}, 2 * LOG2),
    ("nca_list", {}, 2 * LOG2),
    ("bco_pair", {}, 2 * LOG2),
    ("exo", {"label_smoothing": 0.1}, math.log(0.25 / 0.09) / 2),
    ("sppo", {"beta": 0.1}, 50.0),  # 1 / (2 beta^2)
    ("focal_dpo", {"gamma": 0.5}, LOG2 / math.sqrt(2)),
    ("discopop_lrml", {}, (1 + LOG2) / 2),
    ("cal_dpo", {"beta": 0.1}, LOG2 + 25),
    ("npo", {"beta": 0.1}, 20 * LOG2),
    ("gpo", {"f": Convex.SAVAGE}, 0.25),
    ("gpo", {"f": Convex.EXPONENTIAL}, 1.0),
    ("plackett_luce", {}, math.log(24)),  # log K! at K = 4
    ("info_nca", {}, math.log(4)),
]


def reference_batch(data: Data, needs: Any) -> Any:
    numbers = at_reference(random_numbers(data, seed=3))
    for name in numbers:
        if name.endswith("num_tokens") and data is not Data.LISTS:
            numbers[name] = torch.full_like(numbers[name], 6)
    if data is Data.LISTS:  # four completions in each
        numbers = {name: value[1:] for name, value in numbers.items()}
    return build(needs, declared(needs, numbers))


@pytest.mark.parametrize(("name", "settings", "expected"), VALUES)
def test_value(name: str, settings: dict[str, Any], expected: float) -> None:
    loss = load(name, **settings)
    value = call(loss, reference_batch(loss.needs.data, loss.needs)).loss
    assert value.tolist() == pytest.approx([expected] * len(value))


def test_value_of_odpo_and_of_regressions_on_scores() -> None:
    same = {"chosen": [-1.0], "ref_chosen": [-1.0], "rejected": [-2.0], "ref_rejected": [-2.0]}
    scores = {"chosen_score": [3.5], "rejected_score": [1.0]}
    assert evaluate(load("odpo", alpha=2.0), **same, **scores) == pytest.approx([math.log(1 + 2.5**2)])
    assert evaluate(load("rebel"), **same, **scores) == pytest.approx([2.5**2])
    assert evaluate(load("distill_dpo"), **same, **scores) == pytest.approx([2.5**2])


def test_every_reference_loss_is_in_the_list() -> None:
    """The rest depend on more than the reference: scores, likelihoods, margins of the reference, or a draw."""
    by_formula = {"odpo", "rebel", "distill_dpo", "reward_aware_po", "sppo_soft", "irpo", "rpo_sft", "li_po", "mix"}
    by_formula |= {"wpo", "hypo", "alpha_dpo", "beta_dpo", "rainbow_po"}
    listed = {name for name, _, _ in VALUES}
    with_reference = {name for name in MENU if example(load_class(name)).needs.reference}
    assert with_reference == listed | by_formula


# --- directions: the kit checks that a loss pulls the right way; here are those that do not, and why


def slope(loss: Any, margin: float = 0.0) -> float:
    """d loss / d margin of a pair, per unit of beta, by moving the chosen side."""
    chosen = torch.tensor([margin], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    numbers = {"chosen": chosen, "ref_chosen": zero, "rejected": zero, "ref_rejected": zero}
    call(loss, build(loss.needs, numbers)).loss.sum().backward()
    assert chosen.grad is not None
    return float(chosen.grad) / float(loss.beta)


def sides_at_step_0(name: str, **settings: Any) -> tuple[float, float]:
    """The gradients on the chosen and the rejected side of one pair of 3 tokens each, per unit of beta."""
    loss = load(name, **settings)
    grads = []
    tensors = {side: torch.tensor([-2.0], dtype=torch.float64, requires_grad=True) for side in ("chosen", "rejected")}
    constant = {f"ref_{side}": torch.tensor([-2.0], dtype=torch.float64) for side in tensors}
    lengths = {f"{side}_num_tokens": torch.tensor([3]) for side in tensors}
    call(loss, build(loss.needs, tensors | constant | lengths)).loss.sum().backward()
    for tensor in tensors.values():
        grads.append(0.0 if tensor.grad is None else float(tensor.grad) / float(loss.beta))  # type: ignore[attr-defined]
    return grads[0], grads[1]


def test_discopop_rises_at_step_0() -> None:
    # L'(0) = -1/2 * 1/2 - (log 2)/(4 tau) + 1/(4 tau) - 1/2 = -3/4 + (1 - log 2)/(4 tau)
    assert slope(DiscoPOPLRML()) == pytest.approx(-0.75 + (1 - LOG2) / (4 * 0.05))
    assert slope(DiscoPOPLRML()) == pytest.approx(0.784, abs=5e-4)


@pytest.mark.parametrize(("z_over_tau", "rises"), [(-2.40, False), (-2.34, True), (1.41, True), (1.47, False)])
def test_discopop_rises_between_two_margins(z_over_tau: float, rises: bool) -> None:
    loss = DiscoPOPLRML()
    assert (slope(loss, z_over_tau * loss.tau / loss.beta) > 0) is rises


def test_focal_dpo_above_its_bound_would_unlearn() -> None:
    # dL/dz at 0 is 2^-gamma / 2 * (gamma log 2 - 1): the sign turns at gamma = 1 / log 2
    assert slope(FocalDPO(gamma=1.4)) == pytest.approx(2**-1.4 / 2 * (1.4 * LOG2 - 1))
    assert slope(FocalDPO(gamma=1.4)) < 0
    with pytest.raises(ValueError, match=r"below 1\.443"):
        FocalDPO(gamma=1.45)


def test_sides_that_stand_still_at_step_0() -> None:
    assert sides_at_step_0("apo_down") == pytest.approx((0.0, 0.25))  # sigmoid' - sigmoid' = 0; sigmoid'(0) = 1/4
    assert sides_at_step_0("npo", beta=0.5) == pytest.approx((0.0, 2.0))  # (2/beta) * sigmoid(0), per unit of beta
    assert sides_at_step_0("minor_dpo") == pytest.approx((-0.5, 0.0))  # relu has slope 0 at its kink
    assert sides_at_step_0("bdpo", lam=0.25) == pytest.approx((-0.5, 0.125))  # lambda times that of dpo
    assert sides_at_step_0("chi_po", r_max=2.0) == pytest.approx((-1.0, 1.0))  # phi' = 2
    assert sides_at_step_0("dpo") == pytest.approx((-0.5, 0.5))


def test_simnpo_moves_only_the_rejected_side() -> None:
    chosen, rejected = sides_at_step_0("simnpo")
    assert chosen == 0
    assert rejected > 0


@pytest.mark.parametrize(
    ("name", "settings", "turn"),
    [
        ("ipo_sum", {"tau": 0.25}, 2.0),  # Delta = 1/(2 tau)
        ("cdpo", {"beta": 1.0, "label_smoothing": 0.1}, math.log(9)),  # beta Delta = log((1 - e)/e)
        ("exo", {"beta": 1.0, "label_smoothing": 0.1}, math.log(9)),
        ("nca", {"beta": 1.0}, LOG2),  # beta rho_w = log 2
        ("gpo", {"beta": 1.0, "f": Convex.SQUARE}, 1.0),
        ("sppo", {"beta": 0.25}, 2.0),  # rho_w = 1/(2 beta)
    ],
)
def test_losses_that_turn_back_past_their_target(name: str, settings: dict[str, Any], turn: float) -> None:
    def falls(margin: float) -> bool:
        numbers = {"ref_chosen": [0.0], "rejected": [0.0], "ref_rejected": [0.0]}
        here, further = (evaluate(load(name, **settings), chosen=[m], **numbers)[0] for m in (margin, margin + 1e-4))
        return further < here

    assert falls(turn - 0.05)
    assert not falls(turn + 0.05)


def test_unbounded_below() -> None:
    far = {"chosen": [0.0], "ref_chosen": [-1e6], "rejected": [-1e6], "ref_rejected": [0.0]}
    assert evaluate(load("robust_dpo"), **far)[0] == pytest.approx(-0.1 / 0.8 * 0.1 * 2e6)
    assert evaluate(load("unlikelihood"), chosen=[0.0], rejected=[-1e6])[0] == pytest.approx(-1e5)
