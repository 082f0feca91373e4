"""What losses are for: on a world that can be written down, minimising the expected loss gives the stated policy.

The expectation is over all ordered pairs of texts drawn from the reference, with Bradley-Terry labels. Losses without a
finite optimum are not here: `kto`, `kto_zero`, `apo_zero`, `apo_down` (bounded, so more margin is always better),
`hinge` (a kink, met by many policies), `robust_dpo` and `unlikelihood` on single labels (unbounded below), and the
reference-free margins (`simpo`, `orpo`, `cpo` with its likelihood term), whose optimum is not a tilt of the reference.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prefopt.losses.f_dpo import Divergence
from prefopt.losses.gpo import Convex
from prefopt.losses.registry import load
from prefopt.plugin import Data
from prefopt.testing.numbers import build, call
from prefopt.worlds.enumerable import EnumerableWorld, make_world, total_variation

WORLD = make_world(seed=0)
SMALL = make_world(seed=0, length=3)  # 64 texts, where the claim is not about the large one


def expected_loss(
    name: str,
    settings: dict[str, Any],
    *,
    world: EnumerableWorld = WORLD,
    flips: float = 0.0,
    one_length: bool = False,
) -> Any:
    """log-probs of all texts -> the expected loss over all pairs."""
    loss = load(name, **settings)
    size = len(world.reward)
    winner, loser = torch.cartesian_prod(torch.arange(size), torch.arange(size)).unbind(-1)
    wins = world.preference()[winner, loser]
    weight = (world.reference[winner] + world.reference[loser]).exp() * ((1 - flips) * wins + flips * (1 - wins)) * 2
    lengths = torch.full_like(world.num_tokens, 4) if one_length else world.num_tokens
    constant = {
        "ref_chosen": world.reference[winner],
        "ref_rejected": world.reference[loser],
        "chosen_num_tokens": lengths[winner],
        "rejected_num_tokens": lengths[loser],
        "chosen_score": world.reward[winner],
        "rejected_score": world.reward[loser],
    }

    def objective(log_probs: Tensor) -> Tensor:
        chosen, rejected = log_probs[winner], log_probs[loser]
        if loss.needs.data is Data.DEMONSTRATIONS:
            numbers = {"chosen": chosen, "chosen_num_tokens": lengths[winner]}
        elif loss.needs.data is Data.LISTS:
            numbers = {
                "completions": torch.stack([chosen, rejected], -1),
                "ref_completions": torch.stack([constant["ref_chosen"], constant["ref_rejected"]], -1),
                "num_tokens": torch.stack([lengths[winner], lengths[loser]], -1),
                "scores": torch.stack([constant["chosen_score"], constant["rejected_score"]], -1),
            }
        else:
            numbers = {"chosen": chosen, "rejected": rejected, **constant}
        return (call(loss, build(loss.needs, numbers)).loss * weight).sum()

    return objective


def distance(
    name: str, settings: dict[str, Any], exponent: Tensor, *, world: EnumerableWorld = WORLD, **how: Any
) -> float:
    """Total variation of the fitted policy to the reference tilted by `exponent`."""
    return total_variation(world.fit(expected_loss(name, settings, world=world, **how)), world.tilted(exponent))


@pytest.mark.parametrize(("beta", "tolerance"), [(0.3, 1e-3), (1.0, 1e-4), (3.0, 1e-4)])
def test_dpo_reaches_the_tilted_reference(beta: float, tolerance: float) -> None:
    assert distance("dpo", {"beta": beta}, WORLD.reward / beta) < tolerance


def test_ipo_sum_reaches_the_tilt_by_win_rate() -> None:
    assert distance("ipo_sum", {"tau": 1.0}, WORLD.win_rate() / 1.0) < 1e-4


def test_sft_reaches_the_distribution_of_winners() -> None:
    assert distance("sft", {}, (2 * WORLD.win_rate()).log(), one_length=True) < 1e-4


def test_nca_at_beta_1_reaches_the_distribution_of_winners() -> None:
    # q_w sigmoid(-r) = mu sigmoid(r), as q_w + q_l = 2 mu: e^r = q_w / mu = 2 p(y > mu), which is normalised
    assert distance("nca", {"beta": 1.0}, (2 * WORLD.win_rate()).log()) < 1e-4


def test_r_dpo_reaches_the_optimum_with_a_price_on_length() -> None:
    exponent = (WORLD.reward - 0.2 * WORLD.num_tokens) / 1.0
    assert distance("r_dpo", {"beta": 1.0, "alpha": 0.2}, exponent) < 1e-4
    rewarded = SMALL.reward + 0.2 * SMALL.num_tokens
    assert distance("r_dpo", {"beta": 1.0, "alpha": 0.2}, rewarded, world=SMALL) > 0.05


def test_robust_dpo_undoes_flipped_labels_and_others_do_not() -> None:
    clean = WORLD.reward / 1.0
    assert distance("robust_dpo", {"beta": 1.0, "label_smoothing": 0.2}, clean, flips=0.2) < 1e-4
    clean = SMALL.reward / 1.0
    assert distance("dpo", {"beta": 1.0}, clean, flips=0.2, world=SMALL) > 0.05
    assert distance("cdpo", {"beta": 1.0, "label_smoothing": 0.2}, clean, flips=0.2, world=SMALL) > 0.05


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gpo", {"beta": 1.0, "f": Convex.SAVAGE}),  # proper with the logistic link
        ("gpo", {"beta": 0.5, "f": Convex.EXPONENTIAL}),  # p e^-z = (1 - p) e^z: z is half the log-odds
        ("tr_dpo", {"beta": 1.0}),
        ("distill_dpo", {"beta": 1.0}),
        ("rebel", {"eta": 1.0}),
        ("reward_aware_po", {"beta": 1.0, "eta": 1.0}),
        ("info_nca", {"beta": 1.0, "alpha": 1.0}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_others_that_reach_the_optimum_of_dpo(name: str, settings: dict[str, Any]) -> None:
    assert distance(name, settings, SMALL.reward, world=SMALL) < 1e-4


def test_cpo_without_its_likelihood_reaches_the_tilted_uniform() -> None:
    assert distance("cpo", {"beta": 1.0, "alpha": 0.0}, SMALL.reward - SMALL.reference, world=SMALL) < 1e-4


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("f_dpo", {"beta": 1.0, "divergence": Divergence.ALPHA, "alpha": 0.5}),
        ("f_dpo", {"beta": 1.0, "divergence": Divergence.FORWARD_KL}),
        ("chi_po", {"beta": 1.0, "r_max": 100.0}),
    ],
    ids=["alpha", "forward_kl", "chi_po"],
)
def test_other_divergences_recover_the_reward_in_their_own_way(name: str, settings: dict[str, Any]) -> None:
    """At the optimum beta f'(u) is the reward up to a constant: f' of each policy-to-reference ratio, written out."""
    u = SMALL.fit(expected_loss(name, settings, world=SMALL)) / SMALL.reference.exp()
    slope = u + u.log() if name == "chi_po" else 2 * (1 - u**-0.5) if "alpha" in settings else 1 - 1 / u
    left_over, share = slope - SMALL.reward, SMALL.reference.exp()
    left_over = left_over - share @ left_over
    assert float(share @ left_over.abs()) < 1e-2  # of a reward whose deviation is 1


@pytest.mark.parametrize(("p", "tau"), [(0.9, 0.5), (0.6, 0.1)])
def test_two_arms_under_ipo_sum(p: float, tau: float) -> None:
    """logit of the first arm = its reference's + (2p - 1) / (2 tau), where it wins with probability p."""
    reference = torch.tensor([0.3, 0.7], dtype=torch.float64).log()
    arm = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    loss = load("ipo_sum", tau=tau)
    optimizer = torch.optim.LBFGS([arm], max_iter=100, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        both = torch.cat([arm, -arm]).log_softmax(0)
        numbers = {"chosen": both, "rejected": both.flip(0), "ref_chosen": reference, "ref_rejected": reference.flip(0)}
        values = call(loss, build(loss.needs, numbers)).loss  # the first arm wins, and the second
        value = p * values[0] + (1 - p) * values[1]
        value.backward()
        return value

    optimizer.step(closure)
    logit = 2 * arm.item()  # of softmax(arm, -arm)
    assert logit == pytest.approx(float(reference[0] - reference[1]) + (2 * p - 1) / (2 * tau), abs=1e-6)


def test_the_world_is_what_it_says() -> None:
    assert WORLD.reference.exp().sum().item() == pytest.approx(1)
    assert WORLD.win_rate() @ WORLD.reference.exp() == pytest.approx(0.5)
    assert set(WORLD.num_tokens.tolist()) == {1, 2, 3, 4}
    assert int((WORLD.num_tokens == 1).sum()) == 64  # a quarter begins with the token that ends a text
