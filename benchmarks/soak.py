"""Hours of training, evaluation, saving and resuming in one process: does it grow or slow down?

    python benchmarks/soak.py --save                     # an hour
    python benchmarks/soak.py --minutes 3                # the short version

A cycle is one run on the review world, through the function behind `prefopt train`. SIGTERM stops it in the middle,
and a new trainer resumes it from its checkpoint; both halves train, evaluate, sample texts (for the KL) and save; at
the end, the run scores the held-out records, writes texts and its report. Cycles rotate through a loss that reads the
reference, one that couples the records of a step (two passes), and one without a reference. Nothing is collected,
trimmed or emptied by hand between them.

After each cycle, except in the first sixth of the time, while caches fill, the benchmark records resident memory,
private memory (that of no file), open files, threads, child processes, and tokens per CPU second. On a shared machine a
CPU second achieves less while others use its caches and memory bandwidth. Therefore a fixed piece of training that
involves no code of prefopt is timed between the steps (`yardstick_s`); throughput is judged in tokens per time of that
piece, and also shown alone.

The change of a figure is its Theil-Sen slope over the run, times the run's length, divided by the median; the interval
is the slope's, 95 %. The throughput of a loss is relative to its own median. Broken bounds (`BOUNDS`) end the program
with exit code 3. SIGTERM or Ctrl-C ends it early, with the figures so far.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import transformers
from memory import anonymous_mib
from scipy import stats
from transformers import TrainerCallback

import prefopt
from prefopt.common.files import write_text
from prefopt.config.compose import compose
from prefopt.config.run_config import RunConfig
from prefopt.errors import Stopped, ThresholdError
from prefopt.runs.run import run
from prefopt.worlds.build import new_model

RESULTS = Path(__file__).with_name("results") / "soak.json"
LOSSES = ("dpo", "kto", "simpo")
STEPS = 48  # of a cycle
LEAST_CYCLES = 4 * len(LOSSES)  # for a verdict, however slow the machine is
SEEDS = 2  # taken in turn: a new seed has new mismatched completions, and the reference store would grow with each
SETTING = (
    f"trainer.max_steps={STEPS}", "trainer.learning_rate=1e-4", "batch.records=64", "trainer.eval_strategy=steps",
    "trainer.eval_steps=12", "trainer.save_strategy=steps", "trainer.save_steps=12", "trainer.save_total_limit=2",
    "sentinels.measure=true", "progress=quiet",
)  # fmt: skip
WARM_UP = 1 / 6  # of the time, two rounds of all losses at least: caches fill, oneDNN makes code for each length of row
# Largest changes over the run, as shares; nothing may be open or alive at the end that was not at the start.
BOUNDS = {"rss_mib": 0.02, "private_mib": 0.02, "throughput": 0.05, "whole_throughput": 0.05}
COUNTS = ("files", "threads", "children")
MEMORY = ("rss_mib", "private_mib")


class Yardstick:
    """A fixed piece of training in plain transformers: 960 tokens forward and backward through the world's model."""

    def __init__(self) -> None:
        self.model = new_model(seed=0)
        self.ids = torch.arange(16 * 60).reshape(16, 60) % self.model.config.vocab_size

    def seconds(self) -> float:
        """CPU seconds that it takes now."""
        began = time.process_time()
        self.model(input_ids=self.ids, labels=self.ids, use_cache=False).loss.backward()
        self.model.zero_grad()
        return time.process_time() - began


@dataclass
class Meter(TrainerCallback):
    """Stops a run after `stop_at` steps, as a batch system would; counts its tokens and the seconds of its steps, and
    times the yardstick at every fourth step.
    """

    yardstick: Yardstick
    stop_at: int | None = None
    tokens: float = 0.0
    seconds: float = 0.0
    fixed: list[float] = field(default_factory=list)
    sent: bool = field(default=False, init=False)
    _flos: float = field(default=0.0, init=False)
    _since: float = field(default=0.0, init=False)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._flos = state.total_flos

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % 4 == 0:
            self.fixed.append(self.yardstick.seconds())
        self._since = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds += time.process_time() - self._since
        if state.global_step == self.stop_at:
            self.sent = True
            signal.raise_signal(signal.SIGTERM)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        # The trainer counts six operations a token and weight.
        self.tokens += (state.total_flos - self._flos) / (6 * sum(p.numel() for p in model.parameters()))


