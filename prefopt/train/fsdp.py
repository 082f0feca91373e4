"""FSDP2: a model whose weights, gradients and optimizer states are spread over the processes, on GPUs and on CPUs.

torch shards the model (`fully_shard`), by accelerate's settings. accelerate itself is not asked to: it lets FSDP act on
accelerators alone and, asked for it on a CPU, continues with plain data parallelism without a word.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from prefopt.errors import UserError
from prefopt.train.states import check_optimizer

SWITCH = "ACCELERATE_USE_FSDP"  # set by `accelerate launch --use_fsdp`
LOADING = "FSDP_CPU_RAM_EFFICIENT_LOADING"  # set by it, too, unless told otherwise


def asked_for(args: TrainingArguments) -> bool:
    """Whether `trainer.fsdp` or the settings of `accelerate launch` ask for shards."""
    return bool(args.fsdp) or os.environ.get(SWITCH, "").lower() == "true"


def check(args: TrainingArguments, *, moving_reference: bool) -> None:
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


def settings(args: TrainingArguments) -> FullyShardedDataParallelPlugin | None:
    """accelerate's settings of the shards, if any are asked for.

    Raises:
        UserError: FSDP1, or modules that are to be left out.
    """
    if not asked_for(args):
        return None
    found = FullyShardedDataParallelPlugin(**(args.fsdp_plugin_args or {}))
    if found.fsdp_version != 2:
        raise UserError("FSDP1 is not supported: set fsdp_version: 2 (accelerate launch --fsdp_version 2)")
    if found.ignored_modules is not None:
        raise UserError("fsdp_ignored_modules is not supported: every module is sharded")
    return found


def load_whole_models() -> None:
    """Have every process load all weights, though `accelerate launch --use_fsdp` asks the first one alone to.

    Each needs them: it checks the layout, scores its share of the reference, and cuts its shard out of them.
    """
    if LOADING in os.environ:
        os.environ[LOADING] = "false"


def shard(policy: nn.Module, plugin: FullyShardedDataParallelPlugin, args: TrainingArguments) -> None:
    """Shard a policy in place: each of its blocks is gathered on its own, what is left for the whole forward.

    Args:
        policy: what is called.
        plugin: the settings.
        args: device and precision.
    """
    half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    if half is not None:  # weights that are trained are kept in float32, as accelerate does
        for weight in policy.parameters():
            if weight.requires_grad and weight.dtype in (torch.bfloat16, torch.float16):
                weight.data = weight.data.float()
    gathered = half if args.device.type != "cpu" else None  # half the traffic; autocast would round them anyway
    options: dict[str, Any] = {
        "mesh": init_device_mesh(args.device.type, (args.world_size,)),
        "mp_policy": MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32 if gathered else None),
        "offload_policy": plugin.cpu_offload,
    }
    for block in blocks(policy, plugin):
        fully_shard(block, reshard_after_forward=bool(plugin.reshard_after_forward), **options)
    fully_shard(policy, **options)
    register_fsdp_forward_method(policy, "generate")


def blocks(root: nn.Module, plugin: FullyShardedDataParallelPlugin) -> list[nn.Module]:
    """The modules that are gathered one by one, inner ones first.

    Those of the classes or of the size that the settings name; by default the layers of the model.
    """
    if plugin.auto_wrap_policy is None:
        return []
    if plugin.auto_wrap_policy is size_based_auto_wrap_policy:
        return _inner_first(root, lambda m: sum(p.numel() for p in m.parameters()) > (plugin.min_num_params or 0))
    names = plugin.transformer_cls_names_to_wrap
    if not names:
        return list(layers(root))
    unknown = set(names) - {type(module).__name__ for module in root.modules()}
    if unknown:
        raise UserError(f"the model has no layer of the class {min(unknown)} (fsdp_transformer_layer_cls_to_wrap)")
    return _inner_first(root, lambda m: type(m).__name__ in names)


def _inner_first(root: nn.Module, chosen: Callable[[nn.Module], bool]) -> list[nn.Module]:
    """The chosen modules below a root; a list of modules is no module that is called."""
    found = [m for m in root.modules() if m is not root and not isinstance(m, nn.ModuleList) and chosen(m)]
    return found[::-1]


def layers(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of a model: the members of its outermost lists of modules."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from layers(child)


# ---- the optimizer's states, as a process without shards has them


def optimizer_state(optimizer: Any, *, keeps: bool) -> dict[str, Any]:
    """The states of an optimizer; those of a sharded one are gathered by every process, and kept where `keeps`."""

    def whole(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        gathered = value.full_tensor()
        return gathered.cpu() if keeps else None

    state: dict[str, Any] = optimizer.state_dict()
    state["state"] = {i: {n: whole(v) for n, v in values.items()} for i, values in state["state"].items()}
    return state


def load_optimizer_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Load states that any number of processes wrote, with shards or without; each takes its shards of them.

    Raises:
        KeyError, TypeError, ValueError: they do not fit the weights.
    """
    check_optimizer(state, optimizer)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def shard_of(value: Any, weight: Tensor) -> Any:
        if not isinstance(weight, DTensor) or not isinstance(value, Tensor) or value.shape != weight.shape:
            return value
        return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None)

    whole = state["state"]
    state["state"] = {i: {n: shard_of(v, weights[i]) for n, v in values.items()} for i, values in whole.items()}
    optimizer.load_state_dict(state)
