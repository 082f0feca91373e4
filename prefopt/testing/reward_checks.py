"""Checks that the logged rewards are those that the loss is about."""

from __future__ import annotations

import torch
from torch import Tensor

from prefopt.plugin import Data, Loss, LossOutput
from prefopt.testing import samples
from prefopt.testing.numbers import Numbers, build, call
from prefopt.testing.value_checks import SEEDS, gradients

Failures = list[str]


def rewards(loss: Loss) -> Failures:
    """Check that a side's reward moves with each log-prob and KL of that side that moves the loss, and with no other.

    Rewards that are not 0 where policy = reference must be spoken of in the docstring.
    """
    still: dict[tuple[str, str], bool] = {}  # reward and number that the loss reads -> the reward never moved
    for seed in SEEDS:
        numbers = samples.declared(loss.needs, samples.random_numbers(loss.needs.data, seed=seed))
        before = _rewards(loss, numbers)
        for name, gradient in gradients(loss, numbers).items():
            moved = _rewards(loss, samples.perturbed(numbers, name.__eq__, seed))
            for reward, value in before.items():
                changed = not torch.allclose(value, moved[reward], rtol=1e-9, atol=1e-12)
                if changed and not name.startswith(reward.removesuffix("_reward")) and reward != "reward":
                    return [f"{reward} moves with {name}, of the other side"]
                if name.startswith(reward.removesuffix("_reward")) or reward == "reward":
                    reads = bool(gradient.abs().max() > 1e-9)
                    still[reward, name] = still.get((reward, name), True) and not (changed or not reads)
    failures = [f"{reward} does not move with {name}, which the loss reads" for (reward, name), s in still.items() if s]
    return failures or _at_reference(loss)


def _at_reference(loss: Loss) -> Failures:
    if not loss.needs.reference or "reward" in (type(loss).__doc__ or ""):
        return []
    same = samples.at_reference(samples.random_numbers(loss.needs.data, seed=0))
    found = _rewards(loss, samples.declared(loss.needs, same))
    return [
        f"{name} is not 0 where policy = reference: the docstring must say what the reward is"
        for name, value in found.items()
        if not torch.allclose(value, torch.zeros_like(value), atol=1e-9)
    ]


def _rewards(loss: Loss, numbers: Numbers) -> dict[str, Tensor]:
    output: LossOutput = call(loss, build(loss.needs, numbers))
    names = ("chosen_reward", "rejected_reward") if loss.needs.data is Data.PAIRS else ("reward",)
    return {name: value for name in names if (value := getattr(output, name)) is not None}
