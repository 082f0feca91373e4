"""What every source of records gives: the global batch of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from prefopt.engine.packing import Indices
from prefopt.engine.reference.table import ReferenceTable
from prefopt.train.sources.feed import Feed


@dataclass(frozen=True, eq=False)
class GlobalBatch:
    """The records of one optimizer step, on all processes together.

    Attributes:
        feed: records as the engine scores them, among which are those of the step.
        index: the places of the step's records in `feed`.
        reference: the reference's log-probs of the feed's records, where the loss reads any that do not change.
    """

    feed: Feed
    index: Indices
    reference: ReferenceTable | None

    def __len__(self) -> int:
        return len(self.index)


class RecordSource(Protocol):
    """Gives the records of each optimizer step; every process gets the same ones.

    Attributes:
        prefetch: whether steps may be prepared in other processes, before the steps before them were made.
        records: records of a full step.
    """

    prefetch: bool
    records: int

    def __len__(self) -> int:
        """The number of steps in an epoch."""
        ...

    def step(self, index: int) -> GlobalBatch:
        """The records of step `index`, counted from the start of training over all epochs."""
        ...

    def fingerprint(self) -> str:
        """A digest of the records that the source draws on: a resume with other records is refused."""
        ...
