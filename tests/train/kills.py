"""Runs killed with SIGKILL, again and again, and resumed: `python -m tests.train.kills FOLDER COUNT SEED [rollouts]`.

Prints one JSON object for each kill: scenario, place, the step that the resume began after, and what differs at the end
from a run that was never disturbed (nothing, if all is well).
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.trainer_pt_utils import safe_globals

from prefopt.common import files
from prefopt.engine import generation
from prefopt.losses.registry import load
from prefopt.models import adapters
from prefopt.plugin import Data
from prefopt.runs.resume import checkpoint_to_resume
from prefopt.train import BatchConfig, PreferenceTrainer, checkpointing, checkpoints, saving
from prefopt.train.callbacks import MetricsFile, RolloutsFile
from prefopt.train.sources import rollouts
from prefopt.train.step import Step
from tests.train import own_texts, tiny

STEPS = 8  # an epoch has 3
DATA = tiny.records(Data.PAIRS, 12)
HELD_OUT = tiny.records(Data.PAIRS, 6, seed=1)
OPTIONS: dict[str, Any] = {
    "batch": BatchConfig(records=4, max_tokens=60), "max_steps": STEPS, "eval": HELD_OUT,
    "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2,
    "eval_strategy": "steps", "eval_steps": 2, "logging_steps": 3,
}  # fmt: skip
# Name -> loss, adapter or not, options.
SCENARIOS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "plain": ("dpo", False, {}),
    "workers": ("dpo", False, {"dataloader_num_workers": 2}),
    "lora": ("dpo", True, {}),
    "coupled": ("kto", False, {}),
    "stateful": ("bco", False, {}),
    "stateful, second moments": ("beta_dpo", False, {"save_steps": 1, "eval_steps": 1}),
}
# The same of runs on the model's own samples, and places in a rollout.
ROLLOUTS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "rollouts": ("rloo", False, {}),
    "rollouts, several updates": ("grpo", False, {"rollout": replace(own_texts.ROLLOUT, updates=2)}),
}
OWN: dict[str, Any] = own_texts.options(eval=None, eval_strategy="no")
IN_ROLLOUTS: dict[str, tuple[Any, str]] = {
    "between two tokens of samples": (generation, "_choose"),
    "before the rewards": (rollouts, "scores_of"),
    "before the reference": (rollouts.Rollouts, "_reference"),
}
# Place of death -> whose attribute is not survived; a name that many calls share is survived until its turn comes.
PLACES: dict[str, tuple[Any, str]] = {
    "between micro-batches": (Step, "score"),
    "in an evaluation": (Step, "evaluate"),
    "before the optimizer's step": (PreferenceTrainer, "_clip_gradients"),
    "before the weights are written": (PreferenceTrainer, "save_model"),
    "between the files": (saving, "save_optimizer"),
    "after the last file": (checkpointing, "write_checksums"),
    "before the rename": (files, "flush_all"),
    "between rename and links": (checkpointing, "write_link"),
    "between rename and rotation": (checkpoints, "rotate"),
    "in the rotation": (checkpoints.shutil, "rmtree"),
    "at a log": (MetricsFile, "on_log"),
    "at the end of an epoch": (tiny.Run, "on_epoch_end"),
    "after the last step": (PreferenceTrainer, "_finish"),
}
CALLS = {"between micro-batches": 30, "in an evaluation": 6, "in the rotation": 12, "at the end of an epoch": 2,
         "after the last step": 1, "between two tokens of samples": 15}  # fmt: skip
TIMER = "by the clock"


def attempt(folder: Path, scenario: str) -> None:
    """Go on from whatever is there, to the end."""
    name, adapter, more = (SCENARIOS | ROLLOUTS)[scenario]
    policy = tiny.model()
    if adapter:
        policy = adapters.attach(policy, adapters.PeftConfig(method="lora", r=2), seed=0)
    found = checkpoint_to_resume(folder, "auto", lambda line: None)
    with (folder / "resumed").open("a") as file:
        file.write(f"{found.name if found else 'start'}\n")
    callbacks: list[Any] = [MetricsFile(folder / "metrics.jsonl")]
    if scenario in ROLLOUTS:
        samples = RolloutsFile(folder / "rollouts.jsonl")
        more = OWN | {"look": samples.add} | more
        callbacks.append(samples)
    data = own_texts.PROMPTS if scenario in ROLLOUTS else DATA
    tiny.run(load(name), data, folder, policy, resume=found, callbacks=callbacks, **OPTIONS | more)


def outcome(folder: Path) -> dict[str, Any]:
    """Every figure but times, the last weights, the last state of the optimizer and of the generators."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timeless = [{k: v for k, v in line.items() if "runtime" not in k and "per_second" not in k} for line in lines]
    last = folder / f"checkpoint-{STEPS}"
    tensors = {f"{p.name}:{n}": t for p in sorted(last.glob("*.safetensors")) for n, t in load_file(p).items()}
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        with safe_globals():
            _flatten(name, torch.load(last / name, weights_only=True), tensors)
    samples = folder / "rollouts.jsonl"
    return {"metrics": timeless, "rollouts": samples.read_text() if samples.exists() else "", **tensors}


