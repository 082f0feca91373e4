"""What losses on the policy's own samples share: rewards with KL, baselines over a group, importance ratios."""

from __future__ import annotations

import math
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from prefopt.plugin import ListLogps, Logps


class KL(Enum):
    """Where the KL to the reference stands."""

    REWARD = "reward"  # beta times the log-ratio is taken off the reward
    LOSS_K3 = "loss_k3"  # beta times the estimator k3 is added to the loss
    NONE = "none"


TIE = 1e-6  # of the largest reward: rewards that are less apart differ by rounding
FURTHEST = 20.0  # nats of log-ratio: an importance ratio beyond e^20 has lost its meaning, and e^90 its number


def group_mean(values: Tensor, mask: Tensor) -> Tensor:
    """(B, 1) the mean over each list's completions."""
    return (values * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)


def group_std(values: Tensor, mask: Tensor) -> Tensor:
    """(B, 1) the standard deviation over each list's completions, with K - 1 below."""
    squares = ((values - group_mean(values, mask)) * mask).square().sum(-1, keepdim=True)
    return (squares / (mask.sum(-1, keepdim=True) - 1).clamp(min=1)).sqrt()


def divisor(deviation: Tensor, values: Tensor) -> Tensor:
    """The standard deviation of values, to divide them by; infinite where they differ by rounding alone."""
    return deviation.masked_fill(deviation <= TIE * values.abs().amax(), math.inf)


def log_ratio(now: Tensor, other: Tensor) -> Tensor:
    """The log-ratio of two log-probs, cut at `FURTHEST` either way."""
    return (now - other).clamp(-FURTHEST, FURTHEST)


def k3(now: Tensor, reference: Tensor) -> Tensor:
    """Schulman's estimator e^-rho + rho - 1 of KL(policy || reference), at least 0, of each log-prob."""
    rho = log_ratio(now, reference)
    return torch.exp(-rho) + rho - 1


def penalised(rollout: ListLogps, loss: Any) -> Tensor:
    """(B, K) rewards less `beta` times the log-ratio to the reference, where KL stands in the reward."""
    return rollout.scores - (loss.beta * rollout.completions.ratio if loss.kl is KL.REWARD else 0.0)


def surrogate(ratio: Tensor, advantage: Tensor, epsilon: float) -> Tensor:
    """PPO's clipped objective, to be raised: min(r A, clip(r, 1 - epsilon, 1 + epsilon) A)."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage)


def drawn(logps: ListLogps) -> Logps:
    """The log-probs that the texts were drawn with; raises where the policy did not write them."""
    if logps.old is None:
        raise ValueError("this batch has no samples of the policy: declare `Needs(on_policy=True)`")
    return logps.old


def token_ratio(logps: ListLogps) -> Tensor:
    """(B, K, T) importance ratio of each token."""
    return log_ratio(logps.completions.per_token, drawn(logps).per_token).exp()


def gae(reward: Tensor, value: Tensor, after: Tensor, inside: Tensor, *, gamma: float, lam: float) -> Tensor:
    """(..., T) generalized advantage estimates (Schulman et al., 2015) of tokens.

    Args:
        reward: (..., T) of each token.
        value: (..., T) the estimate before each token.
        after: (...) the estimate behind the last token: 0 where nothing follows.
        inside: (..., T) bool, the text's tokens.
        gamma, lam: the discount, and the weight of longer returns.
    """
    last = inside & ~torch.nn.functional.pad(inside[..., 1:], (0, 1))
    following = torch.where(last, after.unsqueeze(-1), torch.nn.functional.pad(value[..., 1:], (0, 1)))
    delta = (reward + gamma * following - value) * inside
    found, running = [], torch.zeros_like(after)
    for step in reversed(delta.unbind(-1)):
        running = step + gamma * lam * running
        found.append(running)
    return torch.stack(found[::-1], -1) * inside
