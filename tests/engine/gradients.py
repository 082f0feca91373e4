"""Log-probs and gradients through the engine, against those of a model's own plain forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from prefopt.data.tokens import TokenRecord
from prefopt.engine.layout import Layout
from prefopt.engine.policy import Policy
from prefopt.engine.scoring import Branch, MicroBatch, score
from tests.engine import tiny

# A pair, a list of three behind a prompt longer than every window, a pair with a completion longer than them.
DATA = tiny.records([(5, (4, 7)), (14, (6, 1, 5)), (3, (12, 3))])


def grads(model: nn.Module, objective: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    objective.backward()
    found = {n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def weights_of(data: Sequence[TokenRecord]) -> Tensor:
    """One weight per token: the gradient of a loss that reads them all differently."""
    return torch.randn(sum(len(c) for r in data for c in r.completions), generator=torch.Generator().manual_seed(0))


def plain_grads(model: Any, data: Sequence[TokenRecord]) -> dict[str, Tensor]:
    logps = torch.cat([tiny.plain_logps(model, r.prompt, c) for r in data for c in r.completions])
    return grads(model, (logps * weights_of(data)).sum())


def engine_grads(model: Any, data: Sequence[TokenRecord], layout: Layout) -> dict[str, Tensor]:
    batch = MicroBatch.of([Branch(r.prompt, c) for r in data for c in r.completions], layout)
    out = batch.forward(Policy(model, layout))
    return grads(model, (out.stats.logp * weights_of(data)).sum())


def flat(model: Any) -> np.ndarray:
    """(N,) log-probs of all tokens by the model's own forward."""
    return np.concatenate([c for record in tiny.plain(model, DATA) for c in record])


def apart(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    """Largest distance of a parameter's gradients, relative to the largest of all gradients."""
    assert got.keys() == want.keys()
    assert want
    largest = max(float(g.abs().max()) for g in want.values())
    return max(float((got[n] - want[n]).abs().max()) for n in want) / largest


def worst(model: Any, truth: list[list[np.ndarray]], data: Sequence[TokenRecord] = DATA, **options: Any) -> float:
    scored = score(model, data, **options)
    return max(
        abs(float(got) - want.sum())
        for s, t in zip(scored, truth, strict=True)
        for got, want in zip(s.sum, t, strict=True)
    )


LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def lora(causal: Any, **options: Any) -> Any:
    torch.manual_seed(1)
    # Random adapters: ones that start at zero would hide themselves.
    adapters = LoraConfig(r=4, lora_alpha=16, init_lora_weights=False, task_type="CAUSAL_LM", **options)
    return get_peft_model(causal, adapters)
