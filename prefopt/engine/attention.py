"""Attends over trees, as an attention that transformers knows by the name `prefopt`.

The plan of a row travels as the keyword argument `prefopt_tree`, never as a global, so that activation checkpointing
recomputes with the right one. Without a plan this is transformers' own sdpa (or, with a softcap, the same computed
here): padded batches and `generate` work as ever. Attention sinks, learned position biases and sparse key selection
raise an error instead of being ignored.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from prefopt.engine import cpu
from prefopt.engine.flex import AttentionOptions, flex_tree_attention
from prefopt.engine.layout import Group, Piece, TreePlan, same_image

NAME = "prefopt"
# Tensors that models hand to their attention besides q, k, v and mask, and that change no number.
IGNORED = {"position_ids", "cache_position", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
# The shape of an attention mask that hides nothing: transformers passes a 4D mask on as it is.
OPEN = (1, 1, 1, 1)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    prefopt_tree: TreePlan | None = None,
    **given: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention in the signature of transformers: q, k, v (B, heads, L, d) to (B, L, heads, d).

    Args:
        module, query, key, value, attention_mask: as transformers gives them.
        prefopt_tree: how the positions of the row attend to each other.
        given: `dropout`, `scaling`, `softcap`, `sliding_window`, and what else a model hands over.
    """
    for name, extra in given.items():
        if isinstance(extra, Tensor) and name not in IGNORED:
            raise NotImplementedError(f"attention with `{name}` is not supported")
    options = AttentionOptions(
        dropout=given.get("dropout", 0.0),
        scaling=given.get("scaling"),
        softcap=given.pop("softcap", None),
        window=given.get("sliding_window"),
    )
    if prefopt_tree is None:
        if options.softcap is None:
            shares_keys = query.shape[1] > key.shape[1]
            if attention_mask is None and shares_keys and query.shape[2] == 1 and query.device.type == "cpu":
                # With a mask transformers stacks the heads that share keys; without one torch repeats the keys.
                attention_mask = query.new_ones((1, 1, 1, key.shape[2]), dtype=torch.bool)
            return sdpa_attention_forward(module, query, key, value, attention_mask, **given)
        if attention_mask is None and query.shape[2] > 1:
            attention_mask = _causal(query.shape[2], key.shape[2], options.window, query.device)
        return _attend(query, key, value, attention_mask, options).transpose(1, 2).contiguous(), None
    if attention_mask is not None and attention_mask.shape != OPEN:
        raise NotImplementedError("this model makes attention masks of its own, which the tree layout would ignore")
    if given.get("is_causal") is False:
        raise NotImplementedError("bidirectional attention is not supported in the tree layout")
    prefopt_tree.windows.add(options.window)
    if query.device.type == "cuda":
        return flex_tree_attention(query, key, value, prefopt_tree, options), None
    if _may_recompute(query, key, value, options):
        return _Recomputed.apply(query, key, value, prefopt_tree, options), None  # type: ignore[no-untyped-call]
    return _tree_attention(query, key, value, prefopt_tree, options), None


