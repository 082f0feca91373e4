"""The CUDA path's mask and plan logic, and its attention in the unfused form that runs on CPU (forward only)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from prefopt.engine import layout as layouts
from prefopt.engine.attention import attention
from prefopt.engine.flex import AttentionOptions, block_mask, flex_tree_attention, mask_of
from prefopt.engine.layout import Group, Tree, TreePlan, lay_out
from prefopt.errors import UserError
from tests.engine import families, tiny


def random_trees(seed: int, *, longest: int = 12) -> list[Tree]:
    rng = np.random.default_rng(seed)

    def length() -> int:
        return int(rng.integers(1, longest))

    return [
        Tree(tiny.ids(rng, length()), tuple(tiny.ids(rng, length()) for _ in range(rng.integers(1, 5))))
        for _ in range(rng.integers(1, 6))
    ]


def plan_of(trees: list[Tree]) -> TreePlan:
    plan = lay_out(trees, "tree").tree
    assert plan is not None
    return plan


def by_hand(trees: list[Tree], window: int | None) -> Tensor:
    """(L, L) written out pair by pair. Trees stand in the row longest first; a completion's last token is not fed."""
    cells = [
        (t, b, position)
        for t in sorted(range(len(trees)), key=lambda t: (-trees[t].num_tokens, t))
        for b, start, stop in [
            (0, 0, len(trees[t].prompt)),
            *(
                (b + 1, len(trees[t].prompt), len(trees[t].prompt) + len(branch) - 1)
                for b, branch in enumerate(trees[t].branches)
            ),
        ]
        for position in range(start, stop)
    ]
    seen = torch.zeros(len(cells), len(cells), dtype=torch.bool)
    for q, (tree, branch, at) in enumerate(cells):
        for k, (other_tree, other_branch, to) in enumerate(cells):
            same = tree == other_tree and other_branch in (0, branch)
            seen[q, k] = same and to <= at and (window is None or at - to < window)
    return seen


@pytest.mark.parametrize("window", [None, 1, 3, 7])
@pytest.mark.parametrize("seed", range(6))
def test_the_mask_is_that_of_the_trees(seed: int, window: int | None) -> None:
    trees = random_trees(seed)
    plan = plan_of(trees)
    length = len(plan.tree)
    made = create_mask(mask_of(plan, window), None, None, length, length, device="cpu")[0, 0]
    assert torch.equal(made, by_hand(trees, window))
    start = 0
    for part in plan.parts:  # and that of the dense groups, tree by tree
        assert isinstance(part, Group)
        dense = part.mask(window)
        for g, index in enumerate(part.index):
            rows = start + index[index >= 0]
            assert torch.equal(made[rows[:, None], rows], dense[g, 0, : len(rows), : len(rows)])
        start += part.length
    assert start == length


@pytest.mark.parametrize("seed", range(2))
def test_blocks_cover_what_is_seen_and_skip_the_rest(seed: int) -> None:
    trees = random_trees(seed, longest=60)
    plan = plan_of(trees)
    blocks = block_mask(plan, None)
    assert block_mask(plan, None) is blocks  # made once for all layers
    assert block_mask(plan, 40) is not blocks
    length = len(plan.tree)
    seen = by_hand(trees, None)
    want = torch.zeros(-(-length // 128), -(-length // 128), dtype=torch.bool)
    for q in range(want.shape[0]):
        for k in range(want.shape[1]):
            want[q, k] = seen[q * 128 : (q + 1) * 128, k * 128 : (k + 1) * 128].any()
    assert torch.equal(blocks.to_dense()[0, 0].bool(), want)
    assert not want.all()


OPTIONS: list[dict[str, Any]] = [
    {},
    {"window": 4},
    {"softcap": 1.5},
    {"window": 3, "softcap": 2.0, "scaling": 0.7},
]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("dense", [1, 20, 320])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_equals_the_cpu_path(
    kv_heads: int, options: dict[str, Any], dense: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "DENSE_TOKENS", dense)
    plan = plan_of(random_trees(3))
    length = len(plan.tree)
    torch.manual_seed(0)
    query = torch.randn(1, 4, length, 16, dtype=torch.float64)
    key, value = torch.randn(2, 1, kv_heads, length, 16, dtype=torch.float64)
    settings = {"window": None, "softcap": None, "scaling": None} | options
    with torch.no_grad():
        got = flex_tree_attention(query, key, value, plan, AttentionOptions(**settings))
        want, _ = attention(
            torch.nn.Identity(),
            query,
            key,
            value,
            None,
            scaling=settings["scaling"],
            prefopt_tree=plan,
            softcap=settings["softcap"],
            sliding_window=settings["window"],
        )
    assert got.shape == (1, length, 4, 16)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral"])
def test_a_whole_model_through_flex(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA branch with the CPU's tensors: log-probs are those of a plain forward."""
    from prefopt.engine import attention as attentions
    from prefopt.engine.gates import LayoutVerdict
    from prefopt.engine.policy import Policy
    from prefopt.engine.scoring import Branch, MicroBatch

    data = tiny.records([(5, (4, 7)), (14, (6, 1, 5)), (3, (12, 3))])
    model = families.model(family)
    truth = tiny.plain(model, data)
    calls = []

    def through_flex(query: Tensor, key: Tensor, value: Tensor, plan: TreePlan, options: AttentionOptions) -> Tensor:
        calls.append(options.window)
        return flex_tree_attention(query, key, value, plan, options)

    monkeypatch.setattr(attentions, "_tree_attention", through_flex)
    batch = MicroBatch.of([Branch(r.prompt, c) for r in data for c in r.completions], "tree")
    with torch.no_grad():
        out = batch.forward(Policy(model, LayoutVerdict("tree", "of the test")))
    np.testing.assert_allclose(out.sum.numpy(), [t.sum() for r in truth for t in r], atol=1e-5)
    assert len(calls) == 2
    assert set(calls) == {"llama": {None}, "gemma2": {8, None}, "mistral": {8}}[family]


def test_dropout_is_refused() -> None:
    plan = plan_of(random_trees(0))
    x = torch.zeros(1, 2, len(plan.tree), 16)
    with pytest.raises(UserError, match="attention_dropout"):
        flex_tree_attention(x, x, x, plan, AttentionOptions(dropout=0.1))
