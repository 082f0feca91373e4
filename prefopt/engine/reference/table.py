"""Builds the table of a reference's log-probs for some records, from the store where it can.

Entries are named after the token ids of prompt and completion, so pairs, lists and single completions of the same texts
share them, and so do losses, seeds, orders and length limits. A later run computes only what is missing, and checks a
few of the entries that it reuses by computing them again.

The last bits of a log-prob depend on what else is in its forward. Forwards are therefore packed by the texts alone,
whatever the order of the records, `batch.max_tokens` and the number of steps are: where the same texts are missing, the
bits are the same. A run that reads a part of the records computes only the batches that have one of them.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.common.cache import making
from prefopt.data.tokens import TokenRecord, num_trained
from prefopt.engine.forward import Options
from prefopt.engine.gates import rounding
from prefopt.engine.policy import opened
from prefopt.engine.reference.store import Array, Entry, Key, ReferenceStore, entry_key
from prefopt.engine.scoring import Scored, fed_tokens, score
from prefopt.errors import UserError

# A part is written after so many tokens or seconds, whichever comes first: a kill loses no more.
PART_TOKENS = 200_000
PART_SECONDS = 60.0
# Tokens scored between two looks at the clock.
BATCH_TOKENS = 16_384
# Tokens of a forward.
FORWARD_TOKENS = 4096
# Entries computed again when a store is reused.
VERIFIED = 4
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class ReferenceTable:
    """The reference's log-probs of the completions of some records, flat over the records.

    Attributes:
        sum: (C,) float32 nats.
        offsets: (N + 1,) record i has completions `offsets[i]` to `offsets[i + 1] - 1`.
        hits, misses: entries found in the store, and computed now.
    """

    sum: NDArray[np.float32]
    offsets: NDArray[np.int64]
    hits: int
    misses: int
    _token: list[Array]
    _entropy: list[Array] | None

    @classmethod
    def of(cls, scored: Sequence[Scored]) -> ReferenceTable:
        """A table of records that were just scored, with their tokens: what a store has no place for."""
        counts = [len(record.sum) for record in scored]
        entropy = [values for record in scored for values in record.entropy or ()]
        return cls(
            sum=np.concatenate([record.sum for record in scored]).astype(np.float32),
            offsets=np.cumsum([0, *counts], dtype=np.int64),
            hits=0,
            misses=sum(counts),
            _token=[values for record in scored for values in record.token or ()],
            _entropy=entropy or None,
        )

    def token(self, record: int) -> list[Array]:
        """Per-token log-probs of each completion of a record, memory-mapped."""
        return self._token[self.offsets[record] : self.offsets[record + 1]]

    def entropy(self, record: int) -> list[Array]:
        """Per-token entropies of the reference's distribution."""
        if self._entropy is None:
            raise ValueError("this table was made without entropies")
        return self._entropy[self.offsets[record] : self.offsets[record + 1]]


def reference_table(
    model: Any,
    records: Sequence[TokenRecord],
    store: ReferenceStore,
    *,
    entropy: bool = False,
    process: tuple[int, int] = (0, 1),
    barrier: Callable[[], None] = lambda: None,
    progress: Progress = lambda done, total: None,
    read: NDArray[np.int64] | None = None,
) -> ReferenceTable:
    """The table of `records`; entries that the store lacks are computed with `model` and added to it.

    The records are packed in the same way whatever the store has and whatever is read, so that a log-prob has the same
    bits in every run. A batch of them is computed if one of its records is read.

    Args:
        model: the reference, as the store's fingerprint saw it; a model or a `Policy`.
        records: the records to score.
        store: where entries are kept.
        entropy: also keep the entropies of the reference's distributions.
        process: (rank, count) of those that build the table together, each its share; `barrier` waits for the others.
        progress: called with the numbers of records done since the last call, and of all.
        read: places of the records that will be read, for which alone the table then has values; None: all.

    Raises:
        UserError: entries in the store are not what was written, or not what the model gives now, or not finite.
    """
    store.refresh()
    store.check()
    is_read = np.ones(len(records), bool) if read is None else np.isin(np.arange(len(records)), read)
    with opened(model) as policy:
        reference = _Pass(policy, records, [_Texts.of(record) for record in records], is_read, store, entropy)
        # Of several runs that lack the same entries, one computes them; the processes of one run share them out.
        with making(store.folder) if process[1] == 1 and reference.missing() else nullcontext():
            store.refresh()
            hits = reference.run(process, progress)
    barrier()
    store.refresh()
    keys = reference.keys
    rows = _entries(store, keys, is_read, entropy)
    store.touch()
    return ReferenceTable(
        sum=np.array([t.sum(dtype=np.float64) if len(t) else math.nan for t, _ in rows], np.float32),
        offsets=np.cumsum([0, *map(len, keys)], dtype=np.int64),
        hits=hits,
        misses=sum(len(record) for record, used in zip(keys, is_read, strict=True) if used) - hits,
        _token=[token for token, _ in rows],
        _entropy=[values for _, values in rows if values is not None] if entropy else None,
    )