def _flatten(name: str, value: Any, into: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _flatten(f"{name}.{key}", item, into)
    elif isinstance(value, list | tuple):
        for key, item in enumerate(value):
            _flatten(f"{name}.{key}", item, into)
    else:
        into[name] = value


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what is not the same, bit for bit."""

    def same(a: Any, b: Any) -> bool:
        return bool(torch.equal(a, b)) if isinstance(a, torch.Tensor) else bool(torch.as_tensor(a == b).all())

    return [
        n for n in sorted(one.keys() | other.keys()) if n not in one or n not in other or not same(one[n], other[n])
    ]


def fork(action: Callable[[], None]) -> int:
    """A child that does something and leaves."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            action()
            code = 0
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    """Wait; the signal that ended it, or 0 after a whole run."""
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, "the run failed by itself"
        return 0
    return os.WTERMSIG(status)


def deadly(place: str, turn: int) -> None:
    """Make the `turn`-th call of a place the process's last."""
    home, name = (PLACES | IN_ROLLOUTS)[place]
    survived = getattr(home, name)
    left = [turn]

    def called(*args: Any, **kw: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return survived(*args, **kw)

    setattr(home, name, called)


def kill(folder: Path, scenario: str, place: str, draw: random.Random, seconds: float) -> int:
    """One attempt that is killed (or ends before its death)."""
    if place == TIMER:
        child = fork(lambda: attempt(folder, scenario))
        time.sleep(draw.uniform(0.0, seconds))
        os.kill(child, signal.SIGKILL)
        return ended(child)
    turn = draw.randrange(CALLS.get(place, 3))

    def die() -> None:
        deadly(place, turn)
        attempt(folder, scenario)

    return ended(fork(die))


def main(root: Path, count: int, seed: int, own_samples: bool = False) -> None:
    draw = random.Random(seed)
    whole: dict[str, dict[str, Any]] = {}
    seconds: dict[str, float] = {}
    scenarios, places = (ROLLOUTS, [*IN_ROLLOUTS]) if own_samples else (SCENARIOS, [*PLACES, TIMER])
    pairs = list(itertools.product(scenarios, places))
    draw.shuffle(pairs)
    for n in range(count):
        scenario, place = pairs[n % len(pairs)]
        if scenario not in whole:
            folder = root / f"whole {scenario}"
            folder.mkdir(parents=True)
            start = time.perf_counter()
            assert ended(fork(lambda s=scenario, f=folder: attempt(f, s))) == 0  # type: ignore[misc]
            seconds[scenario] = time.perf_counter() - start
            whole[scenario] = outcome(folder)
        folder = root / f"{n} {scenario} {place}"
        folder.mkdir(parents=True)
        killed = kill(folder, scenario, place, draw, seconds[scenario])
        assert ended(fork(lambda s=scenario, f=folder: attempt(f, s))) == 0  # type: ignore[misc]
        print(json.dumps({
            "scenario": scenario,
            "place": place,
            "killed": killed == signal.SIGKILL,
            "resumed": (folder / "resumed").read_text().split()[-1],
            "different": differences(outcome(folder), whole[scenario]),
            "left": sorted(p.name for p in folder.glob("tmp-*")),
        }), flush=True)  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), own_samples="rollouts" in sys.argv[4:])
