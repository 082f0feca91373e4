"""Packs the records of a step into this process's micro-batches, each with all that the loss reads beside the policy.

A loader's workers do this ahead of time, where the source allows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from prefopt.data.images.inputs import ImageInputs, has_images
from prefopt.data.tokens import num_trained
from prefopt.engine.layout import Layout, Tree
from prefopt.engine.packing import Cost, Indices, Packer
from prefopt.engine.scoring import Branch, Completions, MicroBatch, pad_tokens
from prefopt.plugin import Data, Logps, Needs, Vocab
from prefopt.train.examples import Facts
from prefopt.train.signals import shield_worker, starting_workers
from prefopt.train.sources.feed import Feed
from prefopt.train.sources.source import GlobalBatch, RecordSource


@dataclass(frozen=True, eq=False)
class Work:
    """One micro-batch: what the engine scores, what the loss may know, what the reference says.

    `real` is false for a filler, which runs only so that every process makes the same number of forwards.
    """

    batch: MicroBatch
    branches: tuple[Branch, ...]
    facts: tuple[Facts, ...]
    index: tuple[int, ...]  # of the records in the data, ascending
    ref_sum: Tensor | None
    ref_token: Tensor | None
    ref_entropy: Tensor | None
    real: bool
    fresh: bool = False  # the policy wrote these texts, and is still as it was then
    temperature: float = 1.0  # of the policy that the loss learns from

    @property
    def completions(self) -> list[int]:
        """The number of completions of each record."""
        return [f.completions for f in self.facts]

    def logps(self, out: Completions, needs: Needs, live: Completions | None = None) -> Logps:
        """Policy and reference side by side.

        Args:
            out: what `MicroBatch.forward` returned for the policy.
            needs: of the loss.
            live: the same for a reference that is scored as it is now; its log-probs replace the stored ones.
        """
        width = max(num_trained(branch.completion) for branch in self.branches)

        def padded(value: Tensor | None) -> Tensor | None:
            if value is None:
                return None
            return pad_tokens(value.to(out.sum.device, non_blocking=True), out.num_tokens, width)

        ref_sum, ref_token, ref_entropy = self.ref_sum, self.ref_token, self.ref_entropy
        if live is not None:
            ref_sum, ref_entropy = live.sum, live.stats.entropy
            ref_token = live.stats.logp if per_token(needs) else None
        return Logps(
            sum=out.sum,
            num_tokens=out.num_tokens,
            ref_sum=ref_sum.to(out.sum.device, non_blocking=True) if ref_sum is not None else None,
            token=padded(out.stats.logp) if per_token(needs) else None,
            ref_token=padded(ref_token),
            log_sum_sq=padded(out.stats.log_sum_sq),
            ref_entropy=padded(ref_entropy),
            kl=padded(out.stats.kl),
            log_away=padded(out.stats.log_away),
            log_toward=padded(out.stats.log_toward),
            value=padded(out.stats.value),
        )


def per_token(needs: Needs) -> bool:
    """Whether a loss is given log-probs of tokens; statistics of the vocabulary come with them."""
    return needs.tokens or bool(needs.vocab)


@dataclass(frozen=True, eq=False)
class Share:
    """This process's micro-batches of one step, and the size of the whole step."""

    work: tuple[Work, ...]
    records: int  # of the global batch
    examples: int  # of the global batch
    figures: Mapping[str, float] = field(default_factory=dict)  # of the records, to be logged with the step

    @property
    def tokens_fed(self) -> int:
        """Positions of the real micro-batches."""
        return sum(w.batch.row.tokens_fed for w in self.work if w.real)