def _entries(
    store: ReferenceStore, keys: Sequence[Sequence[bytes]], is_read: NDArray[np.bool_], entropy: bool
) -> list[Any]:
    """The store's entry of every completion; an empty one for records that are not read."""
    nothing = np.empty(0, np.float32)
    found = [store.get(k, entropy) if used else (nothing, nothing) for record, used in zip(keys, is_read, strict=True)
             for k in record]  # fmt: skip
    rows = [entry for entry in found if entry is not None]
    if len(rows) < len(found):
        raise UserError(f"the reference store {store.folder} lost entries while it was built: is another process "
                        "pruning it? Start again")  # fmt: skip
    return rows


@dataclass(frozen=True, eq=False, slots=True)
class _Texts:
    """What a pass asks of each record: the keys of its completions' entries, and lengths in tokens. Records are read
    from a file each time, so it is kept."""

    keys: list[Key]
    prompt: int
    completions: list[int]
    trained: list[int]

    @classmethod
    def of(cls, record: TokenRecord) -> _Texts:
        completions = record.completions
        return cls([entry_key(record.prompt, c) for c in completions], len(record.prompt), list(map(len, completions)),
                   [int(num_trained(c)) for c in completions])  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Pass:
    """One pass of a reference over records; `is_read` (N,) says which are read."""

    policy: Any
    records: Sequence[TokenRecord]
    texts: list[_Texts]
    is_read: NDArray[np.bool_]
    store: ReferenceStore
    entropy: bool

    @cached_property
    def keys(self) -> list[list[Key]]:
        """The keys of each record's completions."""
        return [record.keys for record in self.texts]

    def run(self, process: tuple[int, int], progress: Progress) -> int:
        """Compute this process's share of what the store lacks; returns the number of entries that it has."""
        missing = self.missing()
        lacking = {self.keys[i][c] for i, completions in missing.items() for c in completions}
        read = [set(record) for record, used in zip(self.keys, self.is_read, strict=True) if used]
        wanted = lacking & set().union(*read)
        hits = sum(len(k) for k, used in zip(self.keys, self.is_read, strict=True) if used) - len(wanted)
        if hits > 0:
            self.verify()
        batches = self._batches_with(wanted, missing, process)
        ready = sum(record.isdisjoint(lacking) for record in read)
        total = ready + sum(map(len, batches))
        progress(ready, total)
        self.fill(batches, missing, lambda done: progress(done, total))
        return hits

    def _batches_with(
        self, wanted: set[Key], missing: Mapping[int, list[int]], process: tuple[int, int]
    ) -> list[list[int]]:
        """The records of this process that lack entries, of those batches of all texts that have a wanted entry."""
        if not wanted:
            return []
        rank, count = process
        # Shared out by content, not by place among the missing: processes may see different stores.
        mine = {i: c for i, c in self.distinct.items() if int.from_bytes(self.keys[i][0][:8], "little") % count == rank}
        found = []
        for batch in self._batches(mine, BATCH_TOKENS):
            lack = [i for i in batch if i in missing]
            if any(self.keys[i][c] in wanted for i in lack for c in missing[i]):
                found.append(lack)
        return found

    @cached_property
    def distinct(self) -> dict[int, list[int]]:
        """Record -> its completions, each text once."""
        found: dict[int, list[int]] = {}
        seen: set[Key] = set()
        for i, record in enumerate(self.keys):
            for c, key in enumerate(record):
                if key not in seen:
                    seen.add(key)
                    found.setdefault(i, []).append(c)
        return found

    def missing(self) -> dict[int, list[int]]:
        """Record -> its completions that the store lacks, each text once."""
        missing: dict[int, list[int]] = {}
        for i, completions in self.distinct.items():
            for c in completions:
                entry = self.store.get(self.keys[i][c], self.entropy)
                scored = self.texts[i].trained[c]
                if entry is None:
                    missing.setdefault(i, []).append(c)
                elif len(entry[0]) != scored:
                    raise UserError(f"the reference store {self.store.folder} has {len(entry[0])} tokens for a text of "
                                    f"record {self.records[i].id} with {scored}; delete "
                                    f"it with `prefopt reference prune {self.store.folder.name}`")  # fmt: skip
        return missing

    def fill(self, batches: list[list[int]], missing: dict[int, list[int]], progress: Callable[[int], None]) -> None:
        """Compute what is missing of the records in batches, and write it part by part."""
        entries: dict[Key, Entry] = {}
        tokens, since = 0, time.monotonic()
        for batch in batches:
            for i, scored in zip(batch, self._score(batch, missing, progress), strict=True):
                assert scored.token is not None
                for n, c in enumerate(missing[i]):
                    entries[self.keys[i][c]] = scored.token[n], scored.entropy[n] if scored.entropy else None
                tokens += int(scored.num_tokens.sum())
            if tokens >= PART_TOKENS or time.monotonic() - since >= PART_SECONDS:
                self.store.add(entries)
                entries, tokens, since = {}, 0, time.monotonic()
        self.store.add(entries)

    def verify(self) -> None:
        """Compute a few entries again that are about to be reused, and compare."""
        have = [(i, c) for i, r in enumerate(self.keys) for c, k in enumerate(r) if self.store.get(k, self.entropy)]
        tolerance = rounding(self.policy)
        # Its own generator: the caller's must not depend on whether entries were there.
        chosen = random.Random(hashlib.blake2b(b"".join(self.keys[i][c] for i, c in have)).digest())
        for i, c in chosen.sample(have, min(VERIFIED, len(have))):
            entry = self.store.get(self.keys[i][c], self.entropy)
            (scored,) = self._score([i], {i: [c]})
            assert entry is not None
            assert scored.token is not None
            error = float(np.abs(scored.token[0] - entry[0]).max())
            if not error <= tolerance:
                raise UserError(
                    f"the reference store {self.store.folder} disagrees with the model by {error:.2g} nats on a token "
                    f"of record {self.records[i].id}: it was changed, or made by other versions of the libraries; "
                    f"delete it with `prefopt reference prune {self.store.folder.name}`"
                )

    def _batches(self, missing: dict[int, list[int]], tokens: int) -> list[list[int]]:
        """Records in batches of about so many tokens, longest first: a lack of memory shows at once."""
        size = {
            i: self.texts[i].prompt + sum(self.texts[i].completions[c] for c in completions)
            for i, completions in missing.items()
        }
        batches: list[list[int]] = []
        room = 0
        for i in sorted(missing, key=lambda i: (-size[i], self.keys[i])):
            if not batches or room < size[i]:
                batches.append([])
                room = tokens
            batches[-1].append(i)
            room -= size[i]
        return batches

    def _score(
        self,
        batch: Sequence[int],
        completions: dict[int, list[int]],
        progress: Callable[[int], None] = lambda n: None,
    ) -> list[Scored]:
        """Log-probs of some completions of some records.

        Raises:
            UserError: one that is not finite, which would spoil every run that finds it in the store.
        """
        cut = [_part_of(self.records[i], completions[i]) for i in batch]
        budget = max(FORWARD_TOKENS, *(fed_tokens(record, "padded") for record in cut))
        found = score(self.policy, cut, max_tokens=budget, tokens=True,
                      options=Options(entropy=self.entropy), progress=progress)  # fmt: skip
        for i, scored in zip(batch, found, strict=True):
            for what, values in (("log-prob", scored.token), ("entropy", scored.entropy)):
                if values is not None:
                    for c, value in zip(completions[i], values, strict=True):
                        _check_finite(what, value, f"completion {c + 1} of record {self.records[i].id}")
        return found


def _part_of(record: TokenRecord, completions: Sequence[int]) -> TokenRecord:
    """A record with some of its completions."""
    kept = tuple(record.completions[c] for c in completions)
    return TokenRecord(id=record.id, kind=record.kind, prompt=record.prompt, completions=kept)


def _check_finite(what: str, values: Array, where: str) -> None:
    bad = values[~np.isfinite(values)]
    if len(bad):
        raise UserError(
            f"the reference's {what} is {bad[0]} on {len(bad)} of {len(values)} tokens of {where}, and is not stored; "
            "check the reference's weights, compute in bf16 or float32 if this is fp16, or look at this record"
        )
