"""Defines a world small enough to enumerate: every text, every policy, every optimum.

It has 4 tokens and texts of 4 tokens, so 256 texts (fewer with shorter texts). A policy is a prefix tree with a softmax
at each of the 85 prefixes, so it can be any distribution over texts; preferences are Bradley-Terry on a known reward.
The optimum of a loss can therefore be computed and compared with theory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

VOCABULARY = 4


@dataclass(frozen=True)
class EnumerableWorld:
    """Every text with its log-prob and reward; tensors are (256,) float64, or (4^length,), unless stated otherwise.

    Attributes:
        reference: log-probs of the reference policy.
        reward: the reward of each text.
        num_tokens: int64, tokens up to and including the first 0, which ends a text, or `length`.
        start: (85, 4) logits of the reference, one row per prefix.
    """

    reference: Tensor
    reward: Tensor
    num_tokens: Tensor
    start: Tensor

    def preference(self) -> Tensor:
        """(256, 256) probability that text i beats text j."""
        return torch.sigmoid(self.reward.unsqueeze(1) - self.reward.unsqueeze(0))

    def win_rate(self) -> Tensor:
        """Probability that a text beats one drawn from the reference, p(y > mu)."""
        return self.preference() @ self.reference.exp()

    def tilted(self, exponent: Tensor) -> Tensor:
        """The distribution reference * exp(exponent) / Z, as probabilities."""
        return (self.reference + exponent).softmax(0)

    def fit(self, objective: Callable[[Tensor], Tensor], *, iterations: int = 400) -> Tensor:
        """The policy that minimises `objective(log-probs of all texts)`, as probabilities; LBFGS from the reference.

        Args:
            objective: from (256,) log-probs, with gradient, to a scalar.
            iterations: at most; stops when the gradient is below 1e-12.
        """
        logits = self.start.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [logits],
            max_iter=iterations,
            history_size=100,
            tolerance_grad=1e-12,
            tolerance_change=1e-18,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = objective(log_probs(logits))
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        return log_probs(logits.detach()).exp()


def make_world(seed: int = 0, *, length: int = 4, spread: float = 1.0) -> EnumerableWorld:
    """A random world: Gaussian reward and logits of standard deviation `spread`."""
    prefixes = sum(VOCABULARY**depth for depth in range(length))
    generator = torch.Generator().manual_seed(seed)
    start = spread * torch.randn(prefixes, VOCABULARY, generator=generator, dtype=torch.float64)
    reward = spread * torch.randn(VOCABULARY**length, generator=generator, dtype=torch.float64)
    ends = (_tokens(length) == 0).int()
    num_tokens = torch.where(ends.any(1), ends.argmax(1) + 1, length)
    return EnumerableWorld(reference=log_probs(start), reward=reward, num_tokens=num_tokens, start=start)


def log_probs(logits: Tensor) -> Tensor:
    """(256,) log-probs of all texts under the prefix tree with logits (85, 4)."""
    steps = logits.log_softmax(-1)
    total, first, width = steps.new_zeros(1), 0, 1
    while first < len(steps):  # a level of the tree: each text so far with each next token
        total = (total.unsqueeze(1) + steps[first : first + width]).flatten()
        first, width = first + width, width * VOCABULARY
    return total


def token_log_probs(logits: Tensor) -> Tensor:
    """(4^length, length) log-probs of each token of all texts under the prefix tree; `log_probs` is their sum."""
    steps, depth, first, columns = logits.log_softmax(-1), 0, 0, []
    while first < len(logits):
        width = VOCABULARY**depth
        columns.append(steps[first : first + width].flatten())
        first, depth = first + width, depth + 1
    return torch.stack([column.repeat_interleave(VOCABULARY ** (depth - 1 - d)) for d, column in enumerate(columns)], 1)


def total_variation(p: Tensor, q: Tensor) -> float:
    """Half the L1 distance of two distributions: 0 equal, 1 disjoint."""
    return float((p - q).abs().sum() / 2)


def _tokens(length: int) -> Tensor:
    """(4^length, length) the tokens of every text."""
    index = torch.arange(VOCABULARY**length).unsqueeze(1)
    return index // VOCABULARY ** torch.arange(length - 1, -1, -1) % VOCABULARY
