"""Runs prefopt's RLOO with its defaults, but for what the job asks, on the prompts of the job in their order."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from job import Answer, RolloutJob, StepClock, distinct_words, read_prompts, serve

SEED = 0


def run(job: RolloutJob) -> Answer:
    import numpy as np

    from prefopt.data.tokens import TokenRecord
    from prefopt.engine.packing import epoch_order
    from prefopt.losses import registry
    from prefopt.models.load import load_model, load_tokenizer
    from prefopt.models.model_config import ModelConfig
    from prefopt.plugin import Data
    from prefopt.rewards.reward import FunctionReward
    from prefopt.train import BatchConfig, train
    from prefopt.train.sources.rollout_config import RolloutConfig

    config = ModelConfig(path=job.model)
    model, tokenizer = load_model(config), load_tokenizer(config)
    tokenizer.eos_token = job.end
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    began = time.perf_counter()
    records = [
        TokenRecord(id=str(i), kind=Data.PROMPTS, prompt=np.array(tokenizer(text)["input_ids"], np.int32),
                    completions=())
        for i, text in enumerate(read_prompts(job))
    ]  # fmt: skip
    order = epoch_order(len(records), SEED, 0)
    placed = [record for _, record in sorted(zip(order.tolist(), records, strict=True), key=lambda pair: pair[0])]
    clock = StepClock()
    with tempfile.TemporaryDirectory() as out:
        train(
            model,
            registry.load("rloo"),
            placed,
            output_dir=out,
            batch=BatchConfig(records=job.records),
            rollout=RolloutConfig(num_generations=job.samples, max_new_tokens=job.new_tokens),
            reward=FunctionReward("distinct words", distinct_words),
            tokenizer=tokenizer,
            seed=SEED,
            store=Path(out),
            callbacks=[clock.callback()],
            max_steps=job.steps,
            learning_rate=1e-6,
            logging_steps=1,
            activation_checkpointing=job.recompute,
            use_cpu=True,
        )
    total = time.perf_counter() - began
    return Answer(step_s=clock.step_s, total_s=total, loss=clock.loss, mean_length=clock.mean_length)


if __name__ == "__main__":
    serve(run, RolloutJob)
