"""What losses are for: on a world that can be written down, minimising the expected loss gives the stated policy.

The expectation is over all ordered pairs of texts drawn from the reference, with Bradley-Terry labels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prefopt.losses.registry import load
from prefopt.plugin import Data
from prefopt.testing.numbers import build, call
from tests.worlds.enumerable import EnumerableWorld, make_world, total_variation

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
        "margin": world.reward[winner] - world.reward[loser],
        "probability": wins,
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


def recovers_the_reward(name: str, settings: dict[str, Any], slope: Callable[[Tensor], Tensor]) -> bool:
    """Whether at the optimum beta f'(u) is the reward up to a constant, u the ratio of policy to reference.

    Args:
        slope: f', written out.
    """
    u = SMALL.fit(expected_loss(name, settings, world=SMALL)) / SMALL.reference.exp()
    left_over, share = slope(u) - SMALL.reward, SMALL.reference.exp()
    left_over = left_over - share @ left_over
    return float(share @ left_over.abs()) < 1e-2  # of a reward whose deviation is 1
