"""Runs on several processes: `torchrun ... -m tests.trainer.together FOLDER RUN...`.

A run is a loss, or `LOSS@N` with global batches of N records. It leaves `FOLDER/<run>.json` (losses, held-out figures
before and after, figures of the last step) and `FOLDER/<run>.safetensors` (the weights after the last step), written by
process 0. `fsdp:LOSS` leaves the gradients of one step of a model sharded with FSDP2 instead of weights; `resume:LOSS`
goes on from a checkpoint, and checks itself that this is the run that was never stopped.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from prefopt.plugin import Data
from prefopt.registry import load
from prefopt.trainer import BatchConfig
from tests.trainer import tiny

TRAIN = tiny.records(Data.PAIRS, 27, weights=True)  # the last global batch has 9 records, an odd number
HELD_OUT = tiny.records(Data.PAIRS, 9, seed=1)


def train(run: str, folder: Path) -> tuple[dict[str, Any], tiny.Run]:
    """3 steps (with the usual batches over the end of an epoch), and what they report."""
    name, _, size = run.partition("@")
    hyper: dict[str, Any] = {"tr_dpo": {"tau": 1}}.get(name, {})
    batch = BatchConfig(records=int(size or 18), max_tokens=90)
    kept = tiny.Run()
    kept.trainer = tiny.make(
        load(name, **hyper), TRAIN, folder, callbacks=[kept], batch=batch, eval=HELD_OUT, max_steps=3
    )
    before = kept.trainer.evaluate()
    kept.trainer.train()
    after = kept.trainer.evaluate()
    report = {"losses": kept.losses, "last": kept.logs[-1], "before": before, "after": after}
    for figures in (kept.logs[-1], before, after):
        for name_of_time in ("eval_runtime", "tokens_per_second"):
            figures.pop(name_of_time, None)
    return report, kept


def sharded_gradients(name: str, folder: Path) -> dict[str, torch.Tensor]:
    """Of the first step, whole, of a model that the processes share out among them."""
    trainer = tiny.make(load(name), TRAIN, folder, batch=BatchConfig(records=18, max_tokens=90))
    model: Any = trainer.model
    mesh = init_device_mesh("cpu", (trainer.args.world_size,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert isinstance(model, FSDPModule)
    trainer.training_step(model, next(iter(trainer.get_train_dataloader())))
    return {n: p.grad.full_tensor() for n, p in model.named_parameters()}


def resumed(name: str, folder: Path) -> None:
    """A checkpoint that several processes wrote, and a run that goes on from it."""
    options: dict[str, Any] = {"batch": BatchConfig(records=18, max_tokens=90), "max_steps": 3}
    options |= {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    whole, again = (
        tiny.run(load(name), TRAIN, folder, resume=resume, **options) for resume in (None, folder / "checkpoint-2")
    )
    assert again.losses == whole.losses
    assert tiny.apart(again.weights, whole.weights) == 0.0
    assert sorted(p.name for p in folder.glob("*checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for run in sys.argv[2:]:
        if run.startswith("fsdp:"):
            gradients = sharded_gradients(run.removeprefix("fsdp:"), folder)
            if torch.distributed.get_rank() == 0:
                save_file(gradients, folder / f"{run}.safetensors")
            continue
        if run.startswith("resume:"):
            resumed(run.removeprefix("resume:"), folder / "resumed")
            continue
        report, kept = train(run, folder)
        report["processes"] = kept.trainer.args.world_size
        report["wrapper"] = type(kept.trainer.model_wrapped).__name__
        fillers = torch.tensor(sum(not w.real for b in kept.trainer.get_train_dataloader() for w in b.work))
        torch.distributed.all_reduce(fillers)
        report["fillers"] = fillers.item()
        if kept.trainer.is_world_process_zero():
            (folder / f"{run}.json").write_text(json.dumps(report))
            save_file({n: w.contiguous() for n, w in kept.weights.items()}, folder / f"{run}.safetensors")
    torch.distributed.destroy_process_group()
