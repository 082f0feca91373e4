"""Records of a data set, in a seeded order that is new in every epoch."""

from __future__ import annotations

import numpy as np

from prefopt.common.digest import of_records
from prefopt.engine.packing import Indices, epoch_order
from prefopt.engine.reference.table import ReferenceTable
from prefopt.train.sources.feed import Feed
from prefopt.train.sources.source import GlobalBatch, RecordSource


class Offline(RecordSource):
    """A source of fixed records: no record of an epoch is lost or repeated, and its last step may have fewer.

    Args:
        feed: the records as the engine scores them.
        records: records of a step.
        seed: seeds the order.
        shuffle: draw the order of each epoch, or keep that of the data, as evaluation does.
        reference: the reference's log-probs of the feed's records.
    """

    prefetch = True

    def __init__(
        self, feed: Feed, *, records: int, seed: int, shuffle: bool = True, reference: ReferenceTable | None = None
    ) -> None:
        self.feed, self.records, self.seed, self.shuffle, self.reference = feed, records, seed, shuffle, reference
        self._order: tuple[int, Indices] = (-1, np.empty(0, np.int64))  # of the last epoch that was asked for

    def __len__(self) -> int:
        return -(-len(self.feed) // self.records)

    def step(self, index: int) -> GlobalBatch:
        """The records of step `index`, counted over all epochs."""
        epoch, place = divmod(index, len(self))
        batch = self.order(epoch)[place * self.records : (place + 1) * self.records]
        return GlobalBatch(self.feed, batch, self.reference)

    def order(self, epoch: int) -> Indices:
        """The places of all records, in the order of an epoch."""
        if self._order[0] != epoch:
            size = len(self.feed)
            self._order = epoch, epoch_order(size, self.seed, epoch) if self.shuffle else np.arange(size)
        return self._order[1]

    def fingerprint(self) -> str:
        """A digest of the records, token by token, in the order of the data."""
        return of_records(self.feed.records)
