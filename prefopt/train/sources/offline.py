"""Global batches for the trainer: this process's share of each step, ready for the engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from prefopt.data.tokens import TokenRecord
from prefopt.engine.layout import Layout
from prefopt.engine.packing import Cost, EpochPlan
from prefopt.engine.reference.table import ReferenceTable
from prefopt.engine.scoring import Branch, Completions, MicroBatch
from prefopt.plugin import Data, Needs, Vocab
from prefopt.train.examples import Facts, Flat
from prefopt.train.signals import shield_worker, starting_workers
from prefopt.train.sources.feed import Feed


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How records become batches. The defaults of the Hydra group `batch`."""

    records: int = 32  # records of one optimizer step, on all processes together
    max_tokens: int | None = None  # positions of one forward on one device: memory, not results; None: by the device
    layout: str = "auto"  # auto, tree or padded

    def budget(self, device: str, longest: int = 0) -> int:
        """`max_tokens`, by default what suits the `device`: 4,096, and 1,024 on a CPU, where longer rows take memory
        and save no time; then never less than the `longest` record."""
        return self.max_tokens or max(1024 if device == "cpu" else 4096, longest)

    def settled(self, device: str, feeds: Iterable[Feed | None], layout: Layout) -> BatchConfig:
        """With the `budget` of these feeds as `max_tokens`."""
        longest = [int(feed.lengths().tokens(layout).max()) for feed in feeds if feed is not None and len(feed)]
        return replace(self, max_tokens=self.budget(device, max(longest, default=0)))


@dataclass(frozen=True, eq=False)
class Share:
    """What one process does in one step: its micro-batches, as record indices, and the size of the whole step."""

    micro: tuple[NDArray[np.int64], ...]
    records: int  # of the global batch
    examples: int  # of the global batch
    filler: int  # a record for a micro-batch that has none of its own


@dataclass(frozen=True, eq=False)
class Work:
    """One micro-batch: what the engine scores, what the loss may know, what the reference says.

    `real` is false for a filler, which runs only so that every process makes the same number of forwards.
    """

    batch: MicroBatch
    facts: tuple[Facts, ...]
    index: tuple[int, ...]  # of the records in the data, ascending
    ref_sum: Tensor | None
    ref_token: Tensor | None
    ref_entropy: Tensor | None
    real: bool

    @property
    def completions(self) -> list[int]:
        """Of each record."""
        return [f.completions for f in self.facts]

    def flat(self, out: Completions, needs: Needs) -> Flat:
        """Policy and reference side by side, from what `MicroBatch.forward` returned."""

        def on_device(value: Tensor | None) -> Tensor | None:
            return value.to(out.sum.device, non_blocking=True) if value is not None else None

        return Flat(
            sum=out.sum,
            num_tokens=out.num_tokens,
            ref_sum=on_device(self.ref_sum),
            token=out.stats.logp if per_token(needs) else None,
            ref_token=on_device(self.ref_token),
            log_sum_sq=out.stats.log_sum_sq,
            ref_entropy=on_device(self.ref_entropy),
            kl=out.stats.kl,
        )


def per_token(needs: Needs) -> bool:
    """Whether a loss is given log-probs of tokens; statistics of the vocabulary come with them."""
    return needs.tokens or bool(needs.vocab)


@dataclass(frozen=True, eq=False)
class GlobalBatch:
    """This process's share of one step."""

    work: tuple[Work, ...]
    records: int
    examples: int

    @property
    def tokens_fed(self) -> int:
        return sum(w.batch.row.tokens_fed for w in self.work if w.real)


