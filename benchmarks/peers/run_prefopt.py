"""Runs prefopt's trainer with its defaults, on the pairs of the job in their order."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hh_rlhf import tokenize
from job import Answer, Job, StepClock, read_pairs, serve

if TYPE_CHECKING:
    from prefopt.data.tokens import TokenRecord

SEED = 0


def run(job: Job) -> Answer:
    import numpy as np

    from prefopt.data.tokens import TokenRecord
    from prefopt.losses import registry
    from prefopt.models.load import load_model, load_tokenizer
    from prefopt.models.model_config import ModelConfig
    from prefopt.plugin import Data
    from prefopt.train import BatchConfig, train

    config = ModelConfig(path=job.model)
    model, tokenizer = load_model(config), load_tokenizer(config)
    began = time.perf_counter()
    pairs = tokenize(read_pairs(job)[: job.records * job.steps], tokenizer)
    records = [
        TokenRecord(
            id=str(i),
            kind=Data.PAIRS,
            prompt=np.array(prompt, np.int32),
            completions=(np.array(chosen, np.int32), np.array(rejected, np.int32)),
        )
        for i, (prompt, chosen, rejected) in enumerate(pairs)
    ]
    clock = StepClock()
    with tempfile.TemporaryDirectory() as out:
        train(
            model,
            registry.load(job.method),
            in_training_order(records),
            output_dir=out,
            batch=BatchConfig(records=job.records),
            seed=SEED,
            store=Path(job.cache),
            callbacks=[clock.callback()],
            max_steps=job.steps,
            learning_rate=1e-6,
            use_cpu=True,
        )
    return Answer(step_s=clock.step_s, total_s=time.perf_counter() - began, loss=clock.loss)


def in_training_order(records: Sequence[TokenRecord]) -> list[TokenRecord]:
    """The records arranged so that the shuffle of the first epoch restores the order of the job."""
    from prefopt.engine.packing import EpochPlan, Lengths

    order = EpochPlan(Lengths.of(records), seed=SEED, epoch=0, records=1, max_tokens=2**31).order
    placed = list(records)
    for position, place in enumerate(order):
        placed[place] = records[position]
    return placed


if __name__ == "__main__":
    serve(run)
