"""A reward model by maximum likelihood, then exact RL on it, is DPO on the same pairs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prefopt.losses.registry import load
from prefopt.plugin import Logps, Loss, PairLogps

BETA, TEXTS = 0.4, 6


def minimised(objective: Callable[[Tensor], Tensor]) -> Tensor:
    """(TEXTS,) the parameters at which an objective is least."""
    found = torch.zeros(TEXTS, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([found], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective(found)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    for _ in range(5):
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return found.detach()


def test_reward_model_and_exact_rl_are_dpo_on_the_same_pairs() -> None:
    """On a prompt with six texts; every pair was compared a few times, with one imaginary win for each side."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(TEXTS, generator=generator, dtype=torch.float64).log_softmax(0)
    wins = torch.randint(0, 5, (TEXTS, TEXTS), generator=generator).double() + 1
    first, second = torch.triu_indices(TEXTS, TEXTS, offset=1)
    chosen, rejected = torch.cat([first, second]), torch.cat([second, first])
    weight = wins[chosen, rejected] / wins.sum()

    def side(values: Tensor, which: Tensor, ref: Tensor) -> Logps:
        return Logps(sum=values[which], num_tokens=torch.ones_like(which), ref_sum=ref[which])

    def value(loss: Loss, values: Tensor, ref: Tensor) -> Tensor:
        pairs = PairLogps(chosen=side(values, chosen, ref), rejected=side(values, rejected, ref))
        return (loss(pairs).loss * weight).sum()

    scores = minimised(lambda s: value(load("bradley_terry"), s, torch.zeros_like(s)))
    by_rl = (reference + scores / BETA).softmax(0)  # the optimum of reward less beta times KL
    by_dpo = minimised(lambda logits: value(load("dpo", beta=BETA), logits.log_softmax(0), reference)).softmax(0)
    assert float((by_rl - by_dpo).abs().sum() / 2) < 5e-6
    assert float((by_rl - reference.exp()).abs().sum() / 2) > 0.1, "the pairs moved it"
