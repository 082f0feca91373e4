"""The same pairs in other shapes, and with other figures: what identities between losses are stated on."""

from __future__ import annotations

import torch
from torch import Tensor

from prefopt.plugin import Data
from prefopt.testing.samples import Named, random_numbers


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
