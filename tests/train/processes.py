"""Runs on several processes: `torchrun ... -m tests.train.processes FOLDER RUN...`; or, without a launcher,
`python -m tests.train.processes FOLDER --groups JSON`, one list of processes, options and runs after the other.

A run is a loss and what it is done with, such as `dpo`, `kto@1+padded` (global batches of one record), `aot+fsdp+lora`,
`dpo+own` (on the model's own texts).
Process 0 leaves `FOLDER/<run>.json` (losses, held-out figures before and after, figures of the last step) and
`FOLDER/<run>.safetensors` (the weights after the last step, whole).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import socket
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import save_file
from torch import Tensor, distributed
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from prefopt.errors import PrefoptError
from prefopt.losses.registry import load
from prefopt.models import adapters
from prefopt.plugin import Data
from prefopt.train import BatchConfig
from prefopt.train.sources.rollouts import Rollouts
from tests.train import own_texts, tiny

TRAIN = tiny.records(Data.PAIRS, 27, weights=True)  # the last global batch has 9 records, an odd number
HELD_OUT = tiny.records(Data.PAIRS, 9, seed=1)


def policy(*, lora: bool) -> Any:
    """The tiny model, with norms in float64 like all of it: what differs between two ways to sum is 1e-15, not 1e-7."""

    def forward(self: Any, x: Tensor) -> Any:
        return self.weight * (x * (x.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt())

    made: Any = tiny.model()
    for module in made.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = types.MethodType(forward, module)
    if not lora:
        return made
    config = adapters.PeftConfig(method="lora", r=2)
    return adapters.attach(made, config, seed=0).to(torch.float64)


def train(run: str, folder: Path, *, steps: int = 3, **options: Any) -> tuple[dict[str, Any], tiny.Run]:
    """Steps (with the usual batches over the end of an epoch), and what they report."""
    loss, *wanted = run.split("+")
    name, _, size = loss.partition("@")
    hyper: dict[str, Any] = {"tr_dpo": {"tau": 1}}.get(name, {})
    layout = "padded" if "padded" in wanted else "tree"
    batch = BatchConfig(records=int(size or 18), max_tokens=90, layout=layout)
    resume = options.pop("resume", None)
    kept = tiny.Run()
    callbacks = [kept, *options.pop("callbacks", ())]
    own = load(name, **hyper).needs.on_policy or "own" in wanted
    options = {"eval": HELD_OUT, "max_steps": steps} | ({"fsdp": True} if "fsdp" in wanted else {}) | options
    if own:
        options = options | own_texts.options(batch=replace(batch, records=min(batch.records, 5)))
        batch, _ = options.pop("batch"), options.pop("eval")
    made = policy(lora="lora" in wanted)
    records = [replace(record, weight=1.0) for record in TRAIN] if own else TRAIN
    kept.trainer = tiny.make(load(name, **hyper), records, folder, made, callbacks=callbacks, batch=batch, **options)
    before = {} if own else kept.trainer.evaluate()
    kept.trainer.train(resume)
    after = {} if own else kept.trainer.evaluate()
    if "fsdp" in wanted:
        assert isinstance(kept.trainer.wrapped, FSDPModule), "it is not sharded"
        assert any(isinstance(p, DTensor) for p in kept.trainer.model.parameters())
    report = {"losses": kept.losses, "last": kept.logs[-1], "before": before, "after": after}
    for figures in (kept.logs[-1], before, after):
        for name_of_time in ("eval_runtime", "tokens_per_second"):
            figures.pop(name_of_time, None)
    return report, kept


def whole(kept: tiny.Run) -> dict[str, Tensor]:
    """The weights that were trained, whole, on every process."""
    model = kept.trainer.model
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    return {n: (p.full_tensor() if isinstance(p, DTensor) else p).contiguous() for n, p in trained.items()}


def report_of(run: str, folder: Path, out: Path, **options: Any) -> None:
    """`train`, and its two files in `out`."""
    report, kept = train(run, folder, **options)
    report["processes"] = kept.trainer.args.world_size
    report["wrapper"] = type(kept.trainer.wrapped).__name__
    source = kept.trainer.sources["train"]
    report["scored"] = gather_object([source.reward.scored]) if isinstance(source, Rollouts) else []
    fillers = torch.tensor(sum(not w.real for b in kept.trainer.shares("train") for w in b.work))
    if distributed.is_initialized():
        distributed.all_reduce(fillers)
    report["fillers"] = fillers.item()
    weights = whole(kept)
    if kept.trainer.accelerator.is_main_process:
        (out / f"{run}.json").write_text(json.dumps(report))
        save_file({n: w.clone() for n, w in weights.items()}, out / f"{run}.safetensors")


# ---- processes without a launcher


def fork(processes: int, action: Callable[[], None], folder: Path, *, stalled: int | None = None) -> list[int]:
    """Run `action` in children that find each other as under `torchrun`, but nobody ends the others when one dies.

    Args:
        processes: how many.
        action: what each does; its exit code is that of the command line.
        folder: each child leaves its stderr here, `<rank>.err`.
        stalled: this rank is killed once the others have ended.

    Returns:
        The exit codes by rank; minus the signal for a child that was killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # held from here on: nobody else can take the port
        port = listener.getsockname()[1]
        children = [_child(rank, processes, port, action, folder) for rank in range(processes)]
        store = distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False,
                                     master_listen_fd=listener.detach())  # fmt: skip
    ended = {rank: _wait(child) for rank, child in enumerate(children) if rank != stalled}
    if stalled is not None:
        os.kill(children[stalled], signal.SIGKILL)
        ended[stalled] = _wait(children[stalled])
    del store
    return [ended[rank] for rank in range(processes)]


def _child(rank: int, processes: int, port: int, action: Callable[[], None], folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with (folder / f"{rank}.err").open("w") as error:
            os.dup2(error.fileno(), 2)
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes,
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}  # fmt: skip
        os.environ.update({name: str(value) for name, value in names.items()})
        action()
        code = 0
    except PrefoptError as refused:
        print(f"prefopt: {refused}", file=sys.stderr)
        code = refused.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def perform(folder: Path, runs: Sequence[str], *, steps: int = 3, save: int = 0, resume: str = "") -> None:
    """Runs one after the other.

    Args:
        folder: for what `report_of` leaves; checkpoints are in `at-<run>`.
        runs: what.
        steps: of each.
        save: a checkpoint every so many steps.
        resume: the checkpoint of `at-<run>` to go on from, into `from-<run>`; `RUN:NAME` takes that of another run.
    """
    for run in runs:
        options: dict[str, Any] = {"save_strategy": "steps", "save_steps": save} if save else {}
        home = folder / f"at-{run}"
        if resume:
            other, _, name = resume.rpartition(":")
            options["resume"] = folder / f"at-{other or run}" / name
            home = folder / f"from-{run}"
        report_of(run, home, folder, steps=steps, **options)
    if distributed.is_initialized():
        distributed.destroy_process_group()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--groups", type=json.loads, default=[])
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.runs:
        perform(given.folder, given.runs, steps=given.steps)
    for processes, options, runs in given.groups:
        out = given.folder / options.pop("out", str(processes))
        out.mkdir(parents=True, exist_ok=True)
        ended = fork(processes, functools.partial(perform, out, runs, **options), out / "logs")
        for rank, code in enumerate(ended):
            if code:
                said = (out / "logs" / f"{rank}.err").read_text()[-4000:]
                print(f"rank {rank} of {processes}: exit code {code}\n{said}", file=sys.stderr)
        if any(ended):
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
