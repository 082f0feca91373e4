"""The table of token records: columns, selections, and records made again."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from prefopt.data import DataConfig, TokenTable, make, token_table, tokenize
from prefopt.data.tokens import TokenRecord
from prefopt.plugin import Data, Needs
from prefopt.train.sources.feed import Feed
from tests.data.tiny import tokenizer


def test_table(tmp_path: Path) -> None:
    made = tokenizer()
    records = [make.pair(f"Question {'very ' * i}?", f"yes {i}", "no") for i in range(7)]
    table = tokenize(records, made, DataConfig(path="x")).records
    rows = list(table)
    assert table.ids() == [row.id for row in rows] == [record.id for record in records]
    assert table.prompt_lengths().tolist() == [len(row.prompt) for row in rows]
    flat, offsets = table.completion_lengths()
    assert [flat[a:b].tolist() for a, b in pairwise(offsets)] == [[len(ids) for ids in row.completions] for row in rows]
    some = table.select(np.array([5, 2]))
    assert some.ids() == [records[5].id, records[2].id]
    assert some[0].prompt.tolist() == rows[5].prompt.tolist()
    assert some.prompt_lengths().tolist() == [len(rows[5].prompt), len(rows[2].prompt)]
    again = TokenTable.from_records(rows)
    assert [row.prompt.tolist() for row in again] == [row.prompt.tolist() for row in rows]
    assert again.trained_lengths().tolist() == table.trained_lengths().tolist() == flat.tolist()
    assert (again[0].desirable, again[0].scores, again[0].weight) == (None, None, 1.0)


def test_trained_tokens_are_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of records with given tokens and without, in one block of rows and in several."""
    ids = [np.array(one, np.int32) for one in ([1, 2], [~3, ~4, 5], [6], [7, ~8, 9, ~9, 9])]
    records = [
        TokenRecord(id=str(i), kind=Data.PAIRS, prompt=ids[0], completions=(ids[a], ids[b]))
        for i, (a, b) in enumerate([(0, 2), (1, 0), (2, 3), (3, 1), (0, 0)])
    ]
    expected = [2, 1, 1, 2, 1, 3, 3, 1, 2, 2]
    for block in (10_000, 1):
        monkeypatch.setattr(token_table, "BLOCK_ROWS", block)
        table = TokenTable.from_records(records)
        assert table.trained_lengths().tolist() == expected
        assert table.select(np.array([3, 0])).trained_lengths().tolist() == [3, 1, 2, 1]
    for needs, fed in (
        (Needs(data=Data.PAIRS, reference=False), expected),
        (Needs(data=Data.DEMONSTRATIONS, reference=False), expected[::2]),
    ):
        for given in (records, TokenTable.from_records(records)):
            lengths = Feed(given, needs, whole=False, seed=0).lengths()
            assert lengths.trained is not None
            assert lengths.trained.tolist() == fed
