"""Packs the records of a global batch into micro-batches of the processes, by their lengths alone.

The trees of a global batch are dealt to the processes so that each has the same work, then, in each process, to
micro-batches of at most `max_tokens` tokens; every process gets the same number of micro-batches, because FSDP hangs
otherwise. Steps are packed one at a time, when asked for: an epoch of any length needs memory for its order and one
number or two per record, and nothing per step.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefopt.data.tokens import num_trained
from prefopt.errors import UserError

if TYPE_CHECKING:
    from prefopt.data.tokens import Ids, TokenRecord
    from prefopt.engine.layout import Layout

Indices = NDArray[np.int64]
Step = list[list[Indices]]  # [process][micro-batch] -> record indices; an empty array is a micro-batch without records


def row_tokens(device: str, *, own_samples: bool = False) -> int:
    """Positions of one forward that suit a type of device.

    On a CPU longer rows take memory, and shorter ones add up the gradients of all weights more often. A run on own
    samples, which keeps the weights of a reference too, gets the shorter rows.
    """
    if device != "cpu":
        return 4096
    return 512 if own_samples else 1024


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What tokens cost relative to one token's way through the linear layers of the whole model.

    Of a decoder layer of width h: projections of the attention 4 h^2 weights, of the MLP 8 h^2, two FLOPs each and
    token: 24 h^2. A query-key pair costs 2 h for the score and 2 h for the sum of values: 4 h, that is 1 / (6 h) of a
    token. The output layer costs 2 h V for each trained token and nothing for any other: V / (12 h L) of a token
    in a model of L layers. The backward doubles each alike and leaves the ratios.

    Attributes:
        attention: cost of one query-key pair; the default is that of a width of 2,048.
        head: cost of one trained token in the output layer; the default is that of 24 such layers and 50,000 words.
    """

    attention: float = 1 / (6 * 2048)
    head: float = 50_000 / (12 * 2048 * 24)

    @classmethod
    def of(cls, *, hidden_size: int, num_layers: int, vocab_size: int) -> Cost:
        """The costs of a dense decoder of these sizes."""
        return cls(attention=1 / (6 * hidden_size), head=vocab_size / (12 * hidden_size * num_layers))


