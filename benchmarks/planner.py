"""Speed and balance of the planner that divides an epoch, by simulation.

Pairs with the lengths of hh-rlhf (resampled, `hh_rlhf.py`) are planned for SmolLM2-135M, a whole epoch on one core.
The global batch is 16 pairs per process, 16,384 pairs on 1,024 processes (fewer where there are fewer pairs), in
micro-batches of at most 4,096 tokens. A second table shows where balance ends: with 8 and 4 pairs per process, the
longest pair of a batch alone comes near, and then exceeds, the share of one process.

The `imbalance` of a step is the work of the busiest process divided by the mean over all processes, minus 1: the share
of the step for which an average process waits. Work counts linear layers, attention and the output layer (`Cost`). The
columns give the worst and the mean over *all* full steps of the epoch, and `drawn`, the mean if the batch had been
dealt in the order it was drawn. `last` is the imbalance of a smaller last batch, which has too few pairs for a good
balance. `lockstep` is the mean where processes wait for each other at every micro-batch (FSDP) rather than once per
step.

`seconds` is the time to plan all steps of an epoch, `keys_seconds` the time to compare all prompts, once per run, so
that equal prompts share a tree (here none are equal). `peak_gib` is the peak resident memory of the process that did
both, including lengths and interpreter.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hh_rlhf
import numpy as np
from memory import peak_gib
from numpy.typing import NDArray

from prefopt.engine.packing import Cost, EpochPlan, Lengths, prompt_keys

RESULTS = Path(__file__).with_name("results") / "planner.json"
MAX_TOKENS = 4096
COST = Cost.of(hidden_size=576, num_layers=30, vocab_size=49_152)

# Records, processes, pairs of a global batch for each process.
DEFAULT = (
    (10**4, 1024, 16),
    (10**5, 1024, 16),
    (10**6, 1024, 16),
    (10**7, 1024, 16),
    (10**7, 128, 16),
    (10**7, 8, 16),
)
LIMITS = ((10**6, 1024, 8), (10**6, 1024, 4))
COLUMNS = {
    "records": "{:,}",
    "processes": "{:,}",
    "batch": "{:,}",
    "steps": "{:,}",
    "imbalance": "{:.2%}",
    "imbalance_mean": "{:.2%}",
    "lockstep": "{:.2%}",
    "drawn": "{:.0%}",
    "last": "{:.0%}",
    "seconds": "{:.2f}",
    "keys_seconds": "{:.2f}",
    "ms_per_step": "{:.2f}",
    "peak_gib": "{:.2f}",
}


def simulate(records: int, processes: int, pairs_per_process: int) -> dict[str, Any]:
    """Compute one row of the table, in this process."""
    prompt, completions = hh_rlhf.sample_lengths(records, seed=0)
    clock = time.perf_counter()
    keys = prompt_keys(prompts(prompt))
    keys_seconds = time.perf_counter() - clock
    lengths = Lengths(prompt, completions, 2 * np.arange(records + 1, dtype=np.int64), prompt_key=keys)
    batch = min(pairs_per_process * processes, records)
    clock = time.perf_counter()
    plan = EpochPlan(lengths, seed=0, epoch=0, records=batch, max_tokens=MAX_TOKENS, processes=processes, cost=COST)
    seconds = time.perf_counter() - clock
    work = lengths.work(COST)
    rows = []
    for i in range(len(plan)):
        clock = time.perf_counter()
        step = plan.step(i)
        seconds += time.perf_counter() - clock
        loads = np.array([[work[micro].sum() for micro in process] for process in step])
        mean = loads.sum() / processes
        held = plan.global_batch(i)
        parts = [part.sum() for part in np.array_split(work[held], processes)]
        rows.append((len(held), loads.sum(1).max() / mean, loads.max(0).sum() / mean, max(parts) / mean))
    full = np.array([row[1:] for row in rows if row[0] == batch]) - 1
    return {
        "records": records,
        "processes": processes,
        "batch": batch,
        "steps": len(plan),
        "imbalance": full[:, 0].max(),
        "imbalance_mean": full[:, 0].mean(),
        "lockstep": full[:, 1].mean(),
        "drawn": full[:, 2].mean(),
        "last": rows[-1][1] - 1,
        "seconds": seconds,
        "keys_seconds": keys_seconds,
        "ms_per_step": 1000 * seconds / len(plan),
        "peak_gib": peak_gib(),
    }


def prompts(lengths: NDArray[np.integer]) -> Iterator[NDArray[np.int32]]:
    """Prompts of these lengths, each a different slice of random tokens."""
    tokens = np.random.default_rng(0).integers(0, 49_152, len(lengths) + int(lengths.max()), dtype=np.int32)
    for start, length in enumerate(lengths.tolist()):
        yield tokens[start : start + length]


def in_own_process(*sizes: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", *map(str, sizes)]
    row: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---:|" * len(COLUMNS)]
    lines += ["| " + " | ".join(form.format(row[key]) for key, form in COLUMNS.items()) + " |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--save", action="store_true", help=f"write them to {RESULTS.name} in benchmarks/results")
    parser.add_argument("--most", type=int, default=10**7, help="leave out rows with more records")
    parser.add_argument(
        "--one", type=int, nargs=3, metavar=("RECORDS", "PROCESSES", "PAIRS"), help="one row, in this process"
    )
    args = parser.parse_args()
    if args.one:
        print(json.dumps(simulate(*args.one)))
        return
    rows = [in_own_process(*sizes) for sizes in DEFAULT if sizes[0] <= args.most]
    if args.json and not args.save:
        print(json.dumps(rows))
        return
    limits = [in_own_process(*sizes) for sizes in LIMITS]
    if args.save:
        setting = {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "lengths": hh_rlhf.SOURCE,
            "max_tokens": MAX_TOKENS,
        }
        RESULTS.write_text(json.dumps({"setting": setting, "rows": rows, "limits": limits}, indent=1) + "\n")
    print(json.dumps(rows) if args.json else f"{table(rows)}\n\nWith fewer pairs a process:\n\n{table(limits)}")


if __name__ == "__main__":
    main()
