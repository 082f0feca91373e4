"""Runs TRL's trainers as a user would on a CPU in float32: with defaults, except where comparison requires otherwise.

DPO, IPO and KTO precompute their reference. The order of the pairs is kept (`sequential`), so that every program trains
on the same pairs in the same steps. KTO gets every pair as two rows, shuffled with a fixed seed within each step.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from job import Answer, Job, StepClock, read_pairs, serve

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


def trainer_of(method: str) -> tuple[Any, Any, dict[str, Any]]:
    """The trainer, its arguments' class, and the arguments of the method, with the defaults of prefopt's losses."""
    if method in ("dpo", "ipo"):
        from trl.trainer.dpo_config import DPOConfig
        from trl.trainer.dpo_trainer import DPOTrainer

        loss = {"dpo": "sigmoid", "ipo": "ipo"}[method]
        return DPOTrainer, DPOConfig, {"loss_type": [loss], "beta": 0.1, "precompute_ref_log_probs": True}
    if method == "kto":
        from trl.trainer.kto_config import KTOConfig
        from trl.trainer.kto_trainer import KTOTrainer

        return KTOTrainer, KTOConfig, {"beta": 0.1, "precompute_ref_log_probs": True}
    if method == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return ORPOTrainer, ORPOConfig, {"beta": 0.1}
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    assert method == "simpo"
    return CPOTrainer, CPOConfig, {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0}


def unpaired(pairs: list[dict[str, str]], records: int) -> list[dict[str, Any]]:
    """Two labelled rows for each pair, shuffled within each step."""
    rows = []
    for start in range(0, len(pairs), records):
        step = [
            {"prompt": p["prompt"], "completion": p[side], "label": side == "chosen"}
            for p in pairs[start : start + records]
            for side in ("chosen", "rejected")
        ]
        random.Random(start).shuffle(step)
        rows += step
    return rows


def run(job: Job) -> Answer:
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trainer_class, config_class, options = trainer_of(job.method)
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    pairs = read_pairs(job)[: job.records * job.steps]
    unpair = job.method == "kto"
    rows = unpaired(pairs, job.records) if unpair else pairs
    clock, began = StepClock(), time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        source = Path(job.cache) / f"rows-{job.method if unpair else 'pairs'}-{len(rows)}.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        # From a file, so that the cache of precomputed references is found again.
        dataset = load_dataset("json", data_files=str(source), split="train", cache_dir=job.cache)
        arguments = config_class(
            output_dir=out,
            per_device_train_batch_size=job.device_records * (2 if unpair else 1),
            gradient_accumulation_steps=job.records // job.device_records,
            max_steps=job.steps,
            max_length=job.max_length,
            train_sampling_strategy="sequential",
            gradient_checkpointing=False,
            learning_rate=1e-6,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            seed=0,
            **options,
        )
        trainer = trainer_class(
            model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer, callbacks=[clock.callback()]
        )
        trainer.train()
    total = time.perf_counter() - began
    versions = {"trl": importlib.metadata.version("trl")}
    return Answer(step_s=clock.step_s, total_s=total, loss=clock.loss, versions=versions)


if __name__ == "__main__":
    serve(run)
