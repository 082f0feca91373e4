"""Log-probs are those of a plain forward, whatever the layout, packing, order and split."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from prefopt.data.tokens import TokenRecord
from prefopt.engine import layout as layouts
from prefopt.engine.head import Head, Reference
from prefopt.engine.layout import Layout, Piece, Tree, lay_out
from prefopt.engine.policy import Options, Policy
from prefopt.engine.scoring import Branch, MicroBatch, Scored, fed_tokens, score
from prefopt.errors import UserError
from prefopt.plugin import Data, Vocab
from tests.engine import tiny

# Pairs, lists of four, single completions; completions and prompts of one token.
SHAPES = [
    (5, (4, 7)),
    (1, (3, 1)),
    (9, (1, 1)),
    (6, (2, 5, 1, 8)),
    (3, (6, 6, 2, 1)),
    (7, (9,)),
    (1, (1,)),
    (30, (12, 3)),
]
FAMILIES: dict[str, Any] = {
    "llama": lambda dtype: tiny.model("llama", dtype=dtype),
    "qwen3": lambda dtype: tiny.model("qwen3", head_dim=8, dtype=dtype),
    # five local layers to one global one; the window is shorter than the longest sample
    "gemma3": lambda dtype: tiny.model(
        "gemma3_text", head_dim=8, num_hidden_layers=6, sliding_window=8, query_pre_attn_scalar=8, dtype=dtype
    ),
    "gpt2": lambda dtype: tiny.build(tiny.AutoConfig.for_model("gpt2", **tiny.GPT2), dtype=dtype),
}
LAYOUTS: list[Layout] = ["tree", "padded"]


def worst(scored: list[Scored], truth: list[list[np.ndarray]]) -> float:
    """Largest error of a sequence's sum, in nats."""
    return max(
        abs(float(got) - want.sum())
        for s, t in zip(scored, truth, strict=True)
        for got, want in zip(s.sum, t, strict=True)
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_a_plain_forward(family: str, layout: Layout) -> None:
    data = tiny.records(SHAPES)
    model = FAMILIES[family](torch.float32)
    truth = tiny.plain(model, data)
    wide = tiny.plain(FAMILIES[family](torch.float64), data)
    scored = score(model, data, layout=layout, tokens=True)
    assert worst(scored, truth) < 1e-5
    # Not further from float64 than a float32 forward is; and logsumexp and difference are rounded for each of up to 12
    # tokens, by half a unit in the last place, 2.4e-7 at 4 to 8 nats.
    plain_error = max(
        abs(t.sum() - w.sum()) for a, b in zip(truth, wide, strict=True) for t, w in zip(a, b, strict=True)
    )
    assert worst(scored, wide) < 2 * plain_error + 12 * 2 * 2.4e-7
    for s, t, record in zip(scored, truth, data, strict=True):
        assert s.num_tokens.tolist() == [len(c) for c in record.completions]
        assert s.token is not None
        for got, want in zip(s.token, t, strict=True):
            np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_float64_to_the_last_digits(family: str, layout: Layout) -> None:
    data = tiny.records(SHAPES)
    model = FAMILIES[family](torch.float64)
    truth = np.concatenate([np.concatenate(t) for t in tiny.plain(model, data)])
    branches = [Branch(r.prompt, c) for r in data for c in r.completions]
    with torch.no_grad():
        out = MicroBatch.of(branches, layout).forward(Policy(model, layout))
    assert out.sum.dtype == torch.float64
    np.testing.assert_allclose(out.stats.logp.numpy(), truth, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packing_order_and_split_change_nothing(layout: Layout) -> None:
    model = FAMILIES["llama"](torch.float32)
    data = tiny.records(SHAPES)
    truth = tiny.plain(model, data)
    needed = max(fed_tokens(r, layout) for r in data)
    for max_tokens in (needed, needed + 17, 4096):
        for seed in range(3):
            order = np.random.default_rng(seed).permutation(len(data))
            scored = score(model, [data[i] for i in order], layout=layout, max_tokens=max_tokens)
            assert worst(scored, [truth[i] for i in order]) < 1e-5
    alone = [score(model, [r], layout=layout)[0] for r in data]
    assert worst(alone, truth) < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_records_with_the_same_prompt_share_it(layout: Layout) -> None:
    model = FAMILIES["qwen3"](torch.float32)
    prompt = tiny.ids(np.random.default_rng(9), 11)
    data = [
        TokenRecord(id=str(i), kind=Data.PAIRS, prompt=prompt.copy(), completions=r.completions)
        for i, r in enumerate(tiny.records([(1, (4, 3)), (1, (1, 5)), (1, (2, 2))]))
    ]
    data.insert(1, tiny.records([(4, (6, 2))], seed=3)[0])
    batch = MicroBatch.of([Branch(r.prompt, c) for r in data for c in r.completions], layout)
    if layout == "tree":  # once the shared prompt: 11 + (3+2+0+4+1+1), and the other: 4 + (5+1)
        assert batch.row.tokens_fed == 22 + 10
    assert worst(score(model, data, layout=layout), tiny.plain(model, data)) < 1e-5


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("dense", [1, 12, 40])
def test_long_trees_are_cut_into_pieces(family: str, dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "DENSE_TOKENS", dense)
    data = tiny.records(SHAPES)
    row = lay_out([Tree(r.prompt, r.completions) for r in data], "tree")
    assert row.tree is not None
    assert any(isinstance(part, Piece) for part in row.tree.parts)
    model = FAMILIES[family](torch.float32)
    assert worst(score(model, data, layout="tree"), tiny.plain(model, data)) < 1e-5


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_really_long_trees(family: str) -> None:
    data = tiny.records([(300, (40, 1, 25)), (7, (400, 3)), (20, (30, 31))])
    row = lay_out([Tree(r.prompt, r.completions) for r in data], "tree")
    assert row.tree is not None
    assert sum(isinstance(part, Piece) for part in row.tree.parts) == 2
    wide = FAMILIES[family](torch.float64)
    truth = tiny.plain(wide, data)
    with torch.no_grad():
        batch = MicroBatch.of([Branch(r.prompt, c) for r in data for c in r.completions], "tree")
        out = batch.forward(Policy(wide, "tree"))
    np.testing.assert_allclose(out.sum.numpy(), [t.sum() for record in truth for t in record], rtol=0, atol=1e-9)
    narrow = score(FAMILIES[family](torch.float32), data, layout="tree")
    assert worst(narrow, truth) < 1e-4  # of sums of 2,000 nats


@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_of_the_vocabulary_through_a_model(layout: Layout) -> None:
    """Entropy, log of the sum of squares, KL(reference || policy) and the log-normalisers of moved policies, per token,
    against full logits of two models."""
    policy, reference = FAMILIES["llama"](torch.float64), tiny.model("llama", seed=1, dtype=torch.float64)
    data = tiny.records(SHAPES)

    def full(model: Any, prompt: Any, completion: Any) -> torch.Tensor:
        tokens = torch.from_numpy(np.concatenate((prompt, completion)).astype(np.int64))[None]
        return model(input_ids=tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1)

    branches = [Branch(r.prompt, c) for r in data for c in r.completions]
    with torch.no_grad():
        pairs = [(full(policy, b.prompt, b.completion), full(reference, b.prompt, b.completion)) for b in branches]
        batch = MicroBatch.of(branches, layout)
        hidden = Policy(reference, layout)(batch.row, Options(hidden_only=True))
        options = Options(
            vocab=frozenset(Vocab) - {Vocab.REF_ENTROPY}, entropy=True, epsilon=0.25,
            reference=Reference(hidden, Head.of(reference)),
        )  # fmt: skip
        out = batch.forward(Policy(policy, layout), options)
    want = {
        "entropy": torch.cat([-(p.exp() * p).sum(-1) for p, _ in pairs]),
        "log_sum_sq": torch.cat([(2 * p).exp().sum(-1).log() for p, _ in pairs]),
        "kl": torch.cat([(q.exp() * (q - p)).sum(-1) for p, q in pairs]),
        "log_away": torch.cat([(1.25 * p - 0.25 * q).logsumexp(-1) for p, q in pairs]),
        "log_toward": torch.cat([(0.75 * p + 0.25 * q).logsumexp(-1) for p, q in pairs]),
    }
    for name, value in want.items():
        torch.testing.assert_close(getattr(out.stats, name), value, rtol=0, atol=1e-10)
    scored = score(policy, data, layout=layout, options=Options(entropy=True, vocab=frozenset({Vocab.LOG_SUM_SQ})))
    for name in ("entropy", "log_sum_sq"):
        got = np.concatenate([part for s in scored for part in getattr(s, name)])
        np.testing.assert_allclose(got, want[name].numpy(), atol=1e-6)


def test_padded_values() -> None:
    model = FAMILIES["llama"](torch.float32)
    data = tiny.records([(3, (2, 4)), (2, (1, 3))])
    truth = [t for record in tiny.plain(model, data) for t in record]
    with torch.no_grad():
        batch = MicroBatch.of([Branch(r.prompt, c) for r in data for c in r.completions], "tree")
        out = batch.forward(Policy(model, "tree"))
    grid = out.padded(out.stats.logp)
    assert grid.shape == (4, 4)
    assert out.num_tokens.tolist() == [2, 4, 1, 3]
    for c, want in enumerate(truth):
        np.testing.assert_allclose(grid[c, : len(want)].numpy(), want, atol=1e-5)
        assert (grid[c, len(want) :] == 0).all()


def test_plain_use_of_the_model_still_works() -> None:
    model = FAMILIES["gemma3"](torch.float32)
    tokens = torch.from_numpy(tiny.ids(np.random.default_rng(0), 20).astype(np.int64))[None]
    with torch.no_grad():
        before = model(input_ids=tokens).logits
        policy = Policy(model, "tree")
        torch.testing.assert_close(model(input_ids=tokens).logits, before, atol=1e-5, rtol=0)
        drawn = model.generate(tokens, max_new_tokens=5, do_sample=False)
        policy.close()
        assert torch.equal(model(input_ids=tokens).logits, before)
        assert torch.equal(model.generate(tokens, max_new_tokens=5, do_sample=False), drawn)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_forward_is_larger_than_its_budget(layout: Layout) -> None:
    """Nor would another record have fitted into any but the last of records that are all alike."""
    model = FAMILIES["llama"](torch.float32)
    fed: list[int] = []
    model.model.register_forward_pre_hook(lambda _, __, kw: fed.append(kw["input_ids"].numel()), with_kwargs=True)
    score(model, tiny.records([(2, (2,))]), layout=layout)  # the gates run first
    fed.clear()
    mixed = tiny.records([(3, (40, 2)), *[(4, (3, 2, 1))] * 20, (25, (1,)), (30, (30, 30))])
    score(model, mixed, layout=layout, max_tokens=130)
    assert max(fed) <= 130
    fed.clear()
    score(model, tiny.records([(4, (5, 3))] * 10), layout=layout, max_tokens=33)
    # a tree of 4 + 4 + 2 tokens, three to a forward; two rows of 8, two pairs to a forward
    assert fed == ([30, 30, 30, 10] if layout == "tree" else [32] * 5)


def test_refuses_what_would_be_silently_wrong() -> None:
    model = FAMILIES["llama"](torch.float32)
    record = tiny.records([(3, (2,))])[0]
    beyond = np.array([5, tiny.VOCAB], np.int32)  # its last token is never fed, so no embedding complains
    with pytest.raises(UserError, match="beyond the model's vocabulary of 97"):
        score(model, [TokenRecord(id="x", kind=Data.DEMONSTRATIONS, prompt=record.prompt, completions=(beyond,))])
    with pytest.raises(UserError, match="raise max_tokens"):
        score(model, tiny.records([(30, (4,))]), max_tokens=32)


def test_refuses_lengths_at_which_rotary_embeddings_depend_on_the_batch() -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16, **factors}
    model = tiny.model("phi3", rope_parameters=rope, max_position_embeddings=64, original_max_position_embeddings=16)
    data = tiny.records([(4, (5, 3))])
    assert worst(score(model, data), tiny.plain(model, data)) < 1e-5
    with pytest.raises(UserError, match=r"data\.max_length=16"):
        score(model, tiny.records([(10, (5, 7))]))


def test_refuses_more_tokens_than_the_model_has_positions() -> None:
    for family in ("gpt2", "opt"):
        model = tiny.model(family, max_position_embeddings=64)
        data = tiny.records([(60, (4, 3))])
        assert worst(score(model, data), tiny.plain(model, data)) < 1e-5
        with pytest.raises(UserError, match=r"65 tokens.*data\.max_length=64"):
            score(model, tiny.records([(60, (5, 3))]))