def cycle(config: RunConfig, yardstick: Yardstick) -> dict[str, float]:
    """Run, stop in the middle, and resume; return tokens per CPU second of the steps and of the whole cycle."""
    began = time.process_time()
    first, second = Meter(yardstick, stop_at=STEPS // 2), Meter(yardstick)
    try:
        run(config, log=lambda line: None, callbacks=[first])
    except Stopped:
        if not first.sent:
            raise
    summary = run(config, log=lambda line: None, callbacks=[second])
    assert first.sent
    assert summary["steps"] == STEPS
    fixed = first.fixed + second.fixed
    tokens, whole = first.tokens + second.tokens, time.process_time() - began - sum(fixed)
    return {
        "tokens_per_s": tokens / (first.seconds + second.seconds),
        "whole_tokens_per_s": tokens / whole,
        "cycle_s": whole,
        "yardstick_s": sum(fixed) / len(fixed),
    }


def sample(process: psutil.Process) -> dict[str, float]:
    return {
        "rss_mib": process.memory_info().rss / 2**20,
        "private_mib": anonymous_mib(),
        "files": process.num_fds(),
        "threads": process.num_threads(),
        "children": len(process.children(recursive=True)),
        "objects": len(gc.get_objects()),
    }


def soak(seconds: float, out: Path | None = None) -> dict[str, Any]:
    """Run cycles for this long, at least `LEAST_CYCLES`; return the report, also written to `out` every few minutes."""
    torch.set_num_threads(1)
    began, process = time.monotonic(), psutil.Process()
    samples: list[dict[str, Any]] = []
    yardstick = Yardstick()
    with tempfile.TemporaryDirectory(prefix="prefopt-soak-") as scratch:
        store = f"reference_folder={scratch}/reference"
        configs = [compose([f"loss={loss}", *SETTING, store, f"output_dir={scratch}"]) for loss in LOSSES]
        number, written = 0, began
        while time.monotonic() - began < seconds or number < LEAST_CYCLES or number % len(LOSSES):
            config = replace(
                configs[number % len(LOSSES)], output_dir=Path(scratch) / "run", seed=number // len(LOSSES) % SEEDS
            )
            try:
                figures = cycle(config, yardstick)
            except (Stopped, KeyboardInterrupt):
                break
            shutil.rmtree(config.output_dir)
            figures |= sample(process)
            samples.append({"minute": (time.monotonic() - began) / 60, "loss": config.loss_name} | figures)
            print(" ".join(f"{k}={v:.6g}" if k != "loss" else v for k, v in samples[-1].items()), flush=True)
            number += 1
            if out is not None and time.monotonic() - written > 300:
                written = time.monotonic()
                write_text(out, json.dumps(report(samples, seconds)) + "\n")
    return report(samples, seconds)


def report(samples: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """The samples in columns, with the verdict on them."""
    begun = WARM_UP * seconds / 60
    kept = [s for i, s in enumerate(samples) if i >= 2 * len(LOSSES) and s["minute"] >= begun]
    return {
        "setting": {
            "command": " ".join(["python", "benchmarks/soak.py", *sys.argv[1:]]),
            "minutes_asked": round(seconds / 60, 2),
            "minutes": round(samples[-1]["minute"], 2) if samples else 0.0,
            "cycles": len(samples),
            "warm_up": len(samples) - len(kept),
            "losses": list(LOSSES),
            "overrides": list(SETTING),
            "allocator": os.environ.get("LD_PRELOAD") or "as installed",
            "prefopt": prefopt.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "verdict": verdict(kept) if len(kept) >= 2 * len(LOSSES) else None,
        "samples": {name: [_rounded(s[name]) for s in samples] for name in samples[0]} if samples else {},
    }


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def verdict(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The level of each figure, its change over the run, and whether the change is within its bound.

    Returns:
        By name: `level`, `change` with its interval `low` to `high` (shares; for counts absolute), `bound` and `ok`.
        The overall `ok` says whether the soak passed.
    """
    minutes = np.array([s["minute"] for s in samples])
    losses = np.array([s["loss"] for s in samples])
    columns = {name: np.array([s[name] for s in samples], dtype=np.float64) for name in (*COUNTS, *MEMORY)}
    columns["yardstick"] = np.array([s["yardstick_s"] for s in samples])
    for name, source in (("throughput", "tokens_per_s"), ("whole_throughput", "whole_tokens_per_s")):
        speed = np.array([s[source] for s in samples])
        for kind, value in ((name, speed * columns["yardstick"]), (f"{name}_as_timed", speed.copy())):
            for loss in set(losses):
                value[losses == loss] /= np.median(value[losses == loss])
            columns[kind] = value
    found: dict[str, Any] = {}
    for name, values in columns.items():
        level = float(np.median(values))
        slope, _, low, high = stats.theilslopes(values, minutes, 0.95)
        scale = float(minutes[-1] - minutes[0]) / (1.0 if name in COUNTS else level)
        change = {"level": level, "change": slope * scale, "low": low * scale, "high": high * scale}
        bound: float | None = BOUNDS.get(name)
        if name in COUNTS:
            third = max(1, len(values) // 3)
            change["change"] = float(np.median(values[-third:]) - np.median(values[:third]))
            bound, ok = 0.0, change["change"] <= 0
        elif bound is not None:
            ok = abs(change["change"]) <= bound
        else:
            ok = True
        found[name] = {k: round(float(v), 5) for k, v in change.items()} | {"bound": bound, "ok": bool(ok)}
    return found | {"ok": all(row["ok"] for row in found.values())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="wall time (default: %(default)s)")
    parser.add_argument("--seconds", type=float, help="instead of --minutes")
    parser.add_argument("--save", nargs="?", type=Path, const=RESULTS, help=f"write the report to {RESULTS.name}")
    args = parser.parse_args()
    found = soak(args.seconds if args.seconds is not None else 60 * args.minutes, args.save)
    if args.save:
        write_text(args.save, json.dumps(found) + "\n")
    if found["verdict"] is None:
        print("too few cycles for a verdict")
        return ThresholdError.exit_code
    for name, row in found["verdict"].items():
        print(name, row)
    return 0 if found["verdict"]["ok"] else ThresholdError.exit_code


if __name__ == "__main__":
    sys.exit(main())
