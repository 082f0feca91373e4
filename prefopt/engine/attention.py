"""Attention over trees, registered with transformers under the name `prefopt`.

The plan travels as the forward keyword argument `prefopt_tree`, never as a global, so that activation checkpointing
recomputes with the right one. Without a plan the function is transformers' own sdpa (computed here where the model has
a softcap, which sdpa cannot do), so that padded batches and `generate` work as ever. What neither can do (attention
sinks, learned position biases, sparse key selection) raises instead of being left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from prefopt.engine import cpu
from prefopt.engine.layout import Group, Piece, TreePlan

NAME = "prefopt"
# Tensors that models hand to their attention besides q, k, v and mask, and that change no number.
IGNORED = {"position_ids", "cache_position", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
# An attention mask that says nothing: transformers passes a 4D mask through as it is, and the plan says the rest.
OPEN = (1, 1, 1, 1)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    prefopt_tree: TreePlan | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention in the signature of transformers: q, k, v (B, heads, L, d) to (B, L, heads, d)."""
    _refuse(kwargs)
    if prefopt_tree is None:
        if softcap is None:
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout, scaling, sliding_window=sliding_window, **kwargs
            )
        if attention_mask is None and query.shape[2] > 1:
            attention_mask = _causal(query.shape[2], key.shape[2], sliding_window, query.device)
        return _attend(query, key, value, attention_mask, dropout, scaling, softcap).transpose(1, 2).contiguous(), None
    if attention_mask is not None and attention_mask.shape != OPEN:
        raise NotImplementedError("this model makes attention masks of its own, which the tree layout would ignore")
    if kwargs.get("is_causal") is False:
        raise NotImplementedError("bidirectional attention is not supported in the tree layout")
    prefopt_tree.windows.add(sliding_window)
    if query.device.type == "cuda":
        from prefopt.engine.flex import flex_tree_attention

        return flex_tree_attention(query, key, value, prefopt_tree, dropout, scaling, softcap, sliding_window), None
    sizes = [part.length for part in prefopt_tree.parts]
    pieces = zip(_split(query, sizes), _split(key, sizes), _split(value, sizes), strict=True)
    outs = []
    for i, (part, (q, k, v)) in enumerate(zip(prefopt_tree.parts, pieces, strict=True)):
        if isinstance(part, Group):
            mask = prefopt_tree.mask(i, sliding_window, q.dtype)
            outs.append(_group(part, q, k, v, mask, dropout, scaling, softcap))
        else:
            outs.append(_piece(part, q, k, v, sliding_window, dropout, scaling, softcap))
    return torch.cat(outs, 1) if len(outs) > 1 else outs[0], None


def _refuse(kwargs: dict[str, Any]) -> None:
    for name, given in kwargs.items():
        if isinstance(given, Tensor) and name not in IGNORED:
            raise NotImplementedError(f"attention with `{name}` is not supported")


def _split(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Cut (B, heads, L, d) along its positions."""
    return torch.split(x, list(sizes), 2)


def _group(
    part: Group, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float, scaling: float | None, cap: float | None
) -> Tensor:
    """(1, heads, length, d) to (1, length, heads, d), all trees of the group in one call."""
    if part.index.shape[0] == 1:
        return _attend(q, k, v, mask, dropout, scaling, cap).transpose(1, 2)
    size, longest = part.index.shape

    def spread(x: Tensor) -> Tensor:
        rows: Tensor = _Rows.apply(x[0].transpose(0, 1), part.spread, part.kept)  # type: ignore[no-untyped-call]
        return rows.view(size, longest, *rows.shape[1:]).transpose(1, 2)

    out = _attend(spread(q), spread(k), spread(v), mask, dropout, scaling, cap).transpose(1, 2)
    out = out.reshape(size * longest, *out.shape[2:])
    merged: Tensor = _Rows.apply(out, part.kept, part.spread)  # type: ignore[no-untyped-call]
    return merged.unsqueeze(0)


class _Rows(torch.autograd.Function):
    """Rows of `x` by `index`, and back by `inverse`: torch's own backward adds up into zeros, many times slower.

    Filling takes some row's gradient on the way back. It ends there: filling attends to itself alone, and is dropped
    where the rows of the tree are picked again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.inverse = inverse
        return x.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(0, ctx.inverse), None, None


def _piece(
    part: Piece,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    dropout: float,
    scaling: float | None,
    cap: float | None,
) -> Tensor:
    """The same for one long tree: the prompt causally, then each branch on the prompt and itself."""
    sizes = [part.prompt, *part.branches]
    qs, ks, vs = _split(q, sizes), _split(k, sizes), _split(v, sizes)
    outs = [_attend(qs[0], ks[0], vs[0], _window(part.prompt, part.prompt, window, cap, q), dropout, scaling, cap)]
    for qb, kb, vb in zip(qs[1:], ks[1:], vs[1:], strict=True):
        n = qb.shape[2]
        mask = _causal(n, part.prompt + n, window, q.device)
        outs.append(_attend(qb, torch.cat((ks[0], kb), 2), torch.cat((vs[0], vb), 2), mask, dropout, scaling, cap))
    return torch.cat([o.transpose(1, 2) for o in outs], 1)


def _window(n: int, keys: int, window: int | None, cap: float | None, like: Tensor) -> Tensor | None:
    """No mask where plain causality will do, and sdpa can skip the upper half."""
    if cap is None and (window is None or window >= keys):
        return None
    return _causal(n, keys, window, like.device)


def _causal(n: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """(1, 1, n, keys) bool for the last n of `keys` consecutive positions."""
    at = torch.arange(keys - n, keys, device=device)[:, None]
    to = torch.arange(keys, device=device)[None, :]
    seen = to <= at
    if window is not None:
        seen &= at - to < window
    return seen[None, None]


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, scaling: float | None, cap: float | None
) -> Tensor:
    """Softmax attention with a bool mask (None: causal), grouped heads and an optional softcap of the scores."""
    if cap is None and cpu.is_faster(q, dropout):
        return cpu.attend(q, k, v, mask, scaling)
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if cap is None:
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None, scale=scaling)
    scores = torch.matmul(q, k.transpose(2, 3)) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = cap * torch.tanh(scores / cap)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    return torch.matmul(
        F.dropout(F.softmax(scores, -1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype), dropout), v
    )


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
