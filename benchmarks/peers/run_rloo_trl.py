"""Runs TRL's RLOOTrainer as a user would on a CPU in float32: with defaults, except where comparison requires it.

Exceptions: no gradient checkpointing, which costs time; the prompts in their order; the job's K, length and batch.
"""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
import time

from job import Answer, RolloutJob, StepClock, distinct_words, read_prompts, serve

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


def run(job: RolloutJob) -> Answer:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.rloo_config import RLOOConfig
    from trl.trainer.rloo_trainer import RLOOTrainer

    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    tokenizer.eos_token = job.end
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    clock, began = StepClock(), time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        arguments = RLOOConfig(
            output_dir=out,
            num_generations=job.samples,
            max_completion_length=job.new_tokens,
            per_device_train_batch_size=job.device_samples,
            gradient_accumulation_steps=job.records * job.samples // job.device_samples,
            max_steps=job.steps,
            shuffle_dataset=False,
            gradient_checkpointing=False,
            model_init_kwargs={"dtype": torch.float32},  # of the reference, which it loads itself
            learning_rate=1e-6,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            seed=0,
        )
        trainer = RLOOTrainer(
            model=model,
            args=arguments,
            reward_funcs=distinct_words,
            train_dataset=Dataset.from_list([{"prompt": text} for text in read_prompts(job)]),
            processing_class=tokenizer,
            callbacks=[clock.callback()],
        )
        trainer.train()
    return Answer(
        step_s=clock.step_s,
        total_s=time.perf_counter() - began,
        loss=clock.loss,
        mean_length=clock.mean_length,
        versions={"trl": importlib.metadata.version("trl")},
    )


if __name__ == "__main__":
    serve(run, RolloutJob)
