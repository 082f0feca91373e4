"""How good is a reward model of the review world's 7,936 pairs, and what does it cost?

nice python benchmarks/reward_model.py [--learning-rate 2e-3] [--records 32]   # under a minute of one core

One epoch of Bradley-Terry on the pairs that every method of the suites learns from. True accuracy is the share of 512
pairs on unseen prompts (the world's validation and test pairs) whose better side by the exact reward scores higher; a
tie is half. The labels were drawn from the exact reward, so no model can know them all: `label_accuracy` is the share
that even the exact reward ranks as labelled. `without_end_token` reads each text one token early, as a reward model is
read whose texts were stripped of special tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

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

RESULTS = Path(__file__).with_name("results") / "reward_model.json"


def true_accuracy(model: Any, pairs: Sequence[TokenRecord], *, cut: int = 0) -> dict[str, Any]:
    """The share of pairs ranked as the exact reward ranks them, read `cut` tokens before the end."""
    read = [replace(p, completions=tuple(c[: len(c) - cut] for c in p.completions)) for p in pairs]
    scores = np.stack([one.sum for one in score(model, read)])
    exact = np.array([pair.scores for pair in pairs])
    gap = (scores[:, 0] - scores[:, 1]) * np.sign(exact[:, 0] - exact[:, 1])
    return Estimate.of(shares_won(gap[exact[:, 0] != exact[:, 1]])).plain()


def main() -> None:
    """Train, measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--records", type=int, default=32)
    parser.add_argument("--to", type=Path, default=RESULTS)
    args = parser.parse_args()
    files = worlds.resolve()
    model_config = ModelConfig(path=str(files.model))
    tokenizer = load_tokenizer(model_config)

    def pairs(file: Path) -> list[TokenRecord]:
        table = prepare(DataConfig(path=str(file)), tokenizer, Data.PAIRS).train
        return [table[i] for i in range(len(table))]

    training, unseen = pairs(files.train), [*pairs(files.validation), *pairs(files.test)]
    model = load_reward_model(model_config, PeftConfig(), tokenizer=tokenizer, seed=0)
    start, used = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        made = train(
            model, load("bradley_terry"), training, output_dir=folder, batch=BatchConfig(records=args.records),
            tokenizer=tokenizer, learning_rate=args.learning_rate, num_train_epochs=1, save_strategy="no",
            lr_scheduler_type="linear", warmup_steps=20,
        )  # fmt: skip
    model = made.trainer.model.eval()
    exact = np.array([pair.scores for pair in training])
    found = {
        "pairs": len(training),
        "learning_rate": args.learning_rate,
        "records": args.records,
        "steps": made.trainer.state.global_step,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - used, 1),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "load": round(os.getloadavg()[1], 1),
        "true_accuracy": true_accuracy(model, unseen),
        "without_end_token": true_accuracy(model, unseen, cut=1),
        "label_accuracy": float((exact[:, 0] > exact[:, 1]).mean()),
    }
    args.to.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
