"""The settings of the Hydra group `trainer`: the fields of `transformers.TrainingArguments` that have an effect here.

Options that this trainer would ignore (per-device batch sizes, gradient accumulation, label smoothing …) are left out,
so that giving one is an error instead of nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import distributed
from transformers import EarlyStoppingCallback, TrainingArguments
from transformers.utils.import_utils import is_torch_bf16_gpu_available

from prefopt.common.environment import environment_kept
from prefopt.errors import UserError, first_line

# Ours, where it differs from transformers'.
DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-6,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,  # below 1: a share of all steps
    "num_train_epochs": 1.0,
    "logging_steps": 1.0,
    "eval_strategy": "no",  # held-out records are scored before and after training whatever this says
    "save_strategy": "no",
    "disable_tqdm": True,
}
# Where transformers' annotation still allows for an old spelling, which would turn `true` into a text.
KINDS: dict[str, Any] = {"fsdp": bool | None}
EXPOSED = (
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_steps", "num_train_epochs",
    "optim", "optim_args", "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
    "max_grad_norm", "bf16", "fp16", "tf32", "activation_checkpointing", "activation_checkpointing_kwargs",
    "logging_strategy", "logging_steps", "logging_first_step", "eval_strategy", "eval_steps", "eval_delay",
    "eval_on_start", "save_strategy", "save_steps", "save_total_limit", "save_only_model",
    "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "use_cpu", "full_determinism", "data_seed",
    "dataloader_num_workers", "ddp_backend", "ddp_timeout", "ddp_bucket_cap_mb", "ddp_find_unused_parameters", "fsdp",
    "fsdp_config", "torch_compile", "torch_compile_backend", "torch_compile_mode", "disable_tqdm", "log_level",
)  # fmt: skip
# Options beside those of `TrainingArguments`: kind and default.
OWN: dict[str, tuple[Any, Any]] = {
    "early_stopping_patience": (typing.Optional[int], None),  # noqa: UP045 - a value; evaluations without improvement
    "early_stopping_threshold": (float, 0.0),  # an improvement is larger than this
    "router_aux_loss": (float, 0.0),  # weight of the loss that balances a mixture of experts, beside the method's
}
OPTIONS = (*EXPOSED, *OWN)
TRACKING = ("report_to", "run_name", "project")  # given by `prefopt.config.tracking`
NOT_SUPPORTED = {
    "deepspeed": "DeepSpeed is not supported: shard the model with trainer.fsdp=true",
}


def schema() -> type[Any]:
    """A dataclass of the exposed fields, for Hydra: scalars typed, the rest `Any`."""
    hints = typing.get_type_hints(TrainingArguments)
    fields = {f.name: f for f in dataclasses.fields(TrainingArguments)}
    made = []
    for name in EXPOSED:
        default = DEFAULTS.get(name, _default(fields[name]))
        kind = KINDS.get(name) or _plain(hints[name], default)
        made.append((name, kind, dataclasses.field(default=default)))
    made += [(name, kind, dataclasses.field(default=default)) for name, (kind, default) in OWN.items()]
    return dataclasses.make_dataclass("TrainerConfig", made, kw_only=True)


def training_arguments(output_dir: str | Path, *, seed: int, records: int, **given: Any) -> TrainingArguments:
    """transformers' arguments from ours.

    Args:
        output_dir: of the run.
        seed: of order and initialisation.
        records: of a global batch.
        given: exposed fields that differ from the defaults, or `report_to`, `run_name`, `project` of a tracker.

    Raises:
        UserError: a field that is not exposed, or a value that transformers refuses.
    """
    for name in given:
        check_option(name)
    merged = {**DEFAULTS, "report_to": "none", **{name: value for name, value in given.items() if name not in OWN}}
    if given.get("early_stopping_patience") is not None:
        check_early_stopping(given["early_stopping_patience"], merged)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        raise UserError(NOT_SUPPORTED["deepspeed"])
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and not torch.accelerator.is_available():
        merged["use_cpu"] = True  # accelerate would leave processes without accelerators each to itself
    try:
        if processes > 1:
            _start_processes(merged)
        with environment_kept("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DYNAMO_MODE"):
            arguments = TrainingArguments(
                output_dir=str(output_dir),
                seed=seed,
                per_device_train_batch_size=records,
                remove_unused_columns=False,
                logging_nan_inf_filter=False,
                **merged,
            )
    except (TypeError, ValueError, ImportError) as error:
        if merged.get("bf16") and not (merged.get("use_cpu") or is_torch_bf16_gpu_available()):
            raise UserError("trainer.bf16=true: no GPU here computes in bfloat16; add trainer.bf16=false, or "
                            "trainer.use_cpu=true to compute in bfloat16 on the CPU") from error  # fmt: skip
        raise UserError(f"trainer: {first_line(error)}") from error
    if arguments.world_size < processes:
        raise UserError(f"{processes} processes were started, and do not find each other: start them with torchrun or "
                        "accelerate launch, and see `prefopt doctor`")  # fmt: skip
    return arguments


def check_option(name: str) -> None:
    """Raise UserError, with the reason or the nearest name, for an option that has no effect here."""
    if name in OPTIONS or name in TRACKING:
        return
    if name in NOT_SUPPORTED:
        raise UserError(f"trainer.{name}: {NOT_SUPPORTED[name]}")
    close = difflib.get_close_matches(name, OPTIONS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"the options are: {', '.join(OPTIONS)}"
    raise UserError(f"trainer.{name} is not an option here; {hint}")


def check_early_stopping(patience: Any, options: dict[str, Any]) -> None:
    """Raise UserError where early stopping could never stop a run; `options` get the metric that it looks at."""
    if not isinstance(patience, int) or patience < 1:
        raise UserError(f"trainer.early_stopping_patience={patience} must be at least 1, a number of evaluations")
    if options["eval_strategy"] == "no":
        raise UserError("trainer.early_stopping_patience counts evaluations, and there are none: set "
                        "trainer.eval_strategy=steps and trainer.eval_steps")  # fmt: skip
    if options.get("metric_for_best_model") is None:
        options["metric_for_best_model"] = "loss"


def early_stopping(given: Mapping[str, Any]) -> list[EarlyStoppingCallback]:
    """The callback that the options ask for, if they do."""
    patience = given.get("early_stopping_patience")
    threshold = given.get("early_stopping_threshold", 0.0)
    return [] if patience is None else [EarlyStoppingCallback(patience, threshold)]


def _start_processes(options: Mapping[str, Any]) -> None:
    """Let the processes of a run find each other. transformers would do it, but without a timeout on CPUs."""
    cpu = bool(options.get("use_cpu")) or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    timeout = options.get("ddp_timeout", TrainingArguments.ddp_timeout)
    if not distributed.is_initialized():
        PartialState(cpu=cpu, backend=options.get("ddp_backend"), timeout=timedelta(seconds=timeout))


def autocast(args: TrainingArguments) -> contextlib.AbstractContextManager[Any]:
    """The context that log-probs are computed in: accelerate's own covers a model only from training on, and no
    reference."""
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    return torch.autocast(args.device.type, dtype) if dtype is not None else contextlib.nullcontext()


def precision_advice(device: str, dtype: str, options: Mapping[str, Any]) -> str | None:
    """What to try where a GPU would compute in float32, or nothing.

    Args:
        device: the kind of device that trains.
        dtype: the precision of the weights, as in `model.dtype`.
        options: those of the trainer.
    """
    if device != "cuda" or dtype != "float32" or options.get("bf16") or options.get("fp16") or options.get("use_cpu"):
        return None
    return "computing in float32 on a GPU: trainer.bf16=true is usually much faster and takes less memory"


def computed_in(args: TrainingArguments, model: Any) -> torch.dtype:
    """The precision of log-probs: that of autocast, else of the weights."""
    dtype: torch.dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else next(model.parameters()).dtype
    return dtype


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        value = field.default
        return getattr(value, "value", value)  # an enum's plain value
    return None


def _plain(hint: Any, default: Any) -> Any:
    """float, int, bool, str, or one of them or None; `Any` for everything else."""
    options = set(typing.get_args(hint)) if typing.get_origin(hint) in (typing.Union, types.UnionType) else {hint}
    optional = type(None) in options or default is None
    scalars = options & {bool, int, float, str}
    if options & {dict, list} or any(typing.get_origin(o) in (dict, list) for o in options) or len(scalars) != 1:
        return Any
    scalar: Any = scalars.pop()
    return typing.Optional[scalar] if optional else scalar  # noqa: UP045 - built at run time
