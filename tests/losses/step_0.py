"""Values and gradients of a loss where policy = reference, and where it turns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prefopt.losses.registry import load
from prefopt.plugin import Data
from prefopt.testing import evaluate
from prefopt.testing.numbers import build, call
from prefopt.testing.samples import at_reference as same_log_probs
from prefopt.testing.samples import declared, random_numbers


def at_reference(name: str, /, **settings: Any) -> float:
    """The one value that every example has where policy = reference: at 6 tokens a side, or in lists of 4."""
    loss = load(name, **settings)
    numbers = same_log_probs(random_numbers(loss.needs.data, seed=3))
    for key in numbers:
        if key.endswith("num_tokens") and loss.needs.data is not Data.LISTS:
            numbers[key] = torch.full_like(numbers[key], 6)
    if loss.needs.data is Data.LISTS:  # all but the short one
        numbers = {key: value[1:] for key, value in numbers.items()}
    values: list[float] = call(loss, build(loss.needs, declared(loss.needs, numbers))).loss.tolist()
    assert values == pytest.approx([values[0]] * len(values))
    return values[0]


def slope(loss: Any, margin: float = 0.0) -> float:
    """d loss / d margin of a pair, per unit of beta, by moving the chosen side."""
    chosen = torch.tensor([margin], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    numbers = {"chosen": chosen, "ref_chosen": zero, "rejected": zero, "ref_rejected": zero}
    call(loss, build(loss.needs, numbers)).loss.sum().backward()
    assert chosen.grad is not None
    return float(chosen.grad) / float(loss.beta)


def sides_at_step_0(name: str, /, **settings: Any) -> tuple[float, float]:
    """The gradients on the chosen and the rejected side of one pair of 3 tokens each, per unit of beta."""
    loss: Any = load(name, **settings)
    tensors = {side: torch.tensor([-2.0], dtype=torch.float64, requires_grad=True) for side in ("chosen", "rejected")}
    constant = {f"ref_{side}": torch.tensor([-2.0], dtype=torch.float64) for side in tensors}
    lengths = {f"{side}_num_tokens": torch.tensor([3]) for side in tensors}
    call(loss, build(loss.needs, tensors | constant | lengths)).loss.sum().backward()
    chosen, rejected = (0.0 if t.grad is None else float(t.grad) / float(loss.beta) for t in tensors.values())
    return chosen, rejected


def turns_back_at(turn: float, name: str, /, **settings: Any) -> bool:
    """Whether the loss falls with the chosen side's log-ratio just below `turn`, and no longer just above it."""
    loss = load(name, **settings)

    def falls(margin: float) -> bool:
        numbers = {"ref_chosen": [0.0], "rejected": [0.0], "ref_rejected": [0.0]}
        here, further = (evaluate(loss, chosen=[m], **numbers)[0] for m in (margin, margin + 1e-4))
        return further < here

    return falls(turn - 0.05) and not falls(turn + 0.05)
