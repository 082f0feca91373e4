"""Measures how a mixture of experts shares its tokens among them: the loss that keeps the shares even.

    loss = E * sum over experts of (share of choices * mean probability)      (Switch Transformer, Eqs. 4 to 6)

Shares and means are over all layers and tokens of a global batch, so parts of it are added up before they are
multiplied. A token counts as often as a plain forward of each completion would feed it: the prompt of a tree once for
each of its completions.

Legend: E experts, L positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefopt.engine.layout import Row
from prefopt.errors import UserError


class RouterLoad(NamedTuple):
    """Sums over the tokens and layers of some forwards.

    Attributes:
        chosen: (E,) how often each expert was among those that a token went to; without gradient.
        probability: (E,) of the router's probabilities.
        tokens: () tokens times layers.
    """

    chosen: Tensor
    probability: Tensor
    tokens: Tensor

    def plus(self, other: RouterLoad) -> RouterLoad:
        """Of both."""
        return RouterLoad(*(a + b for a, b in zip(self, other, strict=True)))

    def loss(self, whole: RouterLoad | None = None) -> Tensor:
        """() the loss of these forwards; or their part of it, where they are a part of `whole`, whose shares count."""
        whole = self if whole is None else whole
        return len(self.chosen) * (whole.chosen / whole.tokens * self.probability / whole.tokens).sum()


def router_load(causal: Any, output: Any, row: Row) -> RouterLoad:
    """The load of a forward with `output_router_logits`.

    Raises:
        UserError: the model has no router whose logits it returns.
    """
    logits: Sequence[Tensor] | None = getattr(output, "router_logits", None)
    count = getattr(causal.config.get_text_config(), "num_experts_per_tok", None)
    if not logits or count is None:
        raise UserError(f"trainer.router_aux_loss: {type(causal).__name__} gives no logits of a router: leave it out")
    weight = _weights(row).to(torch.float32)
    chosen, probability = (torch.zeros(logits[0].shape[-1], device=weight.device) for _ in range(2))
    for layer in logits:
        shares = layer.flatten(0, -2).softmax(-1)
        experts = shares.topk(count, dim=-1).indices.flatten()
        chosen = chosen.index_add(0, experts, weight.repeat_interleave(count))
        probability = probability + (shares.float() * weight[:, None]).sum(0)
    return RouterLoad(chosen, probability, weight.sum() * len(logits))


def _weights(row: Row) -> Tensor:
    """(R * L,) how many completions see each position."""
    if row.tree is None:
        assert row.attention_mask is not None
        return row.attention_mask.flatten()
    first = row.source[row.num_tokens.cumsum(0) - row.num_tokens]  # of each completion
    branches = row.tree.tree[first].bincount(minlength=int(row.tree.tree.max()) + 1)
    return torch.where(row.tree.scope == 0, branches[row.tree.tree], 1)
