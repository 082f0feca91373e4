"""Holds token records in a memory-mapped Arrow table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prefopt.data.tokens import TokenRecord, num_trained
from prefopt.errors import UserError
from prefopt.plugin import Data

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("kind", pa.string()),
        ("prompt", pa.list_(pa.int32())),
        ("completions", pa.list_(pa.list_(pa.int32()))),
        ("desirable", pa.bool_()),
        ("scores", pa.list_(pa.float64())),
        ("weight", pa.float64()),
        ("margin", pa.float64()),
        ("probability", pa.float64()),
        ("source", pa.string()),
        ("prompt_key", pa.int64()),  # equal for equal prompts
        ("marked", pa.bool_()),  # whether a text of a turn holds special tokens or marks of a chat template
        ("given", pa.int32()),  # given tokens of the completions
        ("opened", pa.int32()),  # completions that do not end their turns
        ("truncated", pa.int32()),  # prompt tokens that were cut
        ("images", pa.list_(pa.string())),  # digests of the prompt's images; null for none
        ("reason", pa.string()),  # why the record is rejected; null if it is not
        ("detail", pa.string()),
    ]
)


BLOCK_ROWS = 10_000  # whose tokens are held at once


class TokenTable(Sequence[TokenRecord]):
    """A selection of rows of an Arrow table of token records, which is mapped from disk or in memory."""

    def __init__(self, table: pa.Table, rows: NDArray[np.int64] | None = None) -> None:
        self.table = table
        self.rows = np.arange(table.num_rows) if rows is None else rows
        if len(kinds := pc.unique(table.column("kind")).to_pylist()) > 1:
            raise UserError(f"records of several kinds in one table: {kinds}")
        self.kind = Data(kinds[0]) if kinds else Data.PAIRS

    @classmethod
    def from_records(cls, records: Iterable[TokenRecord]) -> TokenTable:
        """A table in memory."""
        rows = [
            {
                "id": record.id,
                "kind": record.kind.value,
                "prompt": record.prompt,
                "completions": list(record.completions),
                "desirable": record.desirable,
                "scores": record.scores,
                "weight": record.weight,
                "margin": record.margin,
                "probability": record.probability,
                "given": sum(len(ids) - num_trained(ids) for ids in record.completions),
                "opened": 0,
            }
            for record in records
        ]
        return cls(pa.Table.from_pylist(rows, schema=SCHEMA))

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> TokenRecord: ...
    @overload
    def __getitem__(self, index: slice) -> TokenTable: ...
    def __getitem__(self, index: int | slice) -> TokenRecord | TokenTable:
        if isinstance(index, slice):
            return TokenTable(self.table, self.rows[index])
        row = int(self.rows[index])
        scores = self.table.column("scores")[row].as_py()
        return TokenRecord(
            id=self.table.column("id")[row].as_py(),
            kind=self.kind,
            prompt=_array(self.table.column("prompt")[row].values),
            completions=tuple(_array(ids.values) for ids in self.table.column("completions")[row].values),
            desirable=self.table.column("desirable")[row].as_py(),
            scores=None if scores is None else tuple(scores),
            weight=self.table.column("weight")[row].as_py(),
            margin=self.table.column("margin")[row].as_py(),
            probability=self.table.column("probability")[row].as_py(),
        )

    def ids(self) -> list[str]:
        """The records' ids, in order."""
        return list(self._column("id").to_pylist())

    def prompt_lengths(self) -> NDArray[np.int64]:
        """(N,) tokens of each prompt."""
        return _numpy(pc.list_value_length(self._column("prompt")))

    def completion_lengths(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(flat, offsets): the completions of record i have `flat[offsets[i]:offsets[i + 1]]` tokens."""
        counts = _numpy(pc.list_value_length(self._column("completions")))
        flat = _numpy(pc.list_value_length(pc.list_flatten(self._column("completions"))))
        return flat, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def trained_lengths(self) -> NDArray[np.int64]:
        """Trained tokens of every completion, flat as in `completion_lengths`."""
        flat, offsets = self.completion_lengths()
        mixed = np.flatnonzero(self.given())
        if not len(mixed):
            return flat
        trained = flat.copy()
        for rows in np.array_split(mixed, -(-len(mixed) // BLOCK_ROWS)):
            inside = pc.list_flatten(self._column("completions").take(rows))
            starts = np.cumsum([0, *_numpy(pc.list_value_length(inside))[:-1]])
            places = np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in rows])
            trained[places] = np.add.reduceat(_numpy(pc.list_flatten(inside)) >= 0, starts, dtype=np.int64)
        return trained

    def given(self) -> NDArray[np.int64]:
        """(N,) given tokens in the completions of each record."""
        return _numpy(self._column("given"))

    def opened(self) -> NDArray[np.int64]:
        """(N,) completions of each record that do not end their turns."""
        return _numpy(self._column("opened"))

    def prompts(self) -> Iterator[NDArray[np.int32]]:
        """The token ids of each prompt, in order, without decoding the records."""
        column = self._column("prompt")
        for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
            ids, offsets = chunk.values.to_numpy(), chunk.offsets.to_numpy()
            for start, stop in pairwise(offsets.tolist()):
                yield ids[start:stop]

    def prompt_keys(self) -> NDArray[np.int64]:
        """(N,) equal for records with the same prompt text."""
        return _numpy(self._column("prompt_key"))

    def desirable_share(self) -> float:
        """The share of desirable completions (UNPAIRED records)."""
        return float(pc.mean(self._column("desirable").cast(pa.float64())).as_py())

    def share_of(self, token: int) -> float:
        """The share of a token among those of completions, of the table's first records."""
        tokens = pc.list_flatten(pc.list_flatten(self.table.column("completions").slice(0, BLOCK_ROWS)))
        return float(pc.mean(pc.equal(tokens, token).cast(pa.float64())).as_py() or 0)

    def marked(self) -> int:
        """The number of records with marks of a chat template in their texts."""
        return pc.sum(self._column("marked")).as_py() or 0

    def scored_lower(self) -> int:
        """The number of pairs whose rejected side has the higher score."""
        scores = pc.drop_null(self._column("scores"))
        if self.kind is not Data.PAIRS or not len(scores):
            return 0
        return int(pc.sum(pc.less(pc.list_element(scores, 0), pc.list_element(scores, 1))).as_py())

    def doubted(self) -> int:
        """The number of pairs whose margin is negative, or whose chosen side is the better one less often than not."""
        worse = pc.or_kleene(pc.less(self._column("margin"), 0.0), pc.less(self._column("probability"), 0.5))
        return pc.sum(worse).as_py() or 0

    def select(self, positions: NDArray[np.int64]) -> TokenTable:
        """The records at these positions."""
        return TokenTable(self.table, self.rows[positions])

    def _column(self, name: str) -> Any:
        column = self.table.column(name)
        whole = len(self.rows) == self.table.num_rows and np.array_equal(self.rows, np.arange(len(self.rows)))
        return column if whole else column.take(pa.array(self.rows))


def _array(values: Any) -> NDArray[np.int32]:
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.int32)


def _numpy(column: Any) -> NDArray[np.int64]:
    return np.asarray(column.to_numpy(), dtype=np.int64)
