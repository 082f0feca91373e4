"""How good is a reward model of the review world's 7,936 pairs, and what does it cost?

    nice python benchmarks/reward_model.py --save      # four runs of half a minute of one core

One epoch of Bradley-Terry on the pairs that every method of the suites learns from. The learning rate is the one of
`RATES` that ranks the world's 256 validation pairs best (seed 0); three seeds, each with a head and an order of its
own, are then reported on the 256 test pairs, which nothing was chosen on. True accuracy is the share of pairs whose
better side by the exact reward scores higher; a tie is half. The labels were drawn from the exact reward, so no model
can know them all: `label_accuracy` is the share that even the exact reward ranks as labelled. `without_end_token` reads
each text one token early, as a reward model is read whose texts were stripped of special tokens.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import Others, processor
from numpy.typing import NDArray

from prefopt import worlds
from prefopt.common.estimate import Estimate, shares_won
from prefopt.data.data_config import DataConfig
from prefopt.data.prepare import prepare
from prefopt.data.tokens import TokenRecord
from prefopt.engine.scoring import score
from prefopt.losses.registry import load
from prefopt.models.load import load_tokenizer
from prefopt.models.model_config import ModelConfig
from prefopt.models.peft_config import PeftConfig
from prefopt.models.reward_model import load_reward_model
from prefopt.plugin import Data
from prefopt.train import BatchConfig
from prefopt.train.api import train
from prefopt.worlds.build import WorldFiles

RESULTS = Path(__file__).with_name("results") / "reward_model.json"
RATES = (1e-3, 2e-3)
SEEDS = (0, 1, 2)
RECORDS = 32  # pairs of a step


def true_accuracy(model: Any, pairs: Sequence[TokenRecord], *, cut: int = 0) -> NDArray[np.float64]:
    """What each pair counts by the exact reward, read `cut` tokens before the end; pairs that it ties are left out."""
    read = [replace(p, completions=tuple(c[: len(c) - cut] for c in p.completions)) for p in pairs]
    scores = np.stack([one.sum for one in score(model, read)])
    exact = np.array([pair.scores for pair in pairs])
    gap = (scores[:, 0] - scores[:, 1]) * np.sign(exact[:, 0] - exact[:, 1])
    return shares_won(gap[exact[:, 0] != exact[:, 1]])


def trained(files: WorldFiles, pairs: Sequence[TokenRecord], rate: float, seed: int) -> tuple[Any, dict[str, Any]]:
    """A reward model, and what it cost."""
    config = ModelConfig(path=str(files.model))
    tokenizer = load_tokenizer(config)
    model = load_reward_model(config, PeftConfig(), tokenizer=tokenizer, seed=seed)
    others, start, used = Others(), time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        made = train(
            model, load("bradley_terry"), pairs, output_dir=folder, batch=BatchConfig(records=RECORDS),
            tokenizer=tokenizer, learning_rate=rate, num_train_epochs=1, save_strategy="no", seed=seed,
            lr_scheduler_type="linear", warmup_steps=20,
        )  # fmt: skip
    cost = {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - used, 1),
        "others": round(others.share(), 3),
        "steps": made.trainer.state.global_step,
    }
    return made.trainer.model.eval(), cost


def main() -> None:
    """Choose the learning rate, train with three seeds, measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help=f"write benchmarks/results/{RESULTS.name}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    files = worlds.resolve()
    tokenizer = load_tokenizer(ModelConfig(path=str(files.model)))

    def pairs(file: Path) -> list[TokenRecord]:
        table = prepare(DataConfig(path=str(file)), tokenizer, Data.PAIRS).train
        return [table[i] for i in range(len(table))]

    training, validation, test = pairs(files.train), pairs(files.validation), pairs(files.test)
    tried = {rate: trained(files, training, rate, 0) for rate in RATES}
    chosen_on = {rate: float(true_accuracy(model, validation).mean()) for rate, (model, _) in tried.items()}
    rate = max(RATES, key=lambda rate: chosen_on[rate])
    found = [tried[rate], *(trained(files, training, rate, seed) for seed in SEEDS[1:])]
    whole = [true_accuracy(model, test) for model, _ in found]
    cut = [true_accuracy(model, test, cut=1) for model, _ in found]
    exact = np.array([pair.scores for pair in training])
    result = {
        "pairs": len(training),
        "records": RECORDS,
        "learning_rate": rate,
        "validation_accuracy": {f"{tried:g}": accuracy for tried, accuracy in chosen_on.items()},
        "processor": processor(),
        "seeds": [
            {"seed": seed, **cost, "true_accuracy": float(right.mean()), "without_end_token": float(early.mean())}
            for seed, (_, cost), right, early in zip(SEEDS, found, whole, cut, strict=True)
        ],
        "true_accuracy": Estimate.of(np.mean(whole, 0)).plain(),
        "without_end_token": Estimate.of(np.mean(cut, 0)).plain(),
        "label_accuracy": float((exact[:, 0] > exact[:, 1]).mean()),
    }
    if args.save:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
