"""Reports lengths in tokens, and how many records a `max_length` costs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from prefopt.data.doctor.findings import Finding, Histogram
from prefopt.data.doctor.shortcuts import histogram
from prefopt.data.token_table import TokenTable
from prefopt.plugin import Data

LIMITS = (256, 512, 1024, 2048, 4096, 8192)


class TokenLengths:
    """Token lengths of records that are not truncated."""

    def __init__(self, table: TokenTable) -> None:
        self.table = table
        self.prompt = table.prompt_lengths()
        self._flat, self._offsets = table.completion_lengths()
        longest = np.maximum.reduceat(self._flat, self._offsets[:-1]) if len(self._flat) else 0
        self.total: NDArray[np.int64] = self.prompt + longest

    def findings(self, max_length: int) -> Iterator[Finding]:
        """The records over this limit, and the pairs that truncation would make identical."""
        over = np.flatnonzero(self.total > max_length)
        p50, p95 = np.percentile(self.total, [50, 95])
        note = f"tokens a record: median {p50:.0f}, 95 % below {p95:.0f}, longest {self.total.max()}"
        ids = tuple(self.table[int(i)].id for i in over)
        yield Finding(name="too_long", figure=len(over), total=len(self.table), ids=ids, note=note)
        if self.table.kind is Data.PAIRS:
            same = [self.table[int(i)].id for i in over if self._identical(int(i), max_length)]
            yield Finding(name="identical_if_cut", figure=len(same), total=len(self.table), ids=tuple(same))

    def costs(self) -> list[dict[str, float]]:
        """For each usual limit, the share of records over it and of pairs that truncation would make identical."""
        found = []
        for limit in LIMITS:
            over = np.flatnonzero(self.total > limit)
            same = sum(self._identical(int(i), limit) for i in over) if self.table.kind is Data.PAIRS else 0
            count = max(len(self.table), 1)
            found.append({"max_length": limit, "dropped": len(over) / count, "identical_if_cut": same / count})
        return found

    def histogram(self) -> Histogram:
        """Tokens of prompts and completions."""
        series = {"prompt": self.prompt}
        if self.table.kind is Data.PAIRS:
            series |= {"chosen": self._flat[0::2], "rejected": self._flat[1::2]}
        elif self.table.kind is not Data.PROMPTS:
            series |= {"completion": self._flat}
        return histogram("Length in tokens", "tokens", series)

    def _identical(self, i: int, limit: int) -> bool:
        """Whether both sides have the same first `limit` tokens."""
        record = self.table[i]
        room = max(limit - len(record.prompt), 0)
        return np.array_equal(record.completions[0][:room], record.completions[1][:room])
