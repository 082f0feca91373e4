"""What every source of records gives: the global batch of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from prefopt.engine.packing import Indices
from prefopt.engine.reference.table import ReferenceTable
from prefopt.train.examples import Drawn
from prefopt.train.sources.feed import Feed


@dataclass(frozen=True, eq=False)
class GlobalBatch:
    """The records of one optimizer step, on all processes together.

    Attributes:
        feed: records as the engine scores them, among which are those of the step.
        index: the places of the step's records in `feed`.
        reference: the reference's log-probs of the feed's records, where the loss reads any that do not change.
        drawn: what each of the feed's records was drawn with, where the policy wrote them.
        fresh: the policy is still as it was when it wrote them.
        figures: of the records, to be logged with the step.
        temperature: of the policy that the loss learns from: its logits are divided by it.
    """

    feed: Feed
    index: Indices
    reference: ReferenceTable | None
    drawn: Sequence[Drawn] | None = None
    fresh: bool = True
    figures: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 1.0

    def __len__(self) -> int:
        return len(self.index)


class RecordSource(Protocol):
    """Gives the records of each optimizer step; every process gets the same ones. Sources inherit from it.

    Attributes:
        prefetch: whether steps may be prepared in other processes, before the steps before them were made.
        records: records of a full step.
        options: by their names, the options that decide what is drawn: a resume with others is refused.
    """

    prefetch: bool
    records: int

    @property
    def options(self) -> Mapping[str, Any]:
        return {}

    def __len__(self) -> int:
        """The number of steps in an epoch."""
        ...

    def step(self, index: int) -> GlobalBatch:
        """The records of step `index`, counted from the start of training over all epochs."""
        ...

    def resumes_after(self, steps: int) -> bool:
        """Whether a run can be resumed after so many steps: where the next ones need nothing that is not kept."""
        return True

    def fingerprint(self) -> str:
        """A digest of the records that the source draws on: a resume with other records is refused."""
        ...
