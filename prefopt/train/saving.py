"""Writes and reads the files of a checkpoint: weights, optimizer, schedule, random generators, figures.

A checkpoint does not say how many processes wrote it, or whether they sharded the model: any number of processes
resumes from it, with shards or without.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainerState, TrainingArguments
from transformers.trainer_pt_utils import safe_globals
from transformers.utils import SAFE_WEIGHTS_NAME

from prefopt.engine.policy import Policy
from prefopt.errors import PrefoptError, UserError, first_line, of_machine
from prefopt.models.folder import check_files
from prefopt.train import fsdp
from prefopt.train.states import check_form

OPTIMIZER, SCHEDULE, SCALER = "optimizer.pt", "scheduler.pt", "scaler.pt"
STATE = "trainer_state.json"
LOSS_STATE = "loss_state.safetensors"
REFERENCE = "reference.safetensors"
VALUES = "values.safetensors"  # of the value model, what it does not share with the policy
FIGURES = "figures.json"  # what has been summed up since the last log

# ---- weights


def save_weights(policy: Policy, folder: Path, *, writes: bool) -> None:
    """Save a model or its adapter as plain transformers and peft load it; every process of a sharded one takes part.

    Args:
        policy: holds the model; sharded or not.
        folder: where to.
        writes: whether this process does.
    """
    weights = None
    if isinstance(policy, FSDPModule):
        whole = get_model_state_dict(policy, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        weights = {name.removeprefix("model."): value for name, value in whole.items()}
    if writes:
        policy.model.save_pretrained(folder, state_dict=weights, is_main_process=True)


def load_weights(model: Any, folder: Path) -> None:
    """Load what `save_weights` wrote into a model that is not sharded yet."""
    if hasattr(model, "get_base_model"):
        found = model.load_adapter(str(folder), model.active_adapters[0], is_trainable=True)
        if others := [*found.missing_keys, *found.unexpected_keys]:
            raise ValueError(f"its adapter and the model's differ in {others[0]}")
        return
    file = folder / SAFE_WEIGHTS_NAME
    if file.is_file() and not _missing(model, (weights := load_file(file)).keys()):
        model.load_state_dict(weights, strict=False)
    else:  # several files, or names that transformers changes as it saves and loads
        check_files(str(folder))
        loaded = type(model).from_pretrained(folder, dtype="auto", use_safetensors=True, local_files_only=True)
        model.load_state_dict(loaded.state_dict())


def _missing(model: nn.Module, names: Collection[str]) -> bool:
    """Whether a model has weights beyond those of these names; a tied weight has several names."""
    found = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if name in names}
    return any(id(p) not in found for p in model.parameters())


def first_weights_not_finite(model: nn.Module) -> str | None:
    """The name of the first trained weights of a model (of this process's shards) that are not finite."""
    trained = [(name, weight.detach()) for name, weight in model.named_parameters() if weight.requires_grad]
    local = [(name, w.to_local() if isinstance(w, DTensor) else w) for name, w in trained]
    finite = [torch.isfinite(weight).all() for _, weight in local]
    if not finite or bool(torch.stack([flag.to(finite[0].device) for flag in finite]).all()):  # the device is read once
        return None
    return next(name for (name, _), flag in zip(local, finite, strict=True) if not flag)


# ---- random generators


def save_generators(folder: Path, args: TrainingArguments) -> None:
    """Save the states of this process's random generators, in a file of its own."""
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all() if args.world_size > 1 else torch.cuda.get_rng_state()
    torch.save(states, folder / _generators(args))


def load_generators(folder: Path, args: TrainingArguments) -> None:
    """Restore what `save_generators` wrote, where this process has a file: other processes than before have none."""
    file = folder / _generators(args)
    if not file.is_file():
        return
    with reading(folder):
        with safe_globals():  # type: ignore[no-untyped-call]
            states = torch.load(file, weights_only=True)
        own: Any = np.random.get_state()
        check_form(states["numpy"], own, file.name)
        if not 0 <= states["numpy"][2] <= len(own[1]):  # numpy would read beyond its end
            raise ValueError(f"{file.name}: the place in numpy's state is {states['numpy'][2]}")
        random.setstate(states["python"])
        np.random.set_state(states["numpy"])
        torch.set_rng_state(states["cpu"])
        if torch.cuda.is_available() and "cuda" in states:
            cuda = states["cuda"]
            torch.cuda.set_rng_state_all(cuda) if isinstance(cuda, list) else torch.cuda.set_rng_state(cuda)


def _generators(args: TrainingArguments) -> str:
    return "rng_state.pth" if args.world_size == 1 else f"rng_state_{args.process_index}.pth"


# ---- optimizer, schedule, scaler


def save_optimizer(optimizer: Any, schedule: Any, scaler: Any, folder: Path, *, writes: bool) -> None:
    """Save the states of optimizer, schedule and scaler; every process of a sharded model takes part."""
    state = fsdp.optimizer_state(optimizer, keeps=writes)
    if not writes:
        return
    torch.save(state, folder / OPTIMIZER)
    torch.save(schedule.state_dict(), folder / SCHEDULE)
    if scaler is not None:
        torch.save(scaler.state_dict(), folder / SCALER)


def load_optimizer(optimizer: Any, schedule: Any, scaler: Any, folder: Path) -> None:
    """Restore what `save_optimizer` wrote, each process its shards."""
    state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True, mmap=True)
    fsdp.load_optimizer_state(optimizer, state)
    for part, name in ((schedule, SCHEDULE), (scaler, SCALER)):
        if part is None or (part is scaler and not (folder / name).is_file()):
            continue
        kept = torch.load(folder / name, weights_only=True)
        check_form(kept, part.state_dict(), name)
        part.load_state_dict(kept)