class Steps(Dataset[GlobalBatch]):
    """`steps[share]` builds the batch of a share: the work of a loader's worker."""

    def __init__(self, feed: Feed, needs: Needs, layout: Layout, reference: ReferenceTable | None) -> None:
        self.feed, self.needs, self.layout, self.reference = feed, needs, layout, reference

    def __len__(self) -> int:
        return len(self.feed)

    def __getitem__(self, share: Share) -> GlobalBatch:
        work = tuple(self._work(i if len(i) else np.array([share.filler]), bool(len(i))) for i in share.micro)
        return GlobalBatch(work, share.records, share.examples)

    def _work(self, index: NDArray[np.int64], real: bool) -> Work:
        index = np.sort(index)  # the loss meets the records in one order, however they were split
        records = [self.feed[i] for i in index.tolist()]
        branches = [Branch(record.prompt, c) for record in records for c in record.completions]
        ref_sum = ref_token = ref_entropy = None
        if self.reference is not None:
            table, offsets = self.reference, self.reference.offsets
            ref_sum = torch.from_numpy(np.concatenate([table.sum[offsets[i] : offsets[i + 1]] for i in index]))
            if per_token(self.needs):
                ref_token = torch.from_numpy(np.concatenate([t for i in index for t in table.token(i)]))
            if Vocab.REF_ENTROPY in self.needs.vocab:
                ref_entropy = torch.from_numpy(np.concatenate([t for i in index for t in table.entropy(i)]))
        return Work(
            batch=MicroBatch.of(branches, self.layout),
            facts=tuple(self._facts(record) for record in records),
            index=tuple(index.tolist()),
            ref_sum=ref_sum,
            ref_token=ref_token,
            ref_entropy=ref_entropy,
            real=real,
        )

    def _facts(self, record: TokenRecord) -> Facts:
        own = self.feed.own(record)
        return Facts(
            id=record.id,
            key=record.stable_int,
            kind=record.kind,
            own=own,
            mismatched=len(record.completions) - own,
            desirable=record.desirable,
            scores=record.scores,
            weight=record.weight,
        )


class StepSampler:
    """The steps of an epoch, as shares of one process; the batch sampler of a plain `DataLoader`."""

    def __init__(
        self,
        feed: Feed,
        needs: Needs,
        config: BatchConfig,
        layout: Layout,
        cost: Cost,
        *,
        seed: int,
        process: tuple[int, int],
        shuffle: bool,
    ) -> None:
        self.lengths = feed.lengths()
        self.own = np.diff(self.lengths.offsets) // (1 if feed.partner is None else 2)
        self.needs, self.config, self.layout, self.cost = needs, config, layout, cost
        self.seed, self.process, self.shuffle = seed, process, shuffle
        self.epoch = -1
        self.set_epoch(0)

    @property
    def batch_sampler(self) -> StepSampler:
        """Itself: transformers looks for `set_epoch` here, behind whatever accelerate wraps around the sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Plan another epoch."""
        if epoch == self.epoch:
            return
        self.epoch = epoch
        max_tokens = self.config.max_tokens
        assert max_tokens is not None  # settled by the trainer
        self.plan = EpochPlan(
            self.lengths,
            seed=self.seed,
            epoch=epoch,
            records=self.config.records,
            max_tokens=max_tokens,
            processes=self.process[1],
            shuffle=self.shuffle,
            cost=self.cost,
            layout=self.layout,
        )

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[list[Share]]:
        for step in range(len(self.plan)):
            batch = self.plan.global_batch(step)
            examples = int(self.own[batch].sum()) if self.needs.data is Data.UNPAIRED else len(batch)
            micro = self.plan.step(step)[self.process[0]]
            yield [Share(tuple(micro), len(batch), examples, int(batch[0]))]


class _Loader(DataLoader[GlobalBatch]):
    def __iter__(self) -> Any:
        with starting_workers():
            return super().__iter__()


def loader(steps: Steps, sampler: StepSampler, *, num_workers: int = 0) -> DataLoader[GlobalBatch]:
    """A plain loader of global batches."""
    return _Loader(
        steps, batch_sampler=sampler, collate_fn=_only, num_workers=num_workers, worker_init_fn=shield_worker
    )


def _only(batches: Sequence[GlobalBatch]) -> GlobalBatch:
    return batches[0]
