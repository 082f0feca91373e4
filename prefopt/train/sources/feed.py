"""What of each record the engine has to score for a loss, in an order that is the same for every loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from prefopt.data.token_table import TokenTable
from prefopt.data.tokens import TokenRecord
from prefopt.engine.packing import Lengths, prompt_keys
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
        self.kind = _kind(records)
        if self.kind is not needs.data and self.kind not in ALSO_TAKES[needs.data]:
            raise UserError(f"this loss is defined on {needs.data.value}, the records are {self.kind.value}")
        if needs.control_text and self.kind is Data.PAIRS:
            raise UserError("this loss trains with a control text, which differs between the sides of a pair: give "
                            "it unpaired records, each completion with its text (`prepare` makes them)")  # fmt: skip
        self.records = records
        self.first_only = not whole and needs.data is Data.DEMONSTRATIONS
        self.closing = needs.reward_model
        self._lengths = _lengths(records)
        self.partner: NDArray[np.int64] | None = None
        if needs.mismatched:
            assert self._lengths.prompt_key is not None
            self.partner = partners(self._lengths.prompt_key, seed)
        self._lengths = self._as_fed(self._lengths)

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
        if self.partner is None:
            return record if len(own) == len(record.completions) else replace(record, completions=own)
        other = self.records[int(self.partner[index])].completions
        return replace(record, completions=(*own, *(other[k % len(other)] for k in range(len(own)))))

    def own(self, fed: TokenRecord) -> int:
        """How many of a fed record's completions are its own."""
        return len(fed.completions) // (1 if self.partner is None else 2)

    @cached_property
    def own_counts(self) -> NDArray[np.int64]:
        """(N,) own completions of each record."""
        return np.diff(self._lengths.offsets) // (1 if self.partner is None else 2)

    def lengths(self) -> Lengths:
        """For the planner; records with the same prompt share a tree."""
        return self._lengths

    def _as_fed(self, lengths: Lengths) -> Lengths:
        """Lengths of the records as they are -> as they are fed."""
        offsets = lengths.offsets
        places: NDArray[np.integer] = np.arange(len(lengths.completions))  # of the completions that are fed
        if self.first_only:
            places, offsets = offsets[:-1], np.arange(len(lengths) + 1)
        if self.partner is not None:
            counts = np.diff(offsets)
            record = np.repeat(np.arange(len(lengths)), counts)
            item = np.arange(len(places)) - offsets[record]
            other = self.partner[record]
            both = np.empty(2 * len(places), places.dtype)
            at = item + 2 * offsets[record]
            both[at], both[at + counts[record]] = places, places[offsets[other] + item % counts[other]]
            places, offsets = both, 2 * offsets
        completions = lengths.completions[places] + self.closing  # a reward model also reads their last tokens
        trained = None if lengths.trained is None else lengths.trained[places]
        return replace(lengths, completions=completions, offsets=offsets, trained=trained)


def partners(prompt_key: NDArray[np.integer[Any]], seed: int) -> NDArray[np.int64]:
    """(N,) for each record another one with a different prompt: the next such one in a seeded cycle of all records.

    Fixed for the whole run, so that the reference scores each mismatched completion once; a shuffled batch of fixed
    mismatches estimates the same mean as mismatches drawn afresh.

    Raises:
        UserError: all records have the same prompt.
    """
    n = len(prompt_key)
    # Ranks of raw draws, whose stream numpy promises to keep.
    cycle = np.argsort(np.random.Philox(np.random.SeedSequence([seed])).random_raw(n), kind="stable")
    key = prompt_key[cycle]
    ends = np.flatnonzero(key != np.roll(key, -1))  # the last place of each run of one prompt
    if len(ends) == 0:
        raise UserError("this loss compares completions with those of other prompts, but all records have one prompt")
    end = ends[np.searchsorted(ends, np.arange(n)) % len(ends)]
    partner = np.empty(n, np.int64)
    partner[cycle] = cycle[(end + 1) % n]
    return partner


def _kind(records: Sequence[TokenRecord]) -> Data:
    if isinstance(records, TokenTable):
        return records.kind
    kinds = {r.kind for r in records}
    if len(kinds) > 1:
        raise UserError(f"records of several shapes: {', '.join(sorted(k.value for k in kinds))}; train on one")
    kind = kinds.pop()
    sizes = {Data.PAIRS: 2, Data.UNPAIRED: 1, Data.DEMONSTRATIONS: 1}
    for r in records:
        if len(r.completions) != sizes.get(kind, max(2, len(r.completions))):
            raise UserError(f"record {r.id} has {len(r.completions)} completions, which is not what {kind.value} have")
        if kind is Data.UNPAIRED and r.desirable is None:
            raise UserError(f"record {r.id} is unpaired and has no label: set `desirable`")
        if (kind is Data.LISTS or r.scores is not None) and len(r.scores or ()) != len(r.completions):
            raise UserError(f"record {r.id} needs one score for each completion")
    return kind


def _lengths(records: Sequence[TokenRecord]) -> Lengths:
    if not isinstance(records, TokenTable):
        return Lengths.of(records, share_prompts=True)
    completions, offsets = records.completion_lengths()
    return Lengths(
        prompt=records.prompt_lengths(),
        completions=completions,
        offsets=offsets,
        trained=records.trained_lengths(),
        prompt_key=prompt_keys(records.prompts()),
        ids=records.ids(),
    )
