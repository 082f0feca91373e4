"""What losses are to each other: how a test states an identity, and the batches on which identities are stated.

The claim of each identity stands in the docstring of the loss it belongs to, whence the catalogue takes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from prefopt.losses.registry import load
from prefopt.plugin import Data, LossOutput
from prefopt.testing.numbers import build, call
from prefopt.testing.samples import Named, random_numbers

Sides = tuple[Tensor, Tensor]


def identity(claim: str, tolerance: float = 1e-9) -> Callable[[Callable[[int], Sides]], Callable[[int], None]]:
    """Make a test of a function that gives the two sides of `claim` on the random batch of a seed."""

    def test_of(sides: Callable[[int], Sides]) -> Callable[[int], None]:
        @pytest.mark.parametrize("seed", range(3))
        def test(seed: int) -> None:
            left, right = sides(seed)
            torch.testing.assert_close(left, right, rtol=0, atol=tolerance)

        test.__name__, test.__module__, test.__doc__ = sides.__name__, sides.__module__, claim
        test.claim = claim  # type: ignore[attr-defined]
        return test

    return test_of


def output(name: str, numbers: Named, **hyperparameters: Any) -> LossOutput:
    """What a loss of the menu returns on named numbers."""
    loss = load(name, **hyperparameters)
    return call(loss, build(loss.needs, numbers))


def values(name: str, numbers: Named, **hyperparameters: Any) -> Tensor:
    """(B,) the values of a loss of the menu on named numbers."""
    return output(name, numbers, **hyperparameters).loss.detach()


def pairs(seed: int) -> Named:
    return random_numbers(Data.PAIRS, seed=seed)


def margin(numbers: Named, beta: float) -> Tensor:
    """beta * Delta, by plain arithmetic."""
    ratios = [numbers[side] - numbers[f"ref_{side}"] for side in ("chosen", "rejected")]
    return beta * (ratios[0] - ratios[1])


def replaced(numbers: Named, **changes: Tensor) -> Named:
    return {**numbers, **changes}


def same_length(numbers: Named, tokens: int) -> Named:
    length = torch.full_like(numbers["chosen_num_tokens"], tokens)
    return replaced(numbers, chosen_num_tokens=length, rejected_num_tokens=length)


def no_reference(numbers: Named) -> Named:
    """The same with a reference that gives log-prob 0 to everything."""
    return {name: torch.zeros_like(value) if name.startswith("ref_") else value for name, value in numbers.items()}


def as_list(numbers: Named) -> Named:
    """Each pair as a list of two, scores 1 and 0."""
    both = {
        name: torch.stack([numbers[chosen], numbers[rejected]], -1)
        for name, chosen, rejected in (
            ("completions", "chosen", "rejected"),
            ("ref_completions", "ref_chosen", "ref_rejected"),
            ("num_tokens", "chosen_num_tokens", "rejected_num_tokens"),
        )
    }
    return both | {"scores": torch.tensor([[1.0, 0.0]], dtype=torch.float64).repeat(len(numbers["ids"]), 1)}


def as_unpaired(numbers: Named) -> Named:
    """The chosen sides as desirable items, then the rejected ones as undesirable items."""
    size = len(numbers["ids"])
    return {
        "completion": torch.cat([numbers["chosen"], numbers["rejected"]]),
        "ref_completion": torch.cat([numbers["ref_chosen"], numbers["ref_rejected"]]),
        "num_tokens": torch.cat([numbers["chosen_num_tokens"], numbers["rejected_num_tokens"]]),
        "desirable": torch.arange(2 * size) < size,
    }


def swapped(numbers: Named) -> Named:
    """The same pairs with every label flipped."""
    other = {"chosen": "rejected", "rejected": "chosen"}
    found = {}
    for name, value in numbers.items():
        side = next((s for s in other if s in name), None)
        found[name if side is None else name.replace(side, other[side])] = value
    return found


def paired_sum(unpaired: Tensor) -> Tensor:
    """Desirable plus undesirable value of each pair of `as_unpaired`."""
    first, second = unpaired.chunk(2)
    return first + second


def uniform_statistic(numbers: Named, name: str, value: float) -> Named:
    """The same with a whole-vocabulary statistic that is `value` at every token."""
    changed = {}
    for side in ("chosen", "rejected"):
        inside = torch.arange(6) < numbers[f"{side}_num_tokens"].unsqueeze(-1)
        changed[f"{side}_{name}"] = value * inside.double()
    return replaced(numbers, **changed)


def label_gap(seed: int, epsilon: float) -> Named:
    """The pairs with a score gap of log((1 - epsilon) / epsilon): the log-odds of a smoothed label."""
    numbers = pairs(seed)
    return replaced(numbers, chosen_score=numbers["rejected_score"] + math.log((1 - epsilon) / epsilon))


def triples(seed: int) -> Named:
    """The pairs as lists of three, with a gold completion of log-prob -1 in front."""
    numbers = as_list(pairs(seed))
    gold = torch.full_like(numbers["completions"][:, :1], -1.0)
    return {
        "completions": torch.cat([gold, numbers["completions"]], -1),
        "num_tokens": torch.cat([torch.ones_like(gold).long(), numbers["num_tokens"]], -1),
        "scores": torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64).repeat(len(gold), 1),
    }
