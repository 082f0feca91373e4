"""Converts the options that all trainers share: those of transformers' `TrainingArguments`."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import TrainingArguments

from prefopt.migrate.translation import Translation
from prefopt.train.trainer_config import EXPOSED

RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
}
# Options that ask for what prefopt does anyway, or that do not change the result.
IRRELEVANT = {
    "do_train", "do_eval", "do_predict", "overwrite_output_dir", "overwrite_cache", "remove_unused_columns",
    "logging_dir", "logging_nan_inf_filter", "group_by_length", "train_sampling_strategy", "length_column_name",
    "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor", "label_names",
    "skip_memory_metrics", "save_safetensors", "include_num_input_tokens_seen", "log_on_each_node",
    "per_device_eval_batch_size", "eval_accumulation_steps", "prediction_loss_only", "average_tokens_across_devices",
    "include_tokens_per_second", "plot_loss", "preprocessing_batch_size", "disable_dropout", "is_encoder_decoder",
    "padding_value", "pad_token", "pad_to_multiple_of", "label_pad_token_id", "class_name",
    "_n_gpu", "local_rank", "auto_find_batch_size", "accelerator_config",
}  # fmt: skip
NO_EQUIVALENT = {
    "neftune_noise_alpha": "noise on the embeddings would make policy and reference incomparable",
    "label_smoothing_factor": "label smoothing of preferences is in the losses `cdpo` and `robust_dpo`",
    "use_liger_kernel": "the engine has its own head, which never holds the logits",
    "dataloader_drop_last": "the last, smaller batch is kept, and weighted by its records",
    "push_to_hub": "`prefopt export --push` does it after the run",
    "hub_model_id": "see `prefopt export --push`",
    "activation_offloading": "not offered",
    "deepspeed_plugin": "not offered",
    "ignore_data_skip": "a resumed run always continues with the records that come next",
    "torch_empty_cache_steps": "not offered",
    "liger_kernel_config": "not offered",
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
        number = _as_number(ours, value)
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
        t.groups["tracking"] = trackers[0]
        for name in trackers[1:]:
            t.no_equal[f"report_to: {name}"] = "a run has one tracker"
        t.set(tracking__run_name=t.take("run_name"))
    t.take("run_name")
    resume = t.take("resume_from_checkpoint")
    if isinstance(resume, str) and resume.lower() not in ("true", "false"):
        t.set(resume=resume)


def record_unconverted(t: Translation) -> None:
    """Record what is left and matters as options without an equivalent."""
    for name in list(t.given):
        value = t.given.pop(name)
        if (
            name in IRRELEVANT
            or name.endswith("_token")
            or value in (None, False, "", [], {})
            or (name in STOCK and value in (STOCK[name], str(STOCK[name])))
        ):
            continue
        t.no_equal[name] = NO_EQUIVALENT.get(name, "there is no such option here")
