"""On-policy losses on small numbers: lists as they are drawn, gradients, and whole worlds by enumeration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prefopt.losses.registry import load
from prefopt.plugin import Data, ListLogps, Logps, with_targets
from prefopt.testing.numbers import build, call
from prefopt.testing.samples import Named, random_numbers
from tests.worlds.enumerable import EnumerableWorld, make_world, token_log_probs

# rho_old: 0.5, -2, 0; log-ratio to the sampling policy: 0.5, 0, 0.5
DRAWN: dict[str, Any] = {
    "completions": [[-2.0, -5.0, -1.5]],
    "old_completions": [[-2.5, -5.0, -2.0]],
    "ref_completions": [[-3.0, -3.0, -2.0]],
    "num_tokens": [[2, 4, 1]],
    "scores": [[0.5, 1.0, 0.0]],
}


def just_drawn(seed: int, completions: int = 4) -> Named:
    """Lists of equally many completions whose policy is still the one that wrote them."""
    numbers = random_numbers(Data.LISTS, seed=seed)
    numbers = {name: value[1:] for name, value in numbers.items()}  # the first list is shorter
    numbers = {name: value[:, :completions] if value.ndim > 1 else value for name, value in numbers.items()}
    numbers["old_completions"], numbers["old_completions_token"] = numbers["completions"], numbers["completions_token"]
    return numbers


def gradient(name: str, numbers: Named, **settings: Any) -> Tensor:
    """(B, K) gradient of the mean loss by each completion's log-prob, summed over its tokens where it reads them."""
    loss = load(name, **settings)
    leaf = "completions_token" if loss.needs.tokens else "completions"
    tracked = numbers[leaf].clone().requires_grad_()
    given = {n: v for n, v in numbers.items() if n != "completions" or not loss.needs.tokens}
    value = call(loss, build(loss.needs, {**given, leaf: tracked})).loss
    (found,) = torch.autograd.grad(value.sum(), tracked)
    return found.sum(-1) if loss.needs.tokens else found


def world(seed: int = 0) -> EnumerableWorld:
    """A world of 64 texts of 3 tokens."""
    return make_world(seed, length=3)


def expected_gradient(name: str, at: EnumerableWorld, logits: Tensor, **settings: Any) -> Tensor:
    """The gradient of a loss by the logits, in expectation over two samples of each policy, by enumeration."""
    loss = load(name, **settings)
    logits = logits.clone().requires_grad_()
    token = token_log_probs(logits)
    reference = token_log_probs(at.start)
    texts = len(at.reward)
    pairs = torch.cartesian_prod(torch.arange(texts), torch.arange(texts))  # (N^2, 2)

    def logps(per_token: Tensor, with_reference: bool = True) -> Logps:
        chosen = per_token[pairs]
        ref = reference[pairs] if with_reference else None
        return Logps(
            sum=chosen.sum(-1),
            num_tokens=torch.full(pairs.shape, per_token.shape[-1]),
            ref_sum=None if ref is None else ref.sum(-1),
            token=chosen,
            ref_token=ref,
        )

    batch = ListLogps(
        completions=logps(token),
        scores=at.reward[pairs],
        mask=torch.ones(pairs.shape, dtype=torch.bool),
        old=logps(token.detach()),
    )
    value = loss(with_targets(loss, batch)).loss
    weight = token.detach().sum(-1).exp()[pairs].prod(-1)
    (found,) = torch.autograd.grad((weight * value).sum(), logits)
    return found


def population_gradient(name: str, at: EnumerableWorld, values: Tensor | None = None, **settings: Any) -> Tensor:
    """The gradient of a loss by the logits, all 0, on a rollout of every text once: there all are equally likely.

    Args:
        values: (N, T) of a value model, where the loss reads them.
    """
    logits = torch.zeros_like(at.start).requires_grad_()
    token, reference = token_log_probs(logits), token_log_probs(at.start)
    every = torch.ones(1, len(token), dtype=torch.bool)

    def logps(per_token: Tensor) -> Logps:
        return Logps(
            sum=per_token.sum(-1)[None],
            num_tokens=torch.full(every.shape, per_token.shape[-1]),
            ref_sum=at.reference[None],
            token=per_token[None],
            ref_token=reference[None],
            value=None if values is None else values[None],
            value_after=torch.zeros(every.shape, dtype=torch.float64),
        )

    batch = ListLogps(
        completions=logps(token), scores=at.reward[None], mask=every, old=logps(token.detach()), ended=every
    )
    loss = load(name, **settings)
    (found,) = torch.autograd.grad(loss(with_targets(loss, batch)).loss.sum(), logits)
    return found


def true_gradient(at: EnumerableWorld, logits: Tensor, beta: float) -> Tensor:
    """The gradient of -E[r] + beta KL(policy || reference) by the logits."""
    logits = logits.clone().requires_grad_()
    log_prob = token_log_probs(logits).sum(-1)
    objective = (log_prob.exp() * (at.reward - beta * (log_prob - at.reference))).sum()
    (found,) = torch.autograd.grad(-objective, logits)
    return found


def logits_of(probabilities: Tensor, length: int = 3, vocabulary: int = 4) -> Tensor:
    """The logits of the prefix tree that has a distribution over all texts."""
    levels = []
    for depth in range(length):
        mass = probabilities.reshape(vocabulary ** (depth + 1), -1).sum(-1).reshape(-1, vocabulary)
        levels.append(mass.log())
    return torch.cat(levels)
