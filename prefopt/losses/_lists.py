"""Orders, pairs and sums over lists of completions, with absent completions left out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prefopt.plugin import ListLogps


def best_first(logps: ListLogps) -> tuple[Tensor, Tensor]:
    """(B, K) places in descending order of score, absent ones last, ties as in the record; and (B, K) bool, present."""
    scores = logps.scores.masked_fill(~logps.mask, -math.inf)
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return order, logps.mask.gather(-1, order)


def best(logps: ListLogps, values: Tensor) -> Tensor:
    """(B,) the value of the best-scored completion."""
    order, _ = best_first(logps)
    return values.gather(-1, order[:, :1]).squeeze(-1)


def worst(logps: ListLogps, values: Tensor) -> Tensor:
    """(B,) the value of the worst-scored completion."""
    order, present = best_first(logps)
    return values.gather(-1, order.gather(-1, present.sum(-1, keepdim=True) - 1)).squeeze(-1)


def better_pairs(logps: ListLogps) -> Tensor:
    """(B, K, K) bool: at [i, j], both are present and i has the higher score, so that each pair counts once."""
    both = logps.mask.unsqueeze(-1) & logps.mask.unsqueeze(-2)
    return both & (logps.scores.unsqueeze(-1) > logps.scores.unsqueeze(-2))


def log_sum_of_rest(values: Tensor, present: Tensor) -> Tensor:
    """(B, K) at k: log sum over present j >= k of exp(values_j); the value itself where k is absent."""
    k = values.shape[-1]
    rest = torch.ones(k, k, dtype=torch.bool, device=values.device).triu() & present.unsqueeze(-2)
    rest = rest | torch.eye(k, dtype=torch.bool, device=values.device)  # never an empty sum
    return values.unsqueeze(-2).expand(*rest.shape).masked_fill(~rest, -math.inf).logsumexp(-1)
