"""Converts ms-swift's arguments (`swift rlhf`, `swift sft`), as version 4 of August 2026 reads them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from prefopt.data.formats import is_data
from prefopt.errors import UserError, nearest
from prefopt.migrate.trainer_options import convert_trainer_options, record_unconverted
from prefopt.migrate.translation import Translation
from prefopt.migrate.trl import convert_loss, count_prompts

MARKS = {"rlhf_type", "tuner_type", "train_type", "split_dataset_ratio", "template_backend"}
CLASSES = {"dpo": "DPOConfig", "kto": "KTOConfig", "orpo": "ORPOConfig", "cpo": "CPOConfig", "simpo": "CPOConfig",
           "rm": "RewardConfig", "grpo": "GRPOConfig"}  # fmt: skip
BATCH = 16  # records of a step that gradient_accumulation_steps aims at where it is not given
# Where ms-swift's defaults are not transformers'.
DEFAULTS = {"lr_scheduler_type": "cosine", "weight_decay": 0.1, "adam_beta2": 0.95, "logging_steps": 5,
            "logging_first_step": True, "gradient_checkpointing": True}  # fmt: skip
QUANTIZED = "quantized weights; peft=qlora has 4 bits, nothing else is offered"
NAMES = {"query": "query", "prompt": "prompt", "instruction": "instruction", "input": "input", "response": "completion",
         "rejected_response": "rejected_response", "messages": "messages", "label": "label", "system": "system",
         "tools": "tools", "images": "images", "solution": "solution"}  # fmt: skip


def translate(given: dict[str, Any], processes: int, *, rlhf: bool = True) -> Translation:
    """Convert the arguments of `swift rlhf`, or of `swift sft`.

    Raises:
        UserError: a kind of training or a loss that prefopt does not offer.
    """
    t = Translation("ms-swift", dict(given))
    if rlhf or given.get("rlhf_type") is not None:
        samples = _loss(t)
    else:
        t.set_loss("sft_token_mean", "trl_sft")
        samples = 1
    _model(t)
    _data(t)
    _trainer(t, processes)
    count_prompts(t, samples)
    record_unconverted(t)
    return t


def _loss(t: Translation) -> int:
    """Convert `rlhf_type` and what belongs to it; returns the samples of a prompt, which its batches count."""
    kind = str(t.take("rlhf_type", "dpo"))
    if kind not in CLASSES:
        raise UserError(
            f"rlhf_type {kind} is not offered here{nearest(kind, CLASSES)}; choose from: {', '.join(CLASSES)}"
        )
    types = t.given.get("loss_type")
    if isinstance(types, list) and len(types) == 1:
        t.given["loss_type"] = types[0]
    if kind == "simpo":
        t.given.setdefault("loss_type", "simpo")
        t.given.setdefault("beta", 2.0)
    if t.given.get("loss_type") == "simpo":
        t.given.setdefault("simpo_gamma", 1.0)
    if kind == "grpo":
        t.given.setdefault("beta", 0.04)
        t.given.setdefault("temperature", 0.9)
        t.given.setdefault("loss_type", "grpo")
    samples = convert_loss(t, CLASSES[kind])
    t.set(model__reference=t.take("ref_model"))
    t.ignore("ref_model_type")
    t.drop(
        "ref_model_revision", "another revision of the reference: download it and give its folder as model.reference"
    )
    t.drop("ref_adapters", "merge them into the reference, or give the adapter's folder as model.reference")
    others = ("cpo_alpha", "simpo_gamma", "desirable_weight", "undesirable_weight", "discopop_tau", "label_smoothing",
              "loss_weights", "rpo_alpha", "lmbda", "sft_alpha", "seq_kd", "gkd_logits_topk",
              "center_rewards_coefficient")  # fmt: skip
    t.ignore(*others)  # of another rlhf_type
    if kind != "grpo":
        t.ignore("temperature", "max_new_tokens", "max_completion_length", "num_generations")
    return samples


def _model(t: Translation) -> None:
    t.groups["model"] = "local"
    t.set(model__path=t.take("model") or "???", model__revision=t.take("model_revision"))
    dtype = t.take("torch_dtype")
    if dtype == "bfloat16" and t.given.get("bf16") is None:
        t.given["bf16"] = True  # as there, it also chooses the precision of computing
    if dtype is not None:
        t.set(model__dtype=str(dtype))
    kind = str(t.take("tuner_type", t.take("train_type", t.take("sft_type", "lora"))))
    bits, method = t.take("quant_bits"), t.take("quant_method")
    if kind == "lora":
        t.groups["peft"] = "qlora" if str(bits) == "4" else "dora" if t.take("use_dora", False) else "lora"
        targets = t.take("target_modules") or ["all-linear"]
        targets = [targets] if isinstance(targets, str) else list(targets)
        t.set(peft__r=int(t.take("lora_rank", 8)), peft__alpha=int(t.take("lora_alpha", 32)),
              peft__target_modules=None if targets in (["all-linear"], ["ALL"]) else targets)  # fmt: skip
        if rate := float(t.take("lora_dropout", 0.05)):
            t.no_equal["lora_dropout"] = f"{rate:g}: none here, so that policy and reference stay comparable"
    elif kind != "full":
        raise UserError(f"tuner_type {kind} is not offered here; choose from: lora, full")
    else:
        t.ignore("lora_rank", "lora_alpha", "lora_dropout", "target_modules", "use_dora")  # of tuner_type lora
    if bits is not None and str(bits) != "4":
        t.no_equal["quant_bits"] = QUANTIZED
    if method not in (None, "bnb"):
        t.no_equal["quant_method"] = QUANTIZED
    t.drop("adapters", "give the adapter's folder as model.path")


def _data(t: Translation) -> None:
    t.groups["data"] = "auto"
    fields = _fields(t)
    found = [_source(t, name) | ({"fields": fields} if fields else {}) for name in _list(t.take("dataset"))]
    limits = [source.pop("max_records", None) for source in found]
    t.set_sources(found)
    if any(limits):
        if len(found) == 1:
            t.set(data__max_records=limits[0])
            t.differs.append(f"#{limits[0]}: ms-swift samples so many rows, data.max_records takes the first")
        else:
            t.no_equal["dataset: #count"] = "rows of one of several sets: cut the file, or weight it in data.mixture"
    held_out = [_source(t, name) for name in _list(t.take("val_dataset"))]
    for source in held_out[:1]:
        t.set(data__eval_path=source["path"])
        if source.keys() - {"path"}:
            t.no_equal["val_dataset"] = "its subset or count: all of the set is held out"
    if len(held_out) > 1:
        t.no_equal["val_dataset"] = f"one set is held out, {held_out[0]['path']}: join {len(held_out)} in one file"
    share = float(t.take("split_dataset_ratio", 0.0))
    if not held_out:
        t.set(data__eval_fraction=share) if share else t.set(data__eval_records=0)
    t.set(data__num_proc=t.take("dataset_num_proc"), data__streaming=t.take("streaming", False) or None)
    most, strategy = t.take("max_length"), t.take("truncation_strategy", "delete")
    if most is None:
        t.differs.append("max_length: ms-swift takes the longest that the model allows; here data.max_length=1024")
    else:
        t.set(data__max_length=int(most))
    if strategy == "left":
        t.set(data__truncation="keep_end")
        t.differs.append("truncation_strategy left: here only the prompt is cut, a completion never")
    elif strategy != "delete":
        t.no_equal["truncation_strategy"] = (
            f"{strategy}: completions are never cut; longer records are rejected and counted"
        )
    if (scale := t.take("loss_scale")) not in (None, "last_round"):
        if scale in ("default", "all") and t.groups["loss"].startswith("sft"):
            t.set(data__train_on="all_turns")
        else:
            t.no_equal["loss_scale"] = f"{scale}: every trained token counts the same; see data.train_on"
    if name := t.take("template"):
        t.differs.append(f"template {name}: the tokenizer's own chat template is used (data.template=auto)")
    if t.take("use_chat_template", True) is False:
        t.set(data__template="plain")
    t.explain_thinking()
    t.ignore("packing", "padding_free")  # rows are always packed, without padding


def _fields(t: Translation) -> dict[str, str]:
    """`columns`, which maps the file's columns to ms-swift's, as `data.fields`, which maps ours to the file's."""
    columns = _object("columns", t.take("columns") or {})
    for name in [theirs for theirs in columns.values() if theirs not in NAMES]:
        t.no_equal[f"columns: {name}"] = "not a column that is read here; see docs/data.md"
    pairs = {"response": "chosen", "rejected_response": "rejected"} if "messages" not in columns.values() else {}
    names = NAMES | (pairs if "rejected_response" in columns.values() else {})
    return {names[theirs]: column for column, theirs in columns.items() if theirs in names}