@dataclass(eq=False)
class Batcher:
    """Packs a global batch, and makes this process's share of it ready for the engine.

    Attributes:
        needs: what the loss reads.
        layout: of the rows.
        max_tokens: most positions of a micro-batch.
        cost: what is balanced over the processes.
        process: (rank, count).
        images: reads the images of prompts, as the model takes them.
        blank: stands beside texts alone in a global batch in which others have images, and is in no figure.
    """

    needs: Needs
    layout: Layout
    max_tokens: int
    cost: Cost = field(default_factory=Cost)
    process: tuple[int, int] = (0, 1)
    images: ImageInputs | None = None
    blank: Tree | None = None
    _packer: tuple[Feed, Packer] | None = None  # of the last feed: an offline source has only one

    def __call__(self, batch: GlobalBatch) -> Share:
        mine = self.packer(batch.feed).pack(batch.index)[self.process[0]]
        filler = batch.index[:1]
        seeing = self.blank is not None and any(has_images(batch.feed[i].prompt) for i in batch.index.tolist())
        work = tuple(
            self.work(batch, index if len(index) else filler, real=bool(len(index)), seeing=seeing) for index in mine
        )
        examples = int(batch.feed.own_counts[batch.index].sum()) if self.needs.data is Data.UNPAIRED else len(batch)
        return Share(work, len(batch), examples, batch.figures)

    def packer(self, feed: Feed) -> Packer:
        """The packer of a feed's records."""
        if self._packer is None or self._packer[0] is not feed:
            packer = Packer(feed.lengths(), max_tokens=self.max_tokens, processes=self.process[1], cost=self.cost,
                            layout=self.layout)  # fmt: skip
            self._packer = feed, packer
        return self._packer[1]

    def work(self, batch: GlobalBatch, index: Indices, *, real: bool = True, seeing: bool = False) -> Work:
        """The micro-batch of some records of a global batch, with an image whatever they have if it is `seeing`."""
        index = np.sort(index)  # the loss meets the records in one order, however they were split
        records = [batch.feed[i] for i in index.tolist()]
        branches = tuple(Branch(record.prompt, c) for record in records for c in record.completions)
        ref_sum = ref_token = ref_entropy = None
        if batch.reference is not None:
            table, offsets = batch.reference, batch.reference.offsets
            ref_sum = torch.from_numpy(np.concatenate([table.sum[offsets[i] : offsets[i + 1]] for i in index]))
            if per_token(self.needs):
                ref_token = torch.from_numpy(np.concatenate([t for i in index for t in table.token(i)]))
            if Vocab.REF_ENTROPY in self.needs.vocab:
                ref_entropy = torch.from_numpy(np.concatenate([t for i in index for t in table.entropy(i)]))
        return Work(
            batch=MicroBatch.of(
                branches,
                self.layout,
                closing=self.needs.reward_model,
                images=self.images,
                blank=self.blank if seeing else None,
            ),
            branches=branches,
            facts=tuple(
                Facts.of(record, batch.feed.own(record), batch.drawn[i] if batch.drawn is not None else None)
                for i, record in zip(index.tolist(), records, strict=True)
            ),
            fresh=batch.drawn is not None and batch.fresh,
            temperature=batch.temperature,
            index=tuple(index.tolist()),
            ref_sum=ref_sum,
            ref_token=ref_token,
            ref_entropy=ref_entropy,
            real=real,
        )


class _Shares(Dataset[Share]):
    """`shares[i]` is this process's share of step i."""

    def __init__(self, source: RecordSource, batcher: Batcher) -> None:
        self.source, self.batcher = source, batcher

    def __getitem__(self, step: int) -> Share:
        return self.batcher(self.source.step(step))


class _Loader(DataLoader[Share]):
    def __iter__(self) -> Any:
        with starting_workers():
            return super().__iter__()


def shares(source: RecordSource, batcher: Batcher, steps: Sequence[int], *, num_workers: int = 0) -> DataLoader[Share]:
    """This process's share of each of some steps, in their order; workers prepare them ahead where the source allows.

    Args:
        source: gives the records.
        batcher: packs them.
        steps: counted from the start of training.
        num_workers: processes that prepare steps.
    """
    return _Loader(
        _Shares(source, batcher),
        batch_size=None,
        sampler=steps,
        collate_fn=_same,
        num_workers=num_workers if source.prefetch else 0,
        worker_init_fn=shield_worker,
    )


def _same(value: Any) -> Any:
    return value
