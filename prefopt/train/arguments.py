"""Makes transformers' arguments of the settings of the group `trainer` (`prefopt.train.trainer_config`)."""

from __future__ import annotations

import contextlib
import os
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
from prefopt.train.trainer_config import DEFAULTS, NOT_SUPPORTED, OWN, check_option


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
    merged = {name: value for name, value in {**DEFAULTS, "report_to": "none", **given}.items() if name not in OWN}
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
    threshold = given.get("early_stopping_threshold", DEFAULTS["early_stopping_threshold"])
    return [] if patience is None else [EarlyStoppingCallback(patience, threshold)]


def _start_processes(options: Mapping[str, Any]) -> None:
    """Let the processes of a run find each other. transformers would do it, but without a timeout on CPUs."""
    cpu = bool(options.get("use_cpu")) or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    timeout = options["ddp_timeout"]
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
