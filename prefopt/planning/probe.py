"""Measures on this machine how long a row takes, and how much it keeps for its backward."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefopt.data.images.inputs import inputs_of
from prefopt.engine.forward import Options
from prefopt.engine.packing import EpochPlan, Indices
from prefopt.engine.policy import Policy
from prefopt.engine.randomness import switch_off
from prefopt.plugin import Needs, Vocab
from prefopt.train.arguments import autocast
from prefopt.train.batches import Batcher, Work
from prefopt.train.sources.feed import Feed
from prefopt.train.sources.source import GlobalBatch

SMALL, LARGE = 256, 1024  # tokens of the two rows that are run
SAMPLE = 2**22  # weights of the optimizer step that is timed


@dataclass(frozen=True, kw_only=True)
class Line:
    """`fixed + slope * x`, through two measured points."""

    fixed: float
    slope: float

    @classmethod
    def through(cls, x: Sequence[float], y: Sequence[float]) -> Line:
        """A line that is nowhere negative, through the origin if there is only one point."""
        slope = (y[-1] - y[0]) / (x[-1] - x[0]) if x[-1] > x[0] else 0.0
        if slope <= 0 or y[0] < slope * x[0]:
            return cls(fixed=0.0, slope=max(b / a for a, b in zip(x, y, strict=True)))
        return cls(fixed=y[0] - slope * x[0], slope=slope)

    def __call__(self, x: float) -> float:
        return self.fixed + self.slope * x


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The measurements.

    Attributes:
        train_seconds: the time of a row's forward and backward, by its work.
        forward_seconds: the time of a row's forward without a graph, by its work.
        kept_bytes: what a row keeps for its backward, by its tokens; weights are not counted.
        optimizer_seconds: the time of one optimizer step.
        tokens: the lengths of the rows that were run.
    """

    train_seconds: Line
    forward_seconds: Line
    kept_bytes: Line
    optimizer_seconds: float
    tokens: tuple[int, ...]


def probe(model: Any, plan: EpochPlan, feed: Feed, heaviest: Indices, needs: Needs, arguments: Any) -> Probe:
    """Run two rows of the run's own records, of about 256 and 1,024 tokens.

    Args:
        model: the policy, on its device; its gradients are dropped.
        plan, feed: the batches and the records of training.
        heaviest: records of the run's heaviest micro-batch; the rows are parts of it.
        needs: the needs of the loss.
        arguments: `TrainingArguments`, for precision and activation checkpointing.
    """
    switch_off(model)
    policy = Policy(model, plan.layout).train()
    if arguments.activation_checkpointing:
        model.gradient_checkpointing_enable(arguments.activation_checkpointing_kwargs)
    order = np.argsort(plan.record_tokens[heaviest], kind="stable")
    sizes = sorted({_count_up_to(plan.record_tokens[heaviest[order]], limit) for limit in (SMALL, LARGE)})
    parts = [heaviest[order[:size]] for size in sizes]
    tokens = [plan.tokens(part) for part in parts]
    batcher = Batcher(needs, plan.layout, plan.max_tokens, images=inputs_of(policy.causal))
    works = [batcher.work(GlobalBatch(feed, part, None), part) for part in parts]
    loads = [plan.work(part) for part in parts]

    def forward(work: Work) -> Tensor:
        with autocast(arguments):
            return work.batch.forward(policy, Options(vocab=needs.vocab & {Vocab.LOG_SUM_SQ})).sum.sum()

    def train(work: Work) -> None:
        forward(work).backward()  # type: ignore[no-untyped-call]

    def score(work: Work) -> None:
        with torch.no_grad():
            forward(work)

    try:
        train(works[0])  # warms up
        kept = [kept_bytes(model, forward, work) for work in works]
        train_seconds = [_seconds(partial(train, work)) for work in works]
        score_seconds = [_seconds(partial(score, work)) for work in works]
    finally:
        policy.close()
        model.zero_grad(set_to_none=True)
        if arguments.activation_checkpointing:
            model.gradient_checkpointing_disable()
    return Probe(
        train_seconds=Line.through(loads, train_seconds),
        forward_seconds=Line.through(loads, score_seconds),
        kept_bytes=Line.through(tokens, kept),
        optimizer_seconds=_optimizer_seconds(model),
        tokens=tuple(tokens),
    )


def _count_up_to(tokens: np.ndarray, limit: int) -> int:
    """How many records, at least one, have about `limit` tokens."""
    return max(1, int(np.searchsorted(np.cumsum(tokens), limit, side="right")))


def _seconds(call: Callable[[], Any]) -> float:
    """The shorter time of two calls."""
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken)


def kept_bytes(model: Any, forward: Callable[[Work], Tensor], work: Work) -> int:
    """The bytes that autograd keeps for a row's backward; each storage counts once, weights do not."""
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    found: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        objective = forward(work)
    del objective
    return sum(found.values())


def _optimizer_seconds(model: Any) -> float:
    """Estimate a step of AdamW on all trainable weights from a step on a sample of them."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    count: int = sum(p.numel() for p in trainable)
    if not count:
        return 0.0
    size = min(count, SAMPLE)
    sample = torch.nn.Parameter(torch.zeros(size, dtype=trainable[0].dtype, device=trainable[0].device))
    sample.grad = torch.ones_like(sample)
    optimizer = torch.optim.AdamW([sample], fused=True)
    optimizer.step()
    return _seconds(optimizer.step) * count / size
