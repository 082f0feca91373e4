"""Defines the settings of the Hydra group `trainer`, without loading transformers: a command line reads them first."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, ClassVar

from prefopt.common.option_limits import Limits, OneOfEnum, above, at_least
from prefopt.errors import UserError


@dataclass(kw_only=True)
class TrainerConfig:
    """The fields of `transformers.TrainingArguments` that have an effect here, and ours. The defaults of the group
    `trainer`.

    Options that this trainer would ignore (per-device batch sizes, gradient accumulation, label smoothing …) are left
    out, so that giving one is an error instead of nothing.
    """

    LIMITS: ClassVar[Limits] = {
        "learning_rate": at_least(0), "lr_scheduler_type": OneOfEnum("trainer_utils.py:SchedulerType"),
        "warmup_steps": at_least(0), "max_steps": at_least(-1), "num_train_epochs": at_least(0),
        "optim": OneOfEnum("training_args.py:OptimizerNames"), "weight_decay": at_least(0),
        "adam_beta1": at_least(0, below=1), "adam_beta2": at_least(0, below=1), "adam_epsilon": at_least(0),
        "max_grad_norm": at_least(0), "logging_strategy": OneOfEnum("trainer_utils.py:IntervalStrategy"),
        "logging_steps": above(0), "eval_strategy": OneOfEnum("trainer_utils.py:IntervalStrategy"),
        "eval_steps": above(0), "eval_delay": at_least(0),
        "save_strategy": OneOfEnum("trainer_utils.py:SaveStrategy"), "save_steps": above(0),
        "save_total_limit": at_least(1), "data_seed": at_least(0), "dataloader_num_workers": at_least(0),
        "ddp_timeout": at_least(1), "ddp_bucket_cap_mb": at_least(1), "early_stopping_patience": at_least(1),
        "early_stopping_threshold": at_least(0), "router_aux_loss": at_least(0),
    }  # fmt: skip

    learning_rate: float = 1e-6  # of the optimizer, at its highest
    lr_scheduler_type: str = "cosine"  # cosine, linear, constant, constant_with_warmup and others of transformers
    lr_scheduler_kwargs: Any = None
    warmup_steps: float = 0.1  # optimizer steps; below 1 a share of all
    max_steps: int = -1  # optimizer steps; -1: as many as the epochs take
    num_train_epochs: float = 1.0  # passes over the data
    optim: str = "adamw_torch_fused"
    optim_args: str | None = None
    optim_target_modules: Any = None
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    bf16: bool = False  # compute in bfloat16, weights stay float32; use it on a GPU
    fp16: bool = False
    tf32: bool | None = None
    activation_checkpointing: bool | None = None
    activation_checkpointing_kwargs: Any = None
    logging_strategy: str = "steps"
    logging_steps: float = 1.0  # optimizer steps; below 1 a share of all
    logging_first_step: bool = False
    eval_strategy: str = "no"  # held-out records are scored before and after training whatever this says
    eval_steps: float | None = None
    eval_delay: float = 0
    eval_on_start: bool = False
    save_strategy: str = "no"  # no, steps (each trainer.save_steps) or epoch
    save_steps: float = 500
    save_total_limit: int | None = None
    save_only_model: bool = False
    load_best_model_at_end: bool = False
    metric_for_best_model: str | None = None
    greater_is_better: bool | None = None
    use_cpu: bool = False
    full_determinism: bool = False
    data_seed: int | None = None
    dataloader_num_workers: int = 0
    ddp_backend: str | None = None
    ddp_timeout: int = 1800  # seconds
    ddp_bucket_cap_mb: int | None = None
    ddp_find_unused_parameters: bool | None = None
    # Where transformers' annotation still allows for an old spelling, which would turn `true` into a text.
    fsdp: bool | None = None
    fsdp_config: Any = None
    torch_compile: bool = False
    torch_compile_backend: str | None = None
    torch_compile_mode: str | None = None
    disable_tqdm: bool | None = True
    log_level: str = "passive"
    early_stopping_patience: int | None = None  # evaluations without improvement
    early_stopping_threshold: float = 0.0  # an improvement is larger than this
    router_aux_loss: float = 0.0  # weight of the loss that balances a mixture of experts, beside the method's


DEFAULTS: dict[str, Any] = dataclasses.asdict(TrainerConfig())
# Not of `TrainingArguments`.
OWN = ("early_stopping_patience", "early_stopping_threshold", "router_aux_loss")
EXPOSED = tuple(name for name in DEFAULTS if name not in OWN)
TRACKING = ("report_to", "run_name", "project")  # given by `prefopt.config.tracking`
NOT_SUPPORTED = {
    "deepspeed": "DeepSpeed is not supported: shard the model with trainer.fsdp=true",
}


def check_option(name: str) -> None:
    """Raise UserError, with the reason or the nearest name, for an option that has no effect here."""
    if name in DEFAULTS or name in TRACKING:
        return
    if name in NOT_SUPPORTED:
        raise UserError(f"trainer.{name}: {NOT_SUPPORTED[name]}")
    close = difflib.get_close_matches(name, DEFAULTS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"the options are: {', '.join(DEFAULTS)}"
    raise UserError(f"trainer.{name} is not an option here; {hint}")
