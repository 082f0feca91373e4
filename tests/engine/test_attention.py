"""Attention on CPUs: of one query, and computed again in the backward."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prefopt.engine import cpu
from prefopt.engine.attention import OPEN, attention
from prefopt.engine.layout import Tree, TreePlan, lay_out

HEADS, GROUPS, WIDTH = 6, 2, 8


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def attended(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """softmax(q k') v by hand: (B, heads, n, d) to (B, n, heads, d); `seen` (B, 1, n, m)."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("mask", ["none", "bool", "added"])
def test_one_query_of_heads_that_share_keys(groups: int, mask: str) -> None:
    """As sampling asks for it: each sequence has one new token, and padding in front of its prompt."""
    q, k, v = draw(3, HEADS, 1, WIDTH), draw(3, groups, 7, WIDTH, seed=1), draw(3, groups, 7, WIDTH, seed=2)
    seen = torch.ones(3, 1, 1, 7, dtype=torch.bool)
    if mask != "none":
        seen[1, ..., :2] = seen[2, ..., :5] = False
    given = {"none": None, "bool": seen, "added": torch.zeros(seen.shape).double().masked_fill(~seen, -torch.inf)}
    module: Any = nn.Module()
    module.num_key_value_groups, module.is_causal = HEADS // groups, True
    found, _ = attention(module, q, k, v, given[mask], scaling=WIDTH**-0.5)
    torch.testing.assert_close(found, attended(q, k, v, seen), rtol=1e-12, atol=1e-14)


def plan(*shapes: tuple[int, tuple[int, ...]]) -> tuple[int, TreePlan]:
    """The positions of a row of trees of (prompt, branches) tokens, and how they attend."""
    trees = [Tree(np.ones(p, np.int32), tuple(np.ones(n, np.int32) for n in branches)) for p, branches in shapes]
    row = lay_out(trees, "tree")
    assert row.tree is not None
    return row.input_ids.shape[1], row.tree


# Short trees of two lengths are attended in groups, the long one piece by piece.
SHAPES = ((9, (4, 3)), (8, (5, 3)), (3, (2,)), (300, (30, 20)))


def test_the_backward_is_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    length, tree = plan(*SHAPES)
    pull = torch.randn(1, length, HEADS, WIDTH, generator=torch.Generator().manual_seed(4))

    def gradients() -> list[Tensor]:
        given = [draw(1, heads, length, WIDTH, seed=i).float().requires_grad_() for i, heads in enumerate((6, 2, 2))]
        out, _ = attention(nn.Module(), *given, torch.ones(OPEN, dtype=torch.bool), tree)
        return [out.detach(), *torch.autograd.grad(out, given, pull)]

    again = gradients()
    monkeypatch.setattr("prefopt.engine.attention._may_recompute", lambda *_: False)
    assert all(map(torch.equal, again, gradients()))


@pytest.mark.skipif(cpu.available(), reason="here attention is computed as plain products")
def test_less_is_kept_for_the_backward() -> None:
    """q, k and v alone: the keys of a prompt are not kept for each branch and each head."""
    length, tree = plan(*SHAPES)
    given = [draw(1, heads, length, WIDTH).float().requires_grad_() for heads in (HEADS, GROUPS, GROUPS)]
    kept: dict[int, int] = {}

    def pack(saved: Tensor) -> Tensor:
        kept[saved.data_ptr()] = saved.numel()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        attention(nn.Module(), *given, torch.ones(OPEN, dtype=torch.bool), tree)
    assert sum(kept.values()) == (HEADS + 2 * GROUPS) * WIDTH * length
