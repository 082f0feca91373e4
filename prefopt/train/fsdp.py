"""FSDP2: a model whose weights, gradients and optimizer states are spread over the processes.

transformers and accelerate shard the model; here is what they leave open. A checkpoint does not say how many processes
wrote it, or whether they sharded: weights as transformers saves them, states of the optimizer in the order of the
weights, as one process writes both. So any number of processes goes on from it, with shards or without.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from prefopt.errors import UserError

OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"  # transformers' names
SWITCH = "ACCELERATE_USE_FSDP"  # set by `accelerate launch --use_fsdp`
LOADING = "FSDP_CPU_RAM_EFFICIENT_LOADING"  # set by it, too, unless told otherwise


def asked_for(args: TrainingArguments) -> bool:
    """Whether `trainer.fsdp` or the settings of `accelerate launch` ask for shards."""
    return bool(args.fsdp) or os.environ.get(SWITCH, "").lower() == "true"


def refuse(args: TrainingArguments, *, moving_reference: bool) -> None:
    """Raise UserError where shards are asked for and cannot be had."""
    if not asked_for(args):
        return
    if args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise UserError("trainer.fsdp spreads a model over several processes, and this is a single one: start it with "
                        "torchrun or accelerate launch")  # fmt: skip
    if moving_reference:
        raise UserError("a reference that follows the policy cannot be used with trainer.fsdp: its weights would "
                        "have to be gathered; use plain data parallelism")  # fmt: skip
    if args.activation_checkpointing and (args.fsdp_plugin_args or {}).get("activation_checkpointing"):
        raise UserError("trainer.activation_checkpointing and that of trainer.fsdp_config are one too many: take the "
                        "latter")  # fmt: skip
    if args.load_best_model_at_end:
        raise UserError("trainer.load_best_model_at_end does not work with trainer.fsdp: take the checkpoint that "
                        "`best` points at")  # fmt: skip


def plugin_of(args: TrainingArguments) -> FullyShardedDataParallelPlugin | None:
    """accelerate's settings of the shards, if any are asked for; checkpoints are gathered.

    Raises:
        UserError: FSDP1.
    """
    if not asked_for(args):
        return None
    plugin = FullyShardedDataParallelPlugin(**(args.fsdp_plugin_args or {}))
    if plugin.fsdp_version != 2:
        raise UserError("FSDP1 is not supported: set fsdp_version: 2 (accelerate launch --fsdp_version 2)")
    plugin.set_state_dict_type("FULL_STATE_DICT")
    return plugin


@contextmanager
def switch_kept() -> Iterator[None]:
    """accelerate switches FSDP on for the whole program where one model asks for it: leave that as it was."""
    before = os.environ.get(SWITCH)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(SWITCH, None)


def shard_on_cpu(state: Any, plugin: FullyShardedDataParallelPlugin) -> None:
    """Make FSDP2 the way of processes on CPUs: accelerate lets it act on accelerators alone and, asked for it on a
    CPU, goes on with plain data parallelism without a word.

    Args:
        state: accelerate's, of a new `Accelerator`.
        plugin: the settings.
    """
    if state.distributed_type == DistributedType.MULTI_CPU:
        # Both, because accelerate copies the second over the first.
        state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        state.fsdp_plugin = plugin


def load_whole_models() -> None:
    """Have every process load all weights, though `accelerate launch --use_fsdp` asks the first one alone to.

    Each needs them: it checks the layout, scores its share of the reference, and cuts its shard out of them.
    """
    if LOADING in os.environ:
        os.environ[LOADING] = "false"


def save_optimizer(optimizer: Any, folder: Path, *, writes: bool) -> None:
    """Gather the states of a sharded optimizer on the first process, and write them as one process would.

    Args:
        optimizer: of a sharded model.
        folder: of the checkpoint.
        writes: whether this process does; all of them gather.
    """

    def gathered(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        whole = value.full_tensor()
        return whole.cpu() if writes else None

    state = optimizer.state_dict()
    state["state"] = {i: {n: gathered(v) for n, v in values.items()} for i, values in state["state"].items()}
    if writes:
        torch.save(state, folder / OPTIMIZER)


def load_optimizer(optimizer: Any, folder: Path) -> None:
    """Give every process its shard of the states that `save_optimizer`, or a process without shards, wrote.

    Raises:
        OSError, RuntimeError, KeyError, ValueError: the file is not there, or is of another model.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def shard(value: Any, weight: Tensor) -> Any:
        if not isinstance(weight, DTensor) or not isinstance(value, Tensor) or value.shape != weight.shape:
            return value
        return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None)

    state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True, mmap=True)
    state["state"] = {i: {n: shard(v, weights[i]) for n, v in values.items()} for i, values in state["state"].items()}
    optimizer.load_state_dict(state)


def sharded(model: Any) -> bool:
    """Whether a model is spread over the processes."""
    return isinstance(model, FSDPModule)
