"""Computes softmax attention as plain matrix products, on CPUs where torch's own kernel multiplies at half speed.

torch's CPU kernel for `scaled_dot_product_attention` multiplies its blocks with MKL (see `matmul`). Here the heads that
share keys are stacked into one product, no key or value is repeated, and a block of queries skips the keys after it.
Only q, k and v are kept for the backward, which computes the weights again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefopt.engine.cpu.matmul import available, times_transposed

# Queries of one block: small ones skip more keys and stay in cache, large ones make fewer calls.
_BLOCK = 192
# With fewer queries in a sequence a call costs more than it saves.
_FEW = 128


def is_faster(q: Tensor, dropout: float) -> bool:
    """Whether `attend` is faster for these queries (B, heads, n, d), and can be used."""
    return q.device.type == "cpu" and q.dtype == torch.float32 and dropout == 0.0 and q.shape[2] >= _FEW and available()


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Attention (B, heads, n, e) of q (B, heads, n, d) on k (B, groups, m, d) and v (B, groups, m, e).

    Query i sees no key past m - n + i.

    Args:
        q, k, v: `heads` is a multiple of `groups`.
        mask: (1 or B, 1, n, m), bool or added to the scores; it must hide at least those keys. None: it hides no more.
        scaling: factor of the scores; None: 1 / sqrt(d).
    """
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    return _Attention.apply(q, k.contiguous(), v.contiguous(), mask, scale)  # type: ignore[no-any-return,no-untyped-call]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v, mask)
        ctx.scale = scale
        # Positions before heads in memory: the next layer reads rows of positions.
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)
        for at, keys in _blocks(q, k):
            scores, _ = _scores(q[at], k[keys], _cut(mask, q, at, keys), scale)
            out[at] = times_transposed(scores.softmax(-1), v[keys].t()).view_as(out[at])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for at, keys in _blocks(q, k):
            scores, scaled = _scores(q[at], k[keys], _cut(mask, q, at, keys), ctx.scale)
            with torch.enable_grad():
                weights = scores.requires_grad_().softmax(-1)
            g = grad[at].reshape(-1, grad.shape[-1])
            dv[keys] += times_transposed(weights.detach().t(), g.t())
            (d_scores,) = torch.autograd.grad(weights, scores, times_transposed(g, v[keys]))
            dk[keys] += times_transposed(d_scores.t(), scaled.t())
            dq[at] = times_transposed(d_scores, k[keys].t()).mul_(ctx.scale).view_as(dq[at])
        return dq, dk, dv, None, None


At = tuple[int, slice, slice]
Keys = tuple[int, int, slice]


def _blocks(q: Tensor, k: Tensor) -> Iterator[tuple[At, Keys]]:
    """Indices of stacked queries, (sequence, heads, queries), and of the keys they see, (sequence, group, keys)."""
    stack, n = q.shape[1] // k.shape[1], q.shape[2]
    for b in range(q.shape[0]):
        for group in range(k.shape[1]):
            heads = slice(group * stack, (group + 1) * stack)
            for start in range(0, n, _BLOCK):
                stop = min(start + _BLOCK, n)
                yield (b, heads, slice(start, stop)), (b, group, slice(0, k.shape[2] - n + stop))


def _cut(mask: Tensor | None, q: Tensor, at: At, keys: Keys) -> Tensor:
    """The mask of a block, (queries, keys), or of the square at its end without one."""
    if mask is not None:
        return mask[at[0] if mask.shape[0] > 1 else 0, 0, at[2], keys[2]]
    return _triangle(at[2].stop - at[2].start, q.dtype)


@cache
def _triangle(n: int, dtype: torch.dtype) -> Tensor:
    """(n, n): 0 up to the diagonal, -inf past it."""
    return torch.full((n, n), -torch.inf, dtype=dtype).triu_(1)


def _scores(q: Tensor, k: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(heads * n, m) stacked scores, and the stacked queries, scaled."""
    scaled = (q * scale).reshape(-1, q.shape[-1])
    scores = times_transposed(scaled, k)
    last = scores.view(*q.shape[:-1], -1)[..., -mask.shape[1] :]
    if mask.dtype == torch.bool:
        last.masked_fill_(~mask, -torch.inf)
    else:
        last.add_(mask)
    return scores, scaled
