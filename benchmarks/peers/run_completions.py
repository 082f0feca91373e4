"""Trains prefopt's engine on eight completions of each prompt, as a tree or as padded rows; random tokens."""

from __future__ import annotations

import time
from typing import Any

from growth import random_records
from job import Answer, Job, StepClock, serve

COMPLETIONS, PROMPT, COMPLETION = 8, 256, 64  # and tokens


def run(job: Job) -> Answer:
    import torch

    from prefopt.engine.cpu import keep_large_buffers
    from prefopt.engine.policy import Policy
    from prefopt.engine.scoring import Branch, MicroBatch
    from prefopt.models.load import load_model
    from prefopt.models.model_config import ModelConfig

    model = load_model(ModelConfig(path=job.model))
    began = time.perf_counter()
    layout: Any = job.method
    keep_large_buffers()
    policy = Policy(model, layout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    shapes = [(PROMPT, [COMPLETION] * COMPLETIONS)] * job.records
    records = random_records(shapes, model.config.vocab_size)
    clock, first = StepClock(), 0.0
    clock.start()
    for _ in range(job.steps):
        for record in records:
            branches = [Branch(record.prompt, text) for text in record.completions]
            objective = MicroBatch.of(branches, layout).forward(policy).sum.mean()
            first = first or float(objective)
            objective.backward()  # type: ignore[no-untyped-call]
            del objective
        optimizer.step()
        optimizer.zero_grad()
        clock.step()
    return Answer(step_s=clock.step_s, total_s=time.perf_counter() - began, loss=first)


if __name__ == "__main__":
    serve(run)
