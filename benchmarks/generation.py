"""Speed of generation with the review world's model: 16,384 texts, four for each of 4,096 prompts.

The model after SFT samples as it does when a world is built or a policy is measured: temperature 1, at most 24 tokens
per text, 1,024 rows at a time, one thread. Reports wall and CPU seconds.

    python benchmarks/generation.py --save
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from prefopt import worlds
from prefopt.engine.generation import generate
from prefopt.models.load import load_model
from prefopt.models.model_config import ModelConfig
from prefopt.worlds.build import EOS, MAX_NEW_TOKENS, prompt_ids
from prefopt.worlds.review import ReviewWorld

RESULTS = Path(__file__).with_name("results") / "generation.json"
PROMPTS, EACH = 4096, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help=f"write benchmarks/results/{RESULTS.name}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(ModelConfig(path=str(worlds.resolve().model)))
    prompts = [prompt_ids(prompt) for prompt in ReviewWorld().prompts(PROMPTS, 0, "train") for _ in range(EACH)]
    clock, processor = time.perf_counter(), time.process_time()
    texts = generate(model, prompts, max_new_tokens=MAX_NEW_TOKENS, eos_token_id=EOS, batch_size=1024)
    report = {
        "texts": len(texts),
        "tokens": sum(map(len, texts)),
        "seconds": round(time.perf_counter() - clock, 2),
        "processor_s": round(time.process_time() - processor, 2),
    }
    if args.save:
        RESULTS.write_text(json.dumps([report], indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
