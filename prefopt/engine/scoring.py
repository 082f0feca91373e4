"""Scores records: packs their completions into micro-batches, one forward each, and sums tokens per completion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefopt.data.images.inputs import ImageInputs, has_images, inputs_of
from prefopt.data.tokens import Ids, TokenRecord
from prefopt.engine.forward import PLAIN, Options, evaluating
from prefopt.engine.head import TokenStats
from prefopt.engine.image_arguments import with_images
from prefopt.engine.layout import Layout, Row, Tree, lay_out
from prefopt.engine.packing import same_prompt
from prefopt.engine.policy import opened
from prefopt.errors import UserError

Float32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Branch:
    """A completion to score, and its prompt."""

    prompt: Ids
    completion: Ids


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """The completions of one forward.

    Attributes:
        row: what the model is given.
        slots: (C,) the place in the row of each completion, in the caller's order.
    """

    row: Row
    slots: Tensor

    @classmethod
    def of(
        cls, branches: Sequence[Branch], layout: Layout, *, closing: bool = False, images: ImageInputs | None = None,
        blank: Tree | None = None,
    ) -> MicroBatch:  # fmt: skip
        """The micro-batch of some branches; those with the same prompt share a tree, whatever record they are of.

        `closing` ones are fed with their last tokens, as reward models read them; `images` reads those of the prompts.
        `blank`, a tree with an image, is fed beside prompts of which none has one, and its completions are left out.
        """
        members = same_prompt([branch.prompt for branch in branches])
        texts = [tuple(branches[c].completion for c in m) for m in members]
        trees = [Tree(branches[m[0]].prompt, t, closing) for m, t in zip(members, texts, strict=True)]
        if blank is not None and not any(has_images(tree.prompt) for tree in trees):
            trees.append(blank)
        row = with_images(lay_out(trees, layout), images)
        slots = torch.empty(len(branches), dtype=torch.long)
        slots[torch.tensor([c for m in members for c in m], dtype=torch.long)] = torch.arange(len(branches))
        return cls(row, slots)

    def forward(self, policy: Any, options: Options = PLAIN) -> Completions:
        """The log-probs of the completions under a policy, wrapped or not."""
        device = next(policy.parameters()).device
        row = self.row.to(device)
        stats: TokenStats = policy(row, options)
        return Completions.gather(stats, row, self.slots.to(device))


@dataclass(frozen=True, eq=False)
class Completions:
    """What a forward gives, in the caller's order.

    Attributes:
        sum: (C,) log-probs in nats; scores of a reward model.
        num_tokens: (C,).
        scored: (C,) how many of the N belong to each: `num_tokens`, or 1 of a reward model.
        stats: (N,) per token, one completion after the other.
    """

    sum: Tensor
    num_tokens: Tensor
    scored: Tensor
    stats: TokenStats

    @classmethod
    def gather(cls, stats: TokenStats, row: Row, slots: Tensor) -> Completions:
        """Sum tokens per completion (in float64, for accuracy), and undo the row's order."""
        wide = stats.logp if stats.logp.device.type == "mps" else stats.logp.double()
        sums = torch.zeros(len(row.num_tokens), dtype=wide.dtype, device=wide.device).index_add(0, row.owner, wide)
        scored = row.scored[slots]
        starts = torch.cumsum(row.scored, 0) - row.scored
        # token j of the caller's completion c stands at starts[slots[c]] + j
        shift = torch.repeat_interleave(starts[slots] - (scored.cumsum(0) - scored), scored)
        order = torch.arange(len(shift), device=shift.device) + shift
        flat = stats.map(lambda values: values[order])
        return cls(sums[slots].to(stats.logp.dtype), row.num_tokens[slots], scored, flat)

    def padded(self, flat: Tensor) -> Tensor:
        """(C, T) from a flat (N,) per-token tensor, 0 past the end."""
        return pad_tokens(flat, self.num_tokens)


