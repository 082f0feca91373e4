"""Given tokens of a completion are read and never scored, in every layout, packing and split."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from prefopt.data.tokens import TokenRecord, as_given, num_trained, token_ids
from prefopt.engine.forward import Options
from prefopt.engine.layout import Layout, Tree, lay_out
from prefopt.engine.policy import opened
from prefopt.engine.reference.fingerprint import fingerprint
from prefopt.engine.reference.store import ReferenceStore, entry_key
from prefopt.engine.reference.table import reference_table
from prefopt.engine.scoring import Branch, MicroBatch, score
from prefopt.plugin import Data, Vocab
from tests.engine import tiny

SHAPES = [(5, (4, 7)), (1, (3, 1)), (9, (1, 1)), (6, (2, 5, 1, 8)), (7, (9,)), (30, (12, 3))]
DATA = tiny.with_spans(tiny.records(SHAPES))
LAYOUTS: list[Layout] = ["tree", "padded"]


def trained_only(model: Any, data: list[TokenRecord]) -> list[list[np.ndarray[Any, Any]]]:
    """What a plain forward of the ids gives for the trained tokens."""
    read = [replace(r, completions=tuple(map(token_ids, r.completions))) for r in data]
    return [
        [logp[completion >= 0] for logp, completion in zip(rows, record.completions, strict=True)]
        for rows, record in zip(tiny.plain(model, read), data, strict=True)
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_trained_tokens_are_those_of_a_plain_forward(family: str, layout: Layout) -> None:
    model = tiny.build(tiny.AutoConfig.for_model("gpt2", **tiny.GPT2)) if family == "gpt2" else tiny.model(family)
    truth = trained_only(model, DATA)
    for max_tokens in (4096, 90):
        wanted = Options(entropy=True, vocab=frozenset({Vocab.LOG_SUM_SQ}))
        scored = score(model, DATA, layout=layout, tokens=True, options=wanted, max_tokens=max_tokens)
        for found, record, want in zip(scored, DATA, truth, strict=True):
            assert found.num_tokens.tolist() == [num_trained(c) for c in record.completions]
            np.testing.assert_allclose(found.sum, [w.sum() for w in want], atol=1e-5)
            assert found.token is not None
            assert found.entropy is not None
            assert found.log_sum_sq is not None
            for k, logps in enumerate(want):
                np.testing.assert_allclose(found.token[k], logps, atol=1e-5)
                assert len(found.entropy[k]) == len(found.log_sum_sq[k]) == len(logps)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_log_prob_of_a_given_token_is_nowhere(layout: Layout) -> None:
    """Another given token changes what the trained ones after it see, and nothing before it; it is no target."""
    model = tiny.model("llama", dtype=torch.float64)
    one = DATA[5]
    (long, short) = one.completions
    at = int(np.flatnonzero(long < 0)[-1])
    other = long.copy()
    other[at] = as_given((token_ids(long)[at] + 1) % tiny.VOCAB)
    changed = replace(one, completions=(other, short))
    first, second = score(model, [one, changed], layout=layout, tokens=True)
    (want,) = trained_only(model, [changed])
    np.testing.assert_allclose(second.sum, [w.sum() for w in want], atol=1e-9)
    before = num_trained(long[:at])
    assert first.token is not None
    assert second.token is not None
    np.testing.assert_array_equal(first.token[0][:before], second.token[0][:before])
    assert np.abs(first.token[0][before:] - second.token[0][before:]).min() > 0
    row = lay_out([Tree(one.prompt, one.completions)], layout)
    assert row.target.tolist() == [int(t) for c in one.completions for t in c if t >= 0]
    assert row.input_ids.min() >= 0
    assert row.max_id == max(int(token_ids(c).max()) for c in (one.prompt, *one.completions))


def test_all_tokens_trained_is_what_it_was_without_spans() -> None:
    plain = tiny.records(SHAPES)
    for layout in LAYOUTS:
        row = lay_out([Tree(r.prompt, r.completions) for r in plain], layout)
        assert row.num_tokens.tolist() == [len(c) for r in plain for c in r.completions]
        assert row.target.tolist() == [int(t) for r in plain for c in r.completions for t in c]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_do_not_depend_on_the_split(layout: Layout) -> None:
    model = tiny.model("llama", dtype=torch.float64).train()
    branches = [Branch(r.prompt, c) for r in DATA for c in r.completions]
    found = []
    for size in (len(branches), 3, 1):
        model.zero_grad()
        with opened(model, layout) as policy:
            for i in range(0, len(branches), size):
                out = MicroBatch.of(branches[i : i + size], layout).forward(policy)
                (out.sum / out.num_tokens).sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)  # norms compute in float32


def test_the_reference_store_knows_spans_apart(tmp_path: Any) -> None:
    """The same text with other spans is another entry, and each has the log-probs of its trained tokens."""
    model = tiny.model("llama")
    (pair,) = tiny.records([(5, (4, 7))])
    (spans,) = tiny.with_spans([pair], seed=3)
    assert entry_key(pair.prompt, pair.completions[1]) != entry_key(pair.prompt, spans.completions[1])
    data = [replace(pair, id="a", kind=Data.PAIRS), replace(spans, id="b", kind=Data.PAIRS)]
    for _ in range(2):  # computed, then found
        table = reference_table(model, data, ReferenceStore(tmp_path, fingerprint(model)))
        for i, want in enumerate(trained_only(model, data)):
            for got, logps in zip(table.token(i), want, strict=True):
                np.testing.assert_allclose(got, logps, atol=1e-5)
    assert (table.hits, table.misses) == (4, 0)
