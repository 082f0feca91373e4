"""What of each record the engine has to score for a loss, in an order that is the same for every loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from prefopt.data.tokens import TokenRecord
from prefopt.engine.plan import Lengths, prompt_keys
from prefopt.errors import UserError
from prefopt.plugin import Data, Needs

# What a loss on the left can be trained on, besides records of its own shape: it is handed the parts that it needs.
ALSO_TAKES: dict[Data, frozenset[Data]] = {
    Data.PAIRS: frozenset(),
    Data.UNPAIRED: frozenset({Data.PAIRS}),  # a pair is a desirable and an undesirable completion
    Data.LISTS: frozenset({Data.PAIRS}),  # a pair is a list of two
    Data.DEMONSTRATIONS: frozenset({Data.PAIRS}),  # the chosen side
}


class Feed(Sequence[TokenRecord]):
    """Records as the engine scores them for one loss.

    A record keeps its place whatever the loss: what differs is which completions are scored. `whole=False` leaves out
    those that the loss does not read (the rejected side, for SFT). For losses that need them, completions of another
    record are appended: item k of a record gets completion k of a fixed partner with a different prompt.

    Args:
        records: tokenized records, all of one kind.
        needs: of the loss.
        whole: score every completion, as evaluation does, so that all methods report the same figures.
        seed: of the partners.

    Raises:
        UserError: no records, or records that do not fit the loss.
    """

    def __init__(self, records: Sequence[TokenRecord], needs: Needs, *, whole: bool, seed: int) -> None:
        if len(records) == 0:
            raise UserError("there are no records to train on: see which rows were rejected, and why")
        kind = records[0].kind
        if kind is not needs.data and kind not in ALSO_TAKES[needs.data]:
            raise UserError(f"this loss is defined on {needs.data.value}, the records are {kind.value}")
        self.kind = kind
        self.records = records
        self.first_only = not whole and needs.data is Data.DEMONSTRATIONS
        self.partner = partners(records, seed) if needs.mismatched else None

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> TokenRecord: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[TokenRecord]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        record = self.records[index]
        own = record.completions[:1] if self.first_only else record.completions
        if self.partner is None and len(own) == len(record.completions):
            return record
        extra: tuple[Any, ...] = ()
        if self.partner is not None:
            other = self.records[int(self.partner[index])].completions
            extra = tuple(other[k % len(other)] for k in range(len(own)))
        return TokenRecord(
            id=record.id,
            kind=record.kind,
            prompt=record.prompt,
            completions=(*own, *extra),
            desirable=record.desirable,
            scores=record.scores,
            weight=record.weight,
        )

    def own(self, fed: TokenRecord) -> int:
        """How many of a fed record's completions are its own."""
        return len(fed.completions) // (1 if self.partner is None else 2)

    def lengths(self) -> Lengths:
        """For the planner; records with the same prompt share a tree."""
        return Lengths.of(self, share_prompts=True)


def partners(records: Sequence[TokenRecord], seed: int) -> NDArray[np.int64]:
    """(N,) for each record another one with a different prompt: the next such one in a seeded cycle.

    Fixed for the whole run, so that the reference scores each mismatched completion once; a shuffled batch of fixed
    mismatches estimates the same mean as mismatches drawn afresh.

    Raises:
        UserError: all records have the same prompt.
    """
    keys = prompt_keys(r.prompt for r in records)
    n = len(keys)
    if (keys == keys[0]).all():
        raise UserError("this loss compares completions with those of other prompts, but all records have one prompt")
    order = np.random.default_rng(seed).permutation(n)
    partner = np.empty(n, np.int64)
    ahead = 1  # distance in the cycle to the next record with another prompt
    for at in range(n):
        ahead = max(ahead - 1, 1)
        while keys[order[(at + ahead) % n]] == keys[order[at]]:
            ahead += 1
        partner[order[at]] = order[(at + ahead) % n]
        if keys[order[(at + 1) % n]] != keys[order[at]]:
            ahead = 1
    return partner