def pad_tokens(flat: Tensor, num_tokens: Tensor, width: int | None = None) -> Tensor:
    """(C, T) from per-token values laid end to end, 0 past the end of each completion.

    A `width` T that is given need not be read from the device.
    """
    mask = torch.arange(int(num_tokens.max()) if width is None else width, device=flat.device) < num_tokens[:, None]
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Log-probs of a record's K completions: `sum` (K,) nats, `num_tokens` (K,), per-token arrays on request.

    Sums are float64: float32 knows 700 nats to 3e-5 only, as much as the whole forward loses.
    """

    sum: NDArray[np.float64]
    num_tokens: NDArray[np.int64]
    token: tuple[Float32, ...] | None = None
    entropy: tuple[Float32, ...] | None = None
    log_sum_sq: tuple[Float32, ...] | None = None


def score(
    model: Any,
    records: Sequence[TokenRecord],
    *,
    max_tokens: int = 4096,
    layout: str = "auto",
    tokens: bool = False,
    options: Options = PLAIN,
    progress: Callable[[int], None] = lambda n: None,
) -> list[Scored]:
    """Log-probs of every completion of `records` under a causal language model, without gradient.

    A reward model gives its scores in place of the log-probs of whole completions.

    Args:
        model: a transformers causal language model, a sequence classifier with one output, or a `Policy` around one.
        records: tokenized records of any kind.
        max_tokens: tokens of one forward.
        layout: "auto", "tree" (an error where it is not safe) or "padded".
        tokens: also return per-token log-probs.
        options: further statistics of each token to return, and the temperature.
        progress: called with the number of records done since the last call.

    Raises:
        UserError: a record alone exceeds `max_tokens`, or the gates rule out the layout or the model.
    """
    results: list[Scored | None] = [None] * len(records)
    with opened(model, layout) as policy, evaluating(policy), torch.inference_mode():
        chosen = policy.layout.layout
        for chunk in batches_of(records, max_tokens, chosen):
            owners = [i for i in chunk for _ in records[i].completions]
            branches = [Branch(records[i].prompt, c) for i in chunk for c in records[i].completions]
            out = MicroBatch.of(
                branches, chosen, closing=policy.is_reward_model, images=inputs_of(policy.causal)
            ).forward(policy, options)
            for i, scored in zip(chunk, _split(out, owners, tokens), strict=True):
                results[i] = scored
            progress(len(chunk))
    return [r for r in results if r is not None]


def _split(out: Completions, owners: Sequence[int], tokens: bool) -> list[Scored]:
    lengths, scored = out.num_tokens.cpu().numpy(), out.scored.cpu().numpy()
    ends = np.cumsum(scored)
    sums = np.add.reduceat(out.stats.logp.cpu().numpy(), ends - scored, dtype=np.float64)
    stats = out.stats
    flats = {"token": stats.logp if tokens else None, "entropy": stats.entropy, "log_sum_sq": stats.log_sum_sq}
    per_token = {name: np.split(f.float().cpu().numpy(), ends[:-1]) for name, f in flats.items() if f is not None}
    cuts = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), len(owners)]
    return [
        Scored(sums[a:b], lengths[a:b], **{name: tuple(parts[a:b]) for name, parts in per_token.items()})
        for a, b in pairwise(cuts)
    ]


def fed_tokens(record: TokenRecord, layout: Layout) -> int:
    """The positions that a record takes in a forward of its own, padding included."""
    if layout == "padded":
        return len(record.completions) * _width(record)
    return len(record.prompt) + sum(len(c) - 1 for c in record.completions)


def _width(record: TokenRecord) -> int:
    """The length of a record's longest padded row."""
    return len(record.prompt) + max(map(len, record.completions)) - 1


def batches_of(records: Sequence[TokenRecord], max_tokens: int, layout: Layout) -> list[list[int]]:
    """Places of records of similar length, longest first, in batches within the budget."""
    sizes = [fed_tokens(r, layout) for r in records]
    keys = [_width(r) for r in records] if layout == "padded" else sizes
    batches: list[list[int]] = []
    room = 0
    for i in sorted(range(len(records)), key=lambda i: (-keys[i], i)):
        if sizes[i] > max_tokens:
            raise UserError(
                f"record {records[i].id} has {sizes[i]} tokens, more than max_tokens={max_tokens}: raise max_tokens, "
                "or drop long records with data.max_length"
            )
        # every padded row of a batch is as wide as its first
        taken = sizes[i] if layout == "tree" or not batches else len(records[i].completions) * keys[batches[-1][0]]
        if not batches or taken > room:
            batches.append([])
            room, taken = max_tokens, sizes[i]
        batches[-1].append(i)
        room -= taken
    return batches