@dataclass(frozen=True, eq=False)
class Lengths:
    """Lengths in tokens of N records; all that the planner knows of them.

    Attributes:
        prompt: (N,) tokens of the shared prompt, >= 1.
        completions: tokens of every completion, >= 1, flat over the records; record i's are
            `completions[offsets[i] : offsets[i + 1]]`, at least one. A mismatched completion is one more of them.
        offsets: (N + 1,).
        trained: of every completion the tokens that are trained, which alone go through the output layer; None: all.
        prompt_key: (N,) integers, equal where prompts are equal token for token (`prompt_keys`): such records of a
            global batch then share one tree and its tokens are counted once. None: every record is its own tree.
        ids: names of the records, for messages.

    Raises:
        ValueError: the arrays do not fit together, or a length is below 1.
    """

    prompt: NDArray[np.integer]
    completions: NDArray[np.integer]
    offsets: NDArray[np.integer]
    trained: NDArray[np.integer] | None = None
    prompt_key: NDArray[np.integer] | None = None
    ids: Sequence[str] | None = None

    def __post_init__(self) -> None:
        n = len(self.prompt)
        if self.offsets.shape != (n + 1,) or self.offsets[0] != 0 or self.offsets[-1] != len(self.completions):
            raise ValueError(f"offsets must be ({n + 1},), from 0 to the number of completions")
        if n and (np.diff(self.offsets).min() < 1 or self.prompt.min() < 1 or self.completions.min() < 1):
            raise ValueError("every record needs a prompt of at least one token and a completion of at least one")
        if self.trained is not None and len(self.trained) != len(self.completions):
            raise ValueError(f"trained must have one entry for each of the {len(self.completions)} completions")
        for name, value in (("prompt_key", self.prompt_key), ("ids", self.ids)):
            if value is not None and len(value) != n:
                raise ValueError(f"{name} must have one entry for each of the {n} records, got {len(value)}")

    @classmethod
    def of(cls, records: Sequence[TokenRecord], *, share_prompts: bool = False) -> Lengths:
        """The lengths of tokenized records; `share_prompts` lets records with the same prompt share a tree."""
        return cls(
            prompt=np.array([len(r.prompt) for r in records], dtype=np.int32),
            completions=np.array([len(c) for r in records for c in r.completions], dtype=np.int32),
            offsets=np.cumsum([0, *(len(r.completions) for r in records)], dtype=np.int64),
            trained=np.array([num_trained(c) for r in records for c in r.completions], dtype=np.int32),
            prompt_key=prompt_keys(r.prompt for r in records) if share_prompts else None,
            ids=[r.id for r in records],
        )

    def __len__(self) -> int:
        return len(self.prompt)

    def tokens(self, layout: Layout = "tree") -> NDArray[np.int64]:
        """(N,) positions that a record takes in a forward of its own: tokens, and in padded rows their filling.

        A completion's last token is not fed: nothing is predicted from it.
        """
        if layout == "padded":
            return self.rows() * self.widths()
        tokens: Indices = self.prompt + self._sum(self.completions - 1)
        return tokens

    def scored(self, records: Indices | slice = slice(None)) -> NDArray[np.int64]:
        """Tokens of these records that go through the output layer: those of their completions that are trained."""
        return self._sum(self.completions if self.trained is None else self.trained)[records]

    def rows(self) -> Indices:
        """(N,) padded rows of a record: one for each completion."""
        return np.diff(self.offsets).astype(np.int64)

    def widths(self) -> Indices:
        """(N,) positions of a record's longest padded row."""
        longest = np.maximum.reduceat(self.completions, self.offsets[:-1])
        return self.prompt.astype(np.int64) + longest - 1

    def work(self, cost: Cost, layout: Layout = "tree") -> NDArray[np.float64]:
        """(N,) cost in units of one token's linear cost: tokens, query-key pairs, trained tokens in the head."""
        prompt, fed = self.prompt.astype(np.float64), (self.completions - 1).astype(np.float64)
        copies = self.rows() if layout == "padded" else 1
        pairs = copies * prompt**2 / 2 + prompt * self._sum(fed) + self._sum(fed**2) / 2
        work: NDArray[np.float64] = self.tokens(layout) + cost.attention * pairs + cost.head * self.scored()
        return work

    def _sum(self, values: NDArray[Any]) -> NDArray[Any]:
        """(N,) sums of a flat array over the completions of each record, in 64 bits."""
        wide = np.float64 if values.dtype.kind == "f" else np.int64
        return np.add.reduceat(values, self.offsets[:-1], dtype=wide)


def prompt_keys(prompts: Iterable[Ids]) -> Indices:
    """(N,) the number of the first prompt that equals this one, token for token.

    By digests of 64 bits: ten million prompts are not held in memory. Should two ever collide, a tree is planned
    smaller than it is, and nothing else: what shares a tree is told by `same_prompt`.
    """
    digests = (int.from_bytes(blake2b(np.asarray(p).tobytes(), digest_size=8).digest()) for p in prompts)
    _, first, which = np.unique(np.fromiter(digests, dtype=np.uint64), return_index=True, return_inverse=True)
    return first[which].astype(np.int64)


def same_prompt(prompts: Sequence[Ids]) -> list[list[int]]:
    """Positions of a micro-batch's records grouped by equal prompt, in order of first appearance: one tree each."""
    groups: dict[bytes, list[int]] = {}
    for position, prompt in enumerate(prompts):
        groups.setdefault(np.asarray(prompt).tobytes(), []).append(position)
    return list(groups.values())


