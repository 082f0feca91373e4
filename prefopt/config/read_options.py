"""Refuses options that a run would not read because of its other options, such as `peft.r` without an adapter."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from prefopt.config.options import OVERRIDE
from prefopt.config.run_config import RunConfig
from prefopt.errors import UserError
from prefopt.plugin import Data
from prefopt.train.trainer_config import DEFAULTS

PLAIN_OPTIMIZERS = ("sgd", "adagrad", "rmsprop", "adafactor")  # without the constants of Adam
WITH_TARGETS = ("galore", "apollo")
EVALUATE = "add trainer.eval_strategy=steps"


@dataclass(frozen=True)
class Rule:
    """When options are read.

    Attributes:
        options: patterns of their full names.
        read: whether a configuration reads them.
        remedy: what makes a run read them.
        by: the options that decide about it.
    """

    options: Sequence[str]
    read: Callable[[RunConfig], bool]
    remedy: str
    by: Sequence[str]


def _trainer(config: RunConfig, name: str) -> Any:
    return config.trainer.get(name, DEFAULTS[name])


def _evaluates(config: RunConfig) -> bool:
    return bool(_trainer(config, "eval_strategy") != "no")


RULES = (
    Rule(("peft.r", "peft.alpha", "peft.target_modules"), lambda c: c.peft.method != "none",
         "add peft=lora", ("peft", "experiment")),
    Rule(("rollout.*",), lambda c: c.source != "offline", "add source=rollouts or source=samples", ("source", "loss")),
    Rule(("rollout.label", "rollout.label_temperature", "rollout.allow_argmax"),
         lambda c: c.loss.needs.data in (Data.PAIRS, Data.UNPAIRED), "choose a loss on pairs or labels", ("loss",)),
    Rule(("rollout.updates", "rollout.sampler", "rollout.url", "rollout.correction", "rollout.correction_limit",
          "rollout.max_stale"), lambda c: c.source == "rollouts", "add source=rollouts", ("source",)),
    Rule(("rollout.correction_limit",), lambda c: c.rollout.correction is not None,
         "add rollout.sampler=vllm and rollout.correction=token_clip", ("rollout.sampler", "rollout.correction")),
    Rule(("tracking.project", "tracking.mode", "tracking.run_name"), lambda c: c.tracking.report_to != "none",
         "add tracking=wandb or another", ("tracking",)),
    Rule(("tracking.mode",), lambda c: c.tracking.report_to == "wandb", "add tracking=wandb", ("tracking",)),
    Rule(("tracking.project",), lambda c: c.tracking.report_to in ("wandb", "trackio", "mlflow"),
         "add tracking=wandb, trackio or mlflow", ("tracking",)),
    Rule(("model.revision",), lambda c: not os.path.isdir(c.model.path) and not c.model.path.startswith("package:"),
         "it is of models on the hub", ("model",)),
    Rule(("stages_folder",), lambda c: bool(c.stages) or c.rounds > 1, "add experiment=sft_then_dpo or another with "
         "stages", ("experiment", "stages", "rounds")),
    Rule(("evaluation.max_new_tokens",), lambda c: c.evaluation.texts > 0 or c.evaluation.kl_prompts > 0,
         "set evaluation.texts or evaluation.kl_prompts above 0", ("evaluation",)),
    Rule(("trainer.eval_steps",), lambda c: _trainer(c, "eval_strategy") == "steps", EVALUATE,
         ("trainer",)),
    Rule(("trainer.eval_delay",), _evaluates, EVALUATE, ("trainer",)),
    Rule(("trainer.metric_for_best_model", "trainer.greater_is_better"),
         lambda c: _evaluates(c) or bool(_trainer(c, "eval_on_start")), EVALUATE, ("trainer",)),
    Rule(("trainer.early_stopping_threshold",), lambda c: _trainer(c, "early_stopping_patience") is not None,
         "add trainer.early_stopping_patience=3", ("trainer",)),
    Rule(("trainer.save_steps",), lambda c: _trainer(c, "save_strategy") == "steps", "add trainer.save_strategy=steps",
         ("trainer",)),
    Rule(("trainer.save_only_model",), lambda c: _trainer(c, "save_strategy") != "no", "set trainer.save_strategy",
         ("trainer",)),
    Rule(("trainer.logging_steps",), lambda c: _trainer(c, "logging_strategy") == "steps",
         "add trainer.logging_strategy=steps", ("trainer",)),
    Rule(("trainer.warmup_steps",),
         lambda c: _trainer(c, "lr_scheduler_type") != "constant" or not _trainer(c, "warmup_steps"),
         "add trainer.lr_scheduler_type=constant_with_warmup", ("trainer",)),
    Rule(("trainer.adam_beta1", "trainer.adam_beta2", "trainer.adam_epsilon"),
         lambda c: _trainer(c, "optim") not in PLAIN_OPTIMIZERS, "add trainer.optim=adamw_torch", ("trainer",)),
    Rule(("trainer.optim_target_modules",), lambda c: str(_trainer(c, "optim")).startswith(WITH_TARGETS),
         "add trainer.optim=galore_adamw or apollo_adamw", ("trainer",)),
    Rule(("trainer.activation_checkpointing_kwargs",), lambda c: bool(_trainer(c, "activation_checkpointing")),
         "add trainer.activation_checkpointing=true", ("trainer",)),
    Rule(("trainer.fsdp_config",), lambda c: bool(_trainer(c, "fsdp")), "add trainer.fsdp=true", ("trainer",)),
)  # fmt: skip


def check_read(words: Iterable[str], configs: Sequence[RunConfig], *, multirun: bool = False) -> None:
    """Check that each option that a command gives is read by one of the configurations that come of it.

    Args:
        words: those of the command; presets may hold what their users do not need.
        configs: of the run and its stages, or of the rows of a comparison.
        multirun: the command has several values for some options, and other runs may read what this one does not.

    Raises:
        UserError: an option that none reads, with what would make it read.
    """
    given = [(word, found[1], found[2]) for word in words if (found := OVERRIDE.fullmatch(word.lstrip("+")))]
    swept = {key for _, key, value in given if multirun and ("," in value or "(" in value)}
    for word, key, value in given:
        for rule in RULES:
            if value == "null" or not any(fnmatchcase(key, pattern) for pattern in rule.options):
                continue
            decided_elsewhere = any(other == by or other.startswith(f"{by}.") for other in swept for by in rule.by)
            if not decided_elsewhere and not any(rule.read(config) for config in configs):
                raise UserError(f"{word}: with these options nothing reads it; {rule.remedy}, or leave it out")
