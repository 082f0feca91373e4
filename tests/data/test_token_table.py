"""The table of token records: columns, selections, and records made again."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from prefopt.data import DataConfig, TokenTable, make, tokenize
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
    assert (again[0].desirable, again[0].scores, again[0].weight) == (None, None, 1.0)