def _may_recompute(query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> bool:
    """Whether a backward follows on a CPU that can compute the attention again, with the same numbers.

    Not where `cpu.attend` runs: its backward computes the scores again already.
    """
    if query.device.type != "cpu" or cpu.available() or torch.compiler.is_compiling():
        return False
    followed = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    return followed and options.dropout == 0.0 and not torch.is_autocast_enabled("cpu")


class _Recomputed(torch.autograd.Function):
    """Attention of a row of trees that keeps q, k and v alone for its backward, which computes it again.

    Autograd would also keep them in the order of the groups, with keys and values once for each head that shares them,
    and those of a prompt once for each branch.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, options: AttentionOptions) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.plan, ctx.options = plan, options
        return _tree_attention(q, k, v, plan, options)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = (x.detach().requires_grad_() for x in ctx.saved_tensors)
        with torch.enable_grad():
            out = _tree_attention(q, k, v, ctx.plan, ctx.options)
        return *torch.autograd.grad(out, (q, k, v), grad), None, None


def _tree_attention(query: Tensor, key: Tensor, value: Tensor, plan: TreePlan, options: AttentionOptions) -> Tensor:
    """Attention of a row of trees, part by part: q, k, v (1, heads, L, d) to (1, L, heads, d)."""
    sizes = [part.length for part in plan.parts]
    cut = zip(*(torch.split(x, sizes, 2) for x in (query, key, value)), strict=True)
    outs = []
    start = 0
    for i, (part, (q, k, v)) in enumerate(zip(plan.parts, cut, strict=True)):
        if isinstance(part, Group):
            outs.append(_group(part, q, k, v, plan.mask(i, options.window, q.dtype), options))
        else:
            image = None if plan.image is None else plan.image[start : start + part.prompt]
            outs.append(_piece(part, q, k, v, options, image))
        start += part.length
    return torch.cat(outs, 1) if len(outs) > 1 else outs[0]


def _group(part: Group, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, options: AttentionOptions) -> Tensor:
    """Attention of all trees of a group in one call: (1, heads, length, d) to (1, length, heads, d)."""
    if part.index.shape[0] == 1:
        return _attend(q, k, v, mask, options).transpose(1, 2)
    size, longest = part.index.shape

    def spread(x: Tensor) -> Tensor:
        rows: Tensor = _PickRows.apply(x[0].transpose(0, 1), part.spread, part.kept)  # type: ignore[no-untyped-call]
        return rows.view(size, longest, *rows.shape[1:]).transpose(1, 2)

    out = _attend(spread(q), spread(k), spread(v), mask, options).transpose(1, 2)
    out = out.reshape(size * longest, *out.shape[2:])
    merged: Tensor = _PickRows.apply(out, part.kept, part.spread)  # type: ignore[no-untyped-call]
    return merged.unsqueeze(0)


class _PickRows(torch.autograd.Function):
    """Rows of `x` by `index`, and back by `inverse`: torch's own backward adds into zeros, many times slower.

    On the way back padding takes some row's gradient, which ends there: padding attends to itself alone, and is dropped
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
    part: Piece, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions, image: Tensor | None = None
) -> Tensor:
    """Attention of one long tree: the prompt causally, then each branch on the prompt and itself.

    `image` (prompt,) is the image of each position of the prompt that sees all of its image, -1 for none.
    """
    sizes = [part.prompt, *part.branches]
    qs, ks, vs = (torch.split(x, sizes, 2) for x in (q, k, v))
    # Without a mask sdpa skips the upper half of the square.
    within = options.window is None or options.window >= part.prompt
    plain = options.softcap is None and within and image is None
    mask = None if plain else _causal(part.prompt, part.prompt, options.window, q.device, image)
    outs = [_attend(qs[0], ks[0], vs[0], mask, options)]
    for qb, kb, vb in zip(qs[1:], ks[1:], vs[1:], strict=True):
        n = qb.shape[2]
        mask = _causal(n, part.prompt + n, options.window, q.device)
        outs.append(_attend(qb, torch.cat((ks[0], kb), 2), torch.cat((vs[0], vb), 2), mask, options))
    return torch.cat([o.transpose(1, 2) for o in outs], 1)


def _causal(n: int, keys: int, window: int | None, device: torch.device, image: Tensor | None = None) -> Tensor:
    """(1, 1, n, keys) bool for the last n of `keys` consecutive positions; of one image each sees all (n = keys)."""
    at = torch.arange(keys - n, keys, device=device)[:, None]
    to = torch.arange(keys, device=device)[None, :]
    seen = to <= at
    if image is not None:
        seen = seen | same_image(image)
    if window is not None:
        seen &= at - to < window
    return seen[None, None]


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, options: AttentionOptions) -> Tensor:
    """Softmax attention with a mask (None: causal), grouped heads and an optional softcap of the scores."""
    if options.softcap is None and cpu.is_faster(q, options.dropout):
        return cpu.attend(q, k, v, mask, options.scaling)
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if options.softcap is None:
        return F.scaled_dot_product_attention(
            q, k, v, mask, options.dropout, is_causal=mask is None, scale=options.scaling
        )
    scores = torch.matmul(q, k.transpose(2, 3)) * (q.shape[-1] ** -0.5 if options.scaling is None else options.scaling)
    scores = options.softcap * torch.tanh(scores / options.softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    weights = F.softmax(scores, -1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
    return torch.matmul(F.dropout(weights, options.dropout), v)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
