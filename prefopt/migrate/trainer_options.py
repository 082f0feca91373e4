"""Converts the options that all trainers share: those of transformers' `TrainingArguments`."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import TrainingArguments

from prefopt.config.tracking import MODULES
from prefopt.migrate.no_equivalent import asks, has_no_effect, would_do
from prefopt.migrate.translation import Translation
from prefopt.train.trainer_config import EXPOSED

RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
}
# transformers' own defaults.
STOCK: dict[str, Any] = {
    field.name: None if field.default is dataclasses.MISSING else getattr(field.default, "value", field.default)
    for field in dataclasses.fields(TrainingArguments)
}
# Options whose defaults differ here, so that theirs are always written out.
WRITTEN = ("learning_rate", "lr_scheduler_type", "num_train_epochs", "logging_steps", "save_strategy", "save_steps")


def convert_trainer_options(t: Translation, defaults: dict[str, Any], processes: int) -> None:
    """Convert the trainer's options; `defaults` are the other program's where they differ from transformers'."""
    theirs = {name: STOCK[name] for name in WRITTEN} | {"warmup_steps": 0} | defaults
    given = {**theirs, **{name: value for name, value in t.given.items() if value is not None}}
    ratio = given.pop("warmup_ratio", None)
    t.given.pop("warmup_ratio", None)
    if ratio and not given.get("warmup_steps"):
        given["warmup_steps"] = ratio  # a number below 1 is a share of the steps
    size = int(given.pop("per_device_train_batch_size", 8))
    accumulation = int(given.pop("gradient_accumulation_steps", 1))
    t.set(batch__records=size * accumulation * processes)
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        t.given.pop(name, None)
    for name, value in given.items():
        ours = RENAMED.get(name, name)
        if ours not in EXPOSED:
            continue
        t.given.pop(name, None)
        number = bool(value) if ours == "fsdp" else _as_number(ours, value)
        if name in theirs or number != STOCK.get(ours):
            t.set(**{f"trainer__{ours}": number})
    _convert_run_options(t)


def _as_number(name: str, value: Any) -> Any:
    """Turn text into a number where transformers' default is one: YAML reads `5e-7` as text."""
    if isinstance(value, str) and isinstance(STOCK.get(name), float | int):
        try:
            return float(value) if not value.lstrip("-").isdigit() else int(value)
        except ValueError:
            return value
    return value


def _convert_run_options(t: Translation) -> None:
    """Convert the options of `TrainingArguments` that are not in our group `trainer`."""
    if (seed := t.take("seed")) is not None:
        t.set(seed=int(seed))
    t.set(output_dir=t.take("output_dir"))
    reports = t.take("report_to", "none")
    names = [reports] if isinstance(reports, str) else list(reports)
    trackers = [name for name in names if name not in ("none", "all", "[]")]
    if trackers:
        if trackers[0] in MODULES:
            t.groups["tracking"] = trackers[0]
        else:
            t.set(tracking__report_to=trackers[0])
        for name in trackers[1:]:
            t.no_equal[f"report_to: {name}"] = "a run has one tracker"
        t.set(tracking__run_name=t.take("run_name"))
    t.ignore("run_name")
    resume = t.given.get("resume_from_checkpoint")
    if isinstance(resume, str) and resume.lower() not in ("true", "false"):
        t.set(resume=t.take("resume_from_checkpoint"))
    t.ignore("resume_from_checkpoint")  # a run always resumes from the last checkpoint in its folder


def record_unconverted(t: Translation) -> None:
    """Record what is left: options that change nothing here, and what the others would have done.

    What is off, has transformers' default, or is a token that `to_json_string` hides (`<HUB_TOKEN>`) asks for nothing.
    """
    for name in list(t.given):
        value = t.given.pop(name)
        stock = name in STOCK and value in (STOCK[name], str(STOCK[name]))
        if stock or not asks(name, value) or value == f"<{name.upper()}>":
            continue
        if has_no_effect(name, value):
            t.no_effect.append(name)
        else:
            t.no_equal[name] = would_do(name, value) or f"not a known option of {t.source}: look up what it does there"