# ---- state and figures


def load_state(folder: Path) -> TrainerState:
    """transformers' state, as it was written.

    Raises:
        ValueError: values of other kinds than transformers writes.
    """
    state: TrainerState = TrainerState.load_from_json(str(folder / STATE))
    kinds: dict[str, Any] = {"global_step": int, "max_steps": int, "num_train_epochs": int, "total_flos": int | float,
                             "log_history": list, "stateful_callbacks": dict | None, "epoch": int | float | None,
                             "best_global_step": int | None, "best_metric": int | float | None,
                             "best_model_checkpoint": str | None, "num_input_tokens_seen": int,
                             **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), int | float)}  # fmt: skip
    for name, kind in kinds.items():
        value = getattr(state, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{STATE}: {name} is of another kind")
    if not 0 <= state.global_step < 2**53 or not all(isinstance(entry, dict) for entry in state.log_history):
        raise ValueError(f"{STATE}: global_step is not a step number, or log_history has no logs")
    if not all(0 < every < math.inf for every in (state.logging_steps, state.eval_steps, state.save_steps)):
        raise ValueError(f"{STATE}: it logs, evaluates or saves at no step")
    for entry in state.log_history:
        if not isinstance(entry.get("step", 0), int) or not all(
            isinstance(v, int | float | str) for v in entry.values()
        ):
            raise ValueError(f"{STATE}: log_history has something else than figures")
    return state


def load_figures(folder: Path) -> dict[str, Any]:
    """What had been summed up since the last log; ValueError, TypeError or KeyError where the file has another form."""
    kept = json.loads((folder / FIGURES).read_text(encoding="utf-8"))
    return {
        "sums": [{str(n): (float(total), int(count)) for n, (total, count) in part.items()} for part in kept["sums"]],
        "losses": [float(loss) for loss in kept["losses"]],
        "loss_of_earlier_logs": float(kept["loss_of_earlier_logs"]),
        "last_logged": int(kept["last_logged"]),
        "evaluation_due": bool(kept["evaluation_due"]),
        "at_reference": bool(kept.get("at_reference", False)),
    }


@contextlib.contextmanager
def reading(folder: str | Path) -> Iterator[None]:
    """Names the checkpoint that cannot be read: each library has its own errors for that."""
    try:
        yield
    except PrefoptError:
        raise
    except Exception as error:
        if of_machine(error):
            raise
        raise UserError(
            f"cannot resume from {folder}: {first_line(error)[:300]}; resume=auto takes the last checkpoint that is "
            "whole, resume=never starts anew in another folder"
        ) from error
