"""What all of them share: transformers' `TrainingArguments`."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

from prefopt.migrate.translation import Translation
from prefopt.train.arguments import EXPOSED

RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
}
# Options that ask for what happens here anyway, or that say nothing about the result.
NEEDLESS = {
    "do_train", "do_eval", "do_predict", "overwrite_output_dir", "overwrite_cache", "remove_unused_columns",
    "logging_dir", "logging_nan_inf_filter", "group_by_length", "train_sampling_strategy", "length_column_name",
    "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor", "label_names",
    "skip_memory_metrics", "save_safetensors", "include_num_input_tokens_seen", "log_on_each_node",
    "per_device_eval_batch_size", "eval_accumulation_steps", "prediction_loss_only", "average_tokens_across_devices",
    "include_tokens_per_second", "plot_loss", "preprocessing_batch_size", "disable_dropout", "is_encoder_decoder",
    "padding_value", "pad_token", "pad_to_multiple_of", "label_pad_token_id", "class_name",
    "_n_gpu", "local_rank", "auto_find_batch_size", "accelerator_config",
}  # fmt: skip
NO_EQUAL = {
    "neftune_noise_alpha": "noise on embeddings would make policy and reference incomparable",
    "label_smoothing_factor": "the losses' own smoothing is `cdpo`, `robust_dpo`",
    "use_liger_kernel": "the engine has its own head, which never holds the logits",
    "torch_compile": "not offered",
    "dataloader_drop_last": "the last, smaller step is kept, and weighted by its records",
    "push_to_hub": "`prefopt export --push` does it after the run",
    "hub_model_id": "see `prefopt export --push`",
    "activation_offloading": "not offered",
    "deepspeed_plugin": "not offered",
    "ignore_data_skip": "a resume always goes on with the records that were to come",
    "torch_empty_cache_steps": "not offered",
    "liger_kernel_config": "not offered",
}


@cache
def stock() -> dict[str, Any]:
    """transformers' own defaults."""
    from transformers import TrainingArguments

    found: dict[str, Any] = {}
    for field in dataclasses.fields(TrainingArguments):
        value = field.default if field.default is not dataclasses.MISSING else None
        found[field.name] = getattr(value, "value", value)
    return found


def training_arguments(t: Translation, defaults: dict[str, Any], processes: int) -> None:
    """Translate them; `defaults` are the other program's where they differ from transformers'.

    Its defaults are written out where they are not ours: a run that said nothing of them must not change.
    """
    theirs = {name: stock()[name] for name in ("learning_rate", "lr_scheduler_type", "num_train_epochs",
              "logging_steps", "save_strategy", "save_steps")} | {"warmup_steps": 0} | defaults  # fmt: skip
    given = {**theirs, **{name: value for name, value in t.given.items() if value is not None}}
    ratio = given.pop("warmup_ratio", None)
    t.given.pop("warmup_ratio", None)
    if ratio and not given.get("warmup_steps"):
        given["warmup_steps"] = ratio  # below 1 it is a share of the steps
    size = int(given.pop("per_device_train_batch_size", 8))
    accumulation = int(given.pop("gradient_accumulation_steps", 1))
    t.put(batch__records=size * accumulation * processes)
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        t.given.pop(name, None)
    for name, value in given.items():
        ours = RENAMED.get(name, name)
        if ours not in EXPOSED:
            continue
        t.given.pop(name, None)
        plain = _plain(ours, value)
        if name in theirs or plain != stock().get(ours):
            t.put(**{f"trainer__{ours}": plain})
    _others(t)


def _plain(name: str, value: Any) -> Any:
    """A number where transformers' own default is one: JSON and YAML keep `5e-7` as text."""
    if isinstance(value, str) and isinstance(stock().get(name), float | int):
        try:
            return float(value) if not value.lstrip("-").isdigit() else int(value)
        except ValueError:
            return value
    return value


def _others(t: Translation) -> None:
    """What is not the trainer's here."""
    if (seed := t.take("seed")) is not None:
        t.put(seed=int(seed))
    t.put(output_dir=t.take("output_dir"))
    reports = t.take("report_to", "none")
    names = [reports] if isinstance(reports, str) else list(reports)
    known = [name for name in names if name not in ("none", "all", "[]")]
    if known:
        t.groups["tracking"] = known[0]
        for name in known[1:]:
            t.no_equal[f"report_to: {name}"] = "one tracker a run"
        t.put(tracking__run_name=t.take("run_name"))
    t.take("run_name")
    resume = t.take("resume_from_checkpoint")
    if isinstance(resume, str) and resume.lower() not in ("true", "false"):
        t.put(resume=resume)


def finish(t: Translation) -> None:
    """Sort what is left over: needless, known to have no equal, at its default, or unknown."""
    for name in list(t.given):
        value = t.given.pop(name)
        if (
            name in NEEDLESS
            or name.endswith("_token")
            or value in (None, False, "", [], {})
            or (name in stock() and value == stock()[name])
        ):
            continue
        if name in stock() and isinstance(value, str) and value == str(stock()[name]):
            continue
        t.no_equal[name] = NO_EQUAL.get(name, "there is no such option here")
