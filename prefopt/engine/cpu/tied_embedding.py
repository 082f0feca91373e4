"""Gives the gradient of an embedding that is tied to the output layer as the rows that were read, on CPU.

torch's own backward makes a table of the whole vocabulary, zero but for those rows, and adds it to the gradient of the
output layer, which is another. The sums are the same to the bit: rows of one token are added in the same order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from prefopt.engine.cpu.kernels import is_bare, kernel, replace_forward


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding_idx: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape, ctx.padding_idx = weight.shape, padding_idx
        return F.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        (ids,) = ctx.saved_tensors
        tokens, place = ids.unique(return_inverse=True)
        rows = torch.ops.aten.embedding_dense_backward(grad, place, len(tokens), -1, False)
        if ctx.padding_idx is not None:
            rows.masked_fill_((tokens == ctx.padding_idx)[:, None], 0)
        # Every token stands in it once, in order.
        table = torch.sparse_coo_tensor(tokens[None], rows, ctx.shape, is_coalesced=True, check_invariants=False)
        return None, table, None


@kernel
def _forward(self: nn.Embedding, ids: Tensor) -> Tensor:
    # Without a gradient, and where the weight is sharded, on another device or in lower precision: as torch does it.
    plain = type(self.weight) is nn.Parameter and self.weight.device.type == "cpu"
    if plain and self.weight.dtype == torch.float32 and self.weight.requires_grad and torch.is_grad_enabled():
        return _Rows.apply(ids, self.weight, self.padding_idx)  # type: ignore[no-any-return,no-untyped-call]
    return type(self).forward(self, ids)


def install(model: nn.Module) -> list[nn.Embedding]:
    """Replace the forward of embeddings whose weight is also that of a linear layer; returns them.

    The gradient of that layer has every row of the weight, so the sum of both is never sparse.
    """
    tied = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    taken = [m for m in model.modules() if type(m) is nn.Embedding and id(m.weight) in tied and _is_plain(m)]
    for embedding in taken:
        replace_forward(embedding, _forward)
    return taken


def _is_plain(embedding: nn.Embedding) -> bool:
    options = embedding.sparse or embedding.scale_grad_by_freq or embedding.max_norm is not None
    return "forward" not in vars(embedding) and is_bare(embedding) and not options