def _object(name: str, value: Any) -> dict[str, Any]:
    """An option that is a JSON object, as text or parsed."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise UserError(f"{name}: {value} is not a JSON object") from error
    if not isinstance(found, dict):
        raise UserError(f"{name}: {value} is not a JSON object")
    return found


def _source(t: Translation, text: str) -> dict[str, Any]:
    """`HF::id:subset#count`, `MS::id`, or a path."""
    hub, _, name = text.rpartition("::")
    name, _, count = name.partition("#")
    found: dict[str, Any] = {"path": name}
    if not is_data(Path(name)) and not Path(name).exists():
        found["path"], _, subset = name.partition(":")
        found |= {"subset": subset} if subset not in ("", "default", "all") else {}
        if hub != "HF" and not t.given.get("use_hf"):
            t.differs.append(f"dataset {name}: ms-swift reads it from ModelScope; here it is looked for on the Hugging "
                             "Face hub")  # fmt: skip
    return found | ({"max_records": int(count)} if count else {})


def _list(given: Any) -> list[str]:
    return [given] if isinstance(given, str) else [str(name) for name in given or []]


def _trainer(t: Translation, processes: int) -> None:
    """Convert the trainer's options, and the defaults that depend on others."""
    defaults = {**DEFAULTS, "learning_rate": 1e-4 if "peft" in t.groups else 1e-5}
    t.given.setdefault("seed", 42)
    size = int(t.given.get("per_device_train_batch_size") or 1)
    t.given["per_device_train_batch_size"] = size
    if t.given.get("gradient_accumulation_steps") is None:
        on_samples = t.settings.get("source") == "rollouts"
        t.given["gradient_accumulation_steps"] = 1 if on_samples else math.ceil(BATCH / size / processes)
    t.rename(max_epochs="num_train_epochs", early_stop_interval="early_stopping")
    t.set(trainer__early_stopping_patience=t.take("early_stopping"))
    for name in ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs"):
        if (value := t.given.get(name)) is not None:
            t.given[name] = _object(name, value)
    held_out = "data.eval_records" not in t.settings
    t.given.setdefault("save_strategy", "steps")
    if not held_out:
        t.ignore("eval_strategy", "eval_steps", "eval_on_start")  # nothing is held out
    elif t.given.get("eval_strategy") is None:
        t.given["eval_strategy"] = t.given["save_strategy"]
    if held_out and t.given["eval_strategy"] == "steps":
        t.given.setdefault("eval_steps", t.given.get("save_steps") or 500)
    t.given.setdefault("report_to", "tensorboard")
    convert_trainer_options(t, defaults, processes)