class Packer:
    """Packs global batches of some records into micro-batches: a tree, or a padded record, lies in one of them whole.

    Inside a micro-batch the heavier trees come first and records that share a tree stand together.

    Args:
        lengths: the records' lengths.
        max_tokens: most positions of a micro-batch, the filling of padded rows included.
        processes: among which each global batch is divided.
        cost: what is balanced.
        layout: `tree` feeds a prompt once for each tree, `padded` once for each completion (and shares no prompts).

    Raises:
        UserError: no record, a size below 1, or a record of more than `max_tokens` tokens.
    """

    def __init__(
        self,
        lengths: Lengths,
        *,
        max_tokens: int,
        processes: int = 1,
        cost: Cost = Cost(),
        layout: Layout = "tree",
    ) -> None:
        for name, value in (("batch.max_tokens", max_tokens), ("processes", processes)):
            if value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if len(lengths) == 0:
            raise UserError("there are no records to plan: see which rows were rejected, and why")
        self.lengths, self.max_tokens, self.processes = lengths, max_tokens, processes
        self.cost, self.layout = cost, layout
        self.record_tokens = lengths.tokens(layout)
        self._work = lengths.work(cost, layout)
        if layout == "padded":
            self._rows, self._widths = lengths.rows(), lengths.widths()
        self._share = lengths.prompt_key is not None and layout == "tree"
        self._check_longest()

    def pack(self, batch: Indices) -> Step:
        """The micro-batches of a global batch: as many for each process, one without records where it must be."""
        trees, tokens, work = self._trees(batch)
        if self.layout == "padded":
            return self._pack_padded(trees, work.tolist())
        heaviest_first = np.argsort(-work, kind="stable")
        trees = [trees[i] for i in heaviest_first]
        tokens, work = tokens[heaviest_first].tolist(), work[heaviest_first].tolist()
        shares = _deal(work, self.processes)
        count = max(-(-sum(tokens[i] for i in share) // self.max_tokens) for share in shares)
        while True:  # ends: with as many micro-batches as trees each tree has its own
            packed = []
            for share in shares:
                bins = _pack(share, tokens, work, count, self.max_tokens)
                if bins is None:
                    break
                packed.append(bins)
            else:
                return [[_join([trees[i] for i in one]) for one in bins] for bins in packed]
            count += 1

    def _pack_padded(self, records: list[Indices], work: list[float]) -> Step:
        """Rows of similar width together, so that little is filled; each process's widest first.

        Every row of a micro-batch is as wide as its first record's, and counts as such against `max_tokens`.
        """
        index = _join(records)
        rows, widths = self._rows[index], self._widths[index]
        heaviest_first = np.argsort(-np.array(work), kind="stable")
        shares = _deal([work[i] for i in heaviest_first], self.processes)
        packed = []
        for share in shares:
            bins: list[list[int]] = []
            room = 0
            for i in sorted(heaviest_first[share].tolist(), key=lambda i: -widths[i]):
                if not bins or (taken := int(rows[i] * widths[bins[-1][0]])) > room:
                    bins.append([])
                    room, taken = self.max_tokens, int(rows[i] * widths[i])
                bins[-1].append(i)
                room -= taken
            packed.append([index[one] for one in bins])
        most = max(map(len, packed))
        return [[*bins, *[_join([])] * (most - len(bins))] for bins in packed]

    def work(self, micro_batch: Indices) -> float:
        """Work of a micro-batch in tokens' linear cost, shared prompts counted once."""
        return float(self._trees(micro_batch, whole=True)[2].sum())

    def tokens(self, micro_batch: Indices) -> int:
        """Positions of a micro-batch: shared prompts counted once, the filling of padded rows too."""
        if self.layout == "padded":
            return int(self._rows[micro_batch].sum() * self._widths[micro_batch].max(initial=0))
        return int(self._trees(micro_batch, whole=True)[1].sum())

    def _check_longest(self) -> None:
        over = np.flatnonzero(self.record_tokens > self.max_tokens)
        if len(over):
            worst = int(over[np.argmax(self.record_tokens[over])])
            name = f"record {worst}" if self.lengths.ids is None else f"record {self.lengths.ids[worst]!r}"
            more = f" ({len(over)} records are over the limit)" if len(over) > 1 else ""
            raise UserError(
                f"{name} has {self.record_tokens[worst]} tokens, more than batch.max_tokens={self.max_tokens}{more}: "
                f"raise batch.max_tokens to {self.record_tokens[worst]}, or lower data.max_length"
            )

    def _trees(self, batch: Indices, *, whole: bool = False) -> tuple[list[Indices], Indices, NDArray[np.float64]]:
        """Trees of a global batch: their records, tokens and work.

        A tree of several records is cut where it would pass `max_tokens`, or what each process would bear if nothing
        were shared (`whole`: never).
        """
        tokens, work = self.record_tokens[batch], self._work[batch]
        if not self._share:
            return [batch[i : i + 1] for i in range(len(batch))], tokens, work
        assert self.lengths.prompt_key is not None
        prompt = self.lengths.prompt[batch].astype(np.int64)
        saved = prompt + self.cost.attention * prompt.astype(np.float64) ** 2 / 2  # by each record but a tree's first
        fair = work.sum() / self.processes
        open_tree: dict[int, int] = {}
        members: list[list[int]] = []
        tree_tokens: list[int] = []
        tree_work: list[float] = []
        rows = zip(batch, self.lengths.prompt_key[batch], tokens, work, prompt, saved, strict=True)
        for record, key, own_tokens, own_work, own_prompt, own_saved in rows:
            tree = open_tree.get(int(key))
            if tree is not None:
                grown = tree_tokens[tree] + int(own_tokens - own_prompt)
                heavier = tree_work[tree] + float(own_work - own_saved)
                if whole or (grown <= self.max_tokens and heavier <= fair):
                    members[tree].append(int(record))
                    tree_tokens[tree], tree_work[tree] = grown, heavier
                    continue
            open_tree[int(key)] = len(members)
            members.append([int(record)])
            tree_tokens.append(int(own_tokens))
            tree_work.append(float(own_work))
        return [np.array(m, dtype=np.int64) for m in members], np.array(tree_tokens), np.array(tree_work)


class EpochPlan(Packer):
    """The steps of one epoch. `len(plan)` steps; `plan.step(i)` gives the micro-batches of every process.

    No record is lost or repeated; the last global batch may be smaller than the rest.

    Args:
        lengths: of the records.
        seed, epoch: key of the order, both >= 0. The order is the same on every machine and numpy release.
        records: records of a global batch, on all processes together.
        shuffle: draw the order, or keep that of the records.
        packing: the options of `Packer`.

    Raises:
        UserError: as `Packer` does, or a size below 1.
    """

    def __init__(
        self, lengths: Lengths, *, seed: int, epoch: int, records: int, shuffle: bool = True, **packing: Any
    ) -> None:
        super().__init__(lengths, **packing)
        if records < 1:
            raise UserError(f"batch.records must be at least 1, got {records}")
        self.records = records
        self.order = epoch_order(len(lengths), seed, epoch) if shuffle else np.arange(len(lengths), dtype=np.int64)

    def __len__(self) -> int:
        return -(-len(self.order) // self.records)

    def global_batch(self, index: int) -> Indices:
        """The records of step `index`, in the order of the epoch."""
        if not 0 <= index < len(self):
            raise IndexError(f"step {index} of an epoch of {len(self)}")
        return self.order[index * self.records : (index + 1) * self.records]

    def step(self, index: int) -> Step:
        """The micro-batches of step `index`."""
        return self.pack(self.global_batch(index))


def epoch_order(n: int, seed: int, epoch: int) -> Indices:
    """A permutation keyed by (seed, epoch): the ranks of raw Philox draws, whose stream numpy promises to keep."""
    if seed < 0 or epoch < 0:
        raise UserError(f"seed and epoch must not be negative, got {seed} and {epoch}")
    draws = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(n)
    return np.argsort(draws, kind="stable").astype(np.int64, copy=False)


def _deal(work: list[float], processes: int) -> list[list[int]]:
    """Longest processing time first (Graham, 1969): each tree, heaviest first, to the process with the least work."""
    shares: list[list[int]] = [[] for _ in range(processes)]
    heap = [(0.0, process) for process in range(processes)]
    for tree, own in enumerate(work):
        load, process = heap[0]
        shares[process].append(tree)
        heapq.heapreplace(heap, (load + own, process))
    return shares


def _pack(share: list[int], tokens: list[int], work: list[float], count: int, most: int) -> list[list[int]] | None:
    """The trees of one process in `count` micro-batches: each to the one with the least work that has room, or None."""
    if count == 1:
        return [share]  # the caller's lower bound: they fit
    bins: list[list[int]] = [[] for _ in range(count)]
    load, room = [0.0] * count, [most] * count
    for tree in share:
        open_bins = [b for b in range(count) if room[b] >= tokens[tree]]
        if not open_bins:
            return None
        best = min(open_bins, key=load.__getitem__)
        bins[best].append(tree)
        load[best] += work[tree]
        room[best] -= tokens[tree]
    return bins


def _join(trees: list[Indices]) -> Indices:
    return np.concatenate(trees) if trees else np.empty(0, dtype=np.int64)
