"""Attends over trees on CUDA: one fused flex_attention call for the whole row, with a block mask made from the plan.

The fused kernel is not tested: flex_attention's unfused form, which CPUs run, has no backward (see docs/engine.md). A
block mask is made once for a plan and a window, and serves all layers; the kernel is compiled once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from prefopt.engine.layout import TreePlan
from prefopt.errors import UserError

Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """How a layer attends.

    Attributes:
        dropout: share of the weights that are set to 0.
        scaling: factor of the scores; None: 1 / sqrt(d).
        softcap: bound of the scores, if they have one.
        window: positions that a query looks back, itself included; None: all.
    """

    dropout: float = 0.0
    scaling: float | None = None
    softcap: float | None = None
    window: int | None = None


def flex_tree_attention(query: Tensor, key: Tensor, value: Tensor, plan: TreePlan, options: AttentionOptions) -> Tensor:
    """Attention of a row of trees: q, k, v (1, heads, L, d) to (1, L, heads, d).

    Raises:
        UserError: dropout, which flex_attention does not have.
    """
    if options.dropout:
        raise UserError("attention dropout is not available in the tree layout on CUDA: set the model's "
                        "attention_dropout to 0, or batch.layout=padded")  # fmt: skip
    out = _kernel(query.device.type)(
        query,
        key,
        value,
        score_mod=None if options.softcap is None else _softcap(options.softcap),
        block_mask=block_mask(plan, options.window),
        scale=options.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).contiguous()  # type: ignore[no-any-return]


def block_mask(plan: TreePlan, window: int | None) -> BlockMask:
    """The blocks of the row's (L, L) square in which a query sees a key; kept with the plan."""
    if window not in plan.blocks:
        length, device = len(plan.tree), plan.tree.device
        plan.blocks[window] = create_block_mask(
            mask_of(plan, window), None, None, length, length, device=str(device), _compile=device.type == "cuda"
        )
    found: BlockMask = plan.blocks[window]
    return found


def mask_of(plan: TreePlan, window: int | None) -> Mask:
    """A function of two places in the row: whether the query at the first sees the key at the second.

    It does if both are of one tree, and the key is in the prompt or in the query's branch, not later unless both are
    of one image (`plan.image`), and within the window by position.
    """
    tree, scope, position, image = plan.tree, plan.scope, plan.position, plan.image

    def mask(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = (tree[q] == tree[k]) & ((scope[k] == 0) | (scope[k] == scope[q])) & (q >= k)
        if image is not None:
            seen = seen | ((image[q] == image[k]) & (image[q] >= 0))
        if window is not None:
            seen = seen & (position[q] - position[k] < window)
        return seen

    return mask


@cache
def _softcap(cap: float) -> Callable[..., Tensor]:
    def score(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return score


@cache
def _kernel(device: str) -> Callable[..., Any]:
    attend: Callable[..., Any] = flex_attention
    # Rows differ in length: with dynamic shapes they share one kernel.
    return torch.compile(attend, dynamic=True) if device == "cuda" else attend
