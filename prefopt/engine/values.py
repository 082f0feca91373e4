"""The value model: estimates, before each token of a text, what reward the text is going to get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from prefopt.data.images.inputs import inputs_of
from prefopt.data.tokens import TokenRecord
from prefopt.engine.forward import Options, evaluating
from prefopt.engine.head import TokenStats
from prefopt.engine.layout import Row
from prefopt.engine.policy import Policy
from prefopt.engine.scoring import Branch, Completions, Float32, MicroBatch, batches_of


class Estimates(NamedTuple):
    """Of a record's K completions: (n,) each before its tokens, and (K,) behind the last ones."""

    before: tuple[Float32, ...]
    after: tuple[float, ...]


class ValueModel(nn.Module):
    """A decoder with a scalar head, which shares no trained weight with the policy.

    Args:
        body: a policy around a model of its own. The estimates of a reward model are its scores at first; a causal
            language model gets a head of zeros, and its output layer is not used.
    """

    def __init__(self, body: Policy) -> None:
        super().__init__()
        self.body = body
        self.head: nn.Linear | None = None
        causal = body.causal
        if body.is_reward_model:
            return
        output, given = causal.get_output_embeddings().weight, causal.get_input_embeddings().weight
        if output is not given:
            output.requires_grad_(False)
        self.head = nn.Linear(causal.config.get_text_config().hidden_size, 1, device=given.device)
        self.head.to(torch.promote_types(given.dtype, torch.float32))
        nn.init.zeros_(self.head.weight)  # no opinion at first, as in OpenAI's code of 2019
        nn.init.zeros_(self.head.bias)

    def forward(self, row: Row) -> Tensor:
        """(N,) the estimate before each scored token of a row."""
        if self.head is None:
            scored = self.body(row)
            assert isinstance(scored, TokenStats)
            return scored.logp
        hidden = self.body(row, Options(hidden_only=True))
        assert isinstance(hidden, Tensor)
        value: Tensor = self.head(hidden.to(self.head.weight.dtype)).squeeze(-1)
        return value


def estimate(model: ValueModel, records: Sequence[TokenRecord], *, max_tokens: int) -> list[Estimates]:
    """The estimates for every completion of `records`, without gradient."""
    found: dict[int, Estimates] = {}
    # One more token, of any id, so that the last one is fed and has an estimate behind it.
    longer = [replace(r, completions=tuple(np.append(c, c[-1]) for c in r.completions)) for r in records]
    device, layout = model.body.device, model.body.layout.layout
    with evaluating(model), torch.inference_mode():
        for chunk in batches_of(longer, max_tokens, layout):
            branches = [Branch(longer[i].prompt, c) for i in chunk for c in longer[i].completions]
            batch = MicroBatch.of(branches, layout, images=inputs_of(model.body.causal))
            row = batch.row.to(device)
            out = Completions.gather(TokenStats(model(row)), row, batch.slots.to(device))
            texts = np.split(out.stats.logp.float().cpu().numpy(), np.cumsum(out.num_tokens.cpu().numpy())[:-1])
            for i in chunk:
                mine = [texts.pop(0) for _ in longer[i].completions]
                found[i] = Estimates(tuple(t[:-1] for t in mine), tuple(float(t[-1]) for t in mine))
    return [found[i] for i in range(len(records))]
