"""Defines the settings of the Hydra group `batch`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from prefopt.common.option_limits import Limits, at_least, one_of
from prefopt.engine.packing import row_tokens

if TYPE_CHECKING:  # options are checked before torch is loaded
    from prefopt.engine.layout import Layout
    from prefopt.train.sources.feed import Feed


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How records become batches. The defaults of the Hydra group `batch`."""

    LIMITS: ClassVar[Limits] = {
        "records": at_least(1), "max_tokens": at_least(1), "layout": one_of("auto", "tree", "padded"),
    }  # fmt: skip

    records: int = 32  # records of one optimizer step, on all processes together
    max_tokens: int | None = None  # positions of one forward on one device: memory, not results; None: by the device
    layout: str = "auto"  # auto, tree or padded

    def budget(self, device: str, longest: int = 0, *, own_samples: bool = False) -> int:
        """`max_tokens`, by default what suits the `device`, and never less than the `longest` record."""
        return self.max_tokens or max(row_tokens(device, own_samples=own_samples), longest)

    def settled(self, device: str, feeds: Iterable[Feed | None], layout: Layout) -> BatchConfig:
        """With the `budget` of these feeds as `max_tokens`."""
        longest = [int(feed.lengths().tokens(layout).max()) for feed in feeds if feed is not None and len(feed)]
        return replace(self, max_tokens=self.budget(device, max(longest, default=0)))
