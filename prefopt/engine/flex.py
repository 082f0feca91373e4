"""Tree attention on CUDA: one fused flex_attention call over the whole row, with a block mask made from the plan.

Checked on CPU only, in flex_attention's unfused form, which has no backward there: see docs/engine.md. A block mask is
made once for a plan and a window, and serves all layers; the kernel is compiled once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from prefopt.engine.layout import TreePlan
from prefopt.errors import UserError

Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def flex_tree_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: TreePlan,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    window: int | None,
) -> Tensor:
    """Attention of a row of trees: q, k, v (1, heads, L, d) to (1, L, heads, d).

    Raises:
        UserError: dropout, which flex_attention does not have.
    """
    if dropout:
        raise UserError("attention dropout cannot be had in the tree layout on CUDA: set the model's attention_dropout "
                        "to 0, or batch.layout=padded")  # fmt: skip
    out = _kernel(query.device.type)(
        query,
        key,
        value,
        score_mod=None if softcap is None else _softcap(softcap),
        block_mask=block_mask(plan, window),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).contiguous()  # type: ignore[no-any-return]


def block_mask(plan: TreePlan, window: int | None) -> BlockMask:
    """The blocks of the row's (L, L) square that any token sees, kept with the plan."""
    if window not in plan.blocks:
        length, device = len(plan.tree), plan.tree.device
        made = create_block_mask(
            mask_of(plan, window), None, None, length, length, device=str(device), _compile=device.type == "cuda"
        )
        plan.blocks[window] = made
    found: BlockMask = plan.blocks[window]
    return found


def mask_of(plan: TreePlan, window: int | None) -> Mask:
    """Whether a query sees a key, by their places in the row: same tree, the key in the prompt or in the query's own
    branch, not later, and within the window by position."""
    tree, scope, position = plan.tree, plan.scope, plan.position

    def mask(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = (tree[q] == tree[k]) & ((scope[k] == 0) | (scope[k] == scope[q])) & (q >= k)
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
