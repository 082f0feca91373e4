"""Plans what a run will do, from lengths alone: steps, tokens, work, and the heaviest micro-batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefopt.engine.packing import EpochPlan, Indices

PLANNED = 200  # at most so many steps of an epoch are planned; the others are assumed to be like them


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The schedule of one run on one device.

    Attributes:
        records: records to train on.
        records_per_step: records of a full step.
        steps: optimizer steps of the whole run.
        steps_per_epoch: steps of one pass over the records.
        micro_batches: the mean number of micro-batches per step.
        tokens_per_step: the mean number of tokens fed per step.
        work_per_step: the mean, in the unit of `prefopt.engine.packing.Cost`.
        heaviest: the records of the micro-batch with the most tokens.
        heaviest_tokens, heaviest_scored: its tokens fed, and its completion tokens.
        several: whether any step has more than one micro-batch.
    """

    records: int
    records_per_step: int
    steps: int
    steps_per_epoch: int
    micro_batches: float
    tokens_per_step: float
    work_per_step: float
    heaviest: Indices
    heaviest_tokens: int
    heaviest_scored: int
    several: bool


def schedule(plan: EpochPlan, arguments: Any) -> Schedule:
    """Plan what the trainer does with these batches and these `TrainingArguments`."""
    count = len(plan)
    planned = range(count) if count <= PLANNED else np.linspace(0, count - 1, PLANNED).round().astype(int).tolist()
    micro = [[m for m in plan.step(step)[0] if len(m)] for step in planned]
    flat = [m for step in micro for m in step]
    tokens = [plan.tokens(m) for m in flat]
    heaviest = flat[int(np.argmax(tokens))]
    steps = arguments.max_steps if arguments.max_steps > 0 else math.ceil(arguments.num_train_epochs * count)
    return Schedule(
        records=len(plan.order),
        records_per_step=min(plan.records, len(plan.order)),
        steps=int(steps),
        steps_per_epoch=count,
        micro_batches=len(flat) / len(micro),
        tokens_per_step=sum(tokens) / len(micro),
        work_per_step=sum(plan.work(m) for m in flat) / len(micro),
        heaviest=heaviest,
        heaviest_tokens=max(tokens),
        heaviest_scored=scored(plan, heaviest),
        several=any(len(step) > 1 for step in micro),
    )


def scored(plan: EpochPlan, records: Indices) -> int:
    """The tokens of some records that go through the output layer."""
    return int(plan.lengths.scored(records).sum())


def total_work(plan: EpochPlan) -> float:
    """The work of one pass over all records, none of which share a prompt."""
    return float(plan.lengths.work(plan.cost, plan.layout).sum())
