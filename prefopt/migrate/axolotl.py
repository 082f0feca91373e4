"""Converts Axolotl's YAML as its main branch reads it in July 2026.

`rl: dpo`, `ipo`, `kto`, `orpo`, `simpo` and `grpo`, reward models and SFT.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefopt.errors import UserError, nearest
from prefopt.migrate.trainer_options import convert_trainer_options, record_unconverted
from prefopt.migrate.translation import Translation
from prefopt.migrate.trl import convert_loss, count_prompts

MARKS = {"base_model", "rl_beta", "micro_batch_size", "sequence_len", "val_set_size"}
CLASSES = {"dpo": "DPOConfig", "ipo": "DPOConfig", "kto": "KTOConfig", "orpo": "ORPOConfig", "simpo": "CPOConfig",
           "grpo": "GRPOConfig"}  # fmt: skip
SEQUENCE_LEN = 512
# Where Axolotl's defaults are not transformers'.
DEFAULTS = {"lr_scheduler_type": "cosine", "optim": "adamw_torch_fused", "num_train_epochs": 1.0, "save_total_limit": 4,
            "save_strategy": "epoch", "logging_steps": 10}  # fmt: skip
# Optimizers that Axolotl brings itself; all others are transformers'.
OPTIMIZERS = ("optimi_adamw", "ao_adamw_fp8", "adopt_adamw", "came_pytorch", "muon", "dion", "sinkgd",
              "q_galore_adamw8bit", "flash_adamw", "flash_adam", "flash_sgd", "flash_sgdw", "flash_lion")  # fmt: skip
# The templates that its data types write themselves -> ours.
TEMPLATES = {"chatml": "chatml", "zephyr": "zephyr", "alpaca": "alpaca"}
OWN_TEMPLATE = ("tokenizer_default", "chat_template", "passthrough", "user_defined")
COLUMNS = {"field_messages": "messages", "field_chosen": "chosen", "field_rejected": "rejected",
           "field_prompt": "prompt", "field_system": "system", "field_completion": "completion", "field_label": "label",
           "field_instruction": "instruction", "field_input": "input", "field_output": "output",
           "field_tools": "tools"}  # fmt: skip
FORMATS = {"prompt_format": "{prompt}", "chosen_format": "{chosen}", "rejected_format": "{rejected}",
           "completion_format": "{completion}"}  # fmt: skip
# What options of one source would have done.
SOURCE_OPTIONS = {
    "shards": "a part of the data; cut the file",
    "revision": "another revision of a hub set; download it and give its folder",
    "chat_template": "a template of its own; data.template is for all sources",
    "trust_remote_code": "nothing that is loaded runs code",
    "train_on_eos": "whether ends are trained; a completion always ends with its end token, unless data.ended=false",
    "train_on_eot": "whether ends are trained; a completion always ends with its end token, unless data.ended=false",
    "roles_to_train": "which turns are trained; the assistant's are (data.train_on)",
    "message_field_training": "marks turns to train; a turn with `train: false` is given",
    "drop_system_message": "leaves system turns out; data.system=drop does it for all sources",
}
# Columns that are recognised by other names, too.
NAMED_BOTH_WAYS = {"messages": ("messages", "conversation", "conversations")}


def translate(given: dict[str, Any], processes: int) -> Translation:
    """Convert the settings of a training YAML.

    Raises:
        UserError: a kind of training or a loss that prefopt does not offer.
    """
    t = Translation("Axolotl", dict(given))
    samples = _loss(t)
    _model(t)
    _data(t)
    _trainer(t, processes)
    count_prompts(t, samples)
    record_unconverted(t)
    return t


def _loss(t: Translation) -> int:
    """Convert what chooses the loss; returns the samples of a prompt, which its batches count."""
    kind = t.take("rl")
    for name in ("process_reward_model", "pretraining_dataset"):
        if t.take(name):
            raise UserError(f"{name} is not offered here")
    nested = t.take("trl") or {}
    if not isinstance(nested, dict):
        raise UserError(f"trl: {nested} must be a mapping of options")
    beta = t.take("rl_beta", t.take("dpo_beta", t.take("orpo_alpha")))
    if t.take("reward_model", False):
        return convert_loss(t, "RewardConfig")
    if kind is None:
        t.set_loss("sft_token_mean", "trl_sft")
        return 1
    if kind not in CLASSES:
        raise UserError(
            f"rl: {kind} is not offered here{nearest(str(kind), CLASSES)}; choose from: {', '.join(CLASSES)}"
        )
    t.given |= {key: value for key, value in nested.items() if value is not None}
    if beta is not None:
        t.given.setdefault("beta", beta)
    if kind == "ipo":
        t.given["loss_type"] = ["ipo"]
    elif kind == "simpo":
        t.given["loss_type"] = "simpo"
    elif kind == "dpo":
        t.rename(dpo_loss_type="loss_type", dpo_loss_weights="loss_weights", dpo_label_smoothing="label_smoothing",
                 dpo_use_weighting="use_weighting")  # fmt: skip
    elif kind == "kto":
        t.rename(kto_desirable_weight="desirable_weight", kto_undesirable_weight="undesirable_weight")
    samples = convert_loss(t, CLASSES[kind])
    t.ignore(
        *(name for name in t.given if name.startswith(("dpo_", "kto_", "cpo_", "simpo_", "rpo_", "center_")))
    )  # of others
    return samples


def _model(t: Translation) -> None:
    t.groups["model"] = "local"
    t.set(model__path=t.take("base_model") or "???", model__revision=t.take("revision_of_model"))
    t.drop("trust_remote_code", "the model author's code runs only with model.trust_remote_code=true")
    t.drop("lora_model_dir", "give the adapter's folder as model.path")
    adapter = t.take("adapter")
    four, eight = t.take("load_in_4bit", False), t.take("load_in_8bit", False)
    if adapter in ("lora", "qlora"):
        t.groups["peft"] = "qlora" if adapter == "qlora" or four else "dora" if t.take("peft_use_dora") else "lora"
        names = t.take("lora_target_modules")
        every = t.take("lora_target_linear", False) or names == "all-linear"
        t.set(peft__r=int(t.take("lora_r", 8)), peft__alpha=int(t.take("lora_alpha", 8)),
              peft__target_modules=None if every else [names] if isinstance(names, str) else names)  # fmt: skip
        if not every and not names:
            t.differs.append("lora_target_modules: not given, so PEFT chooses the layers there; here all linear layers")
        if rate := float(t.take("lora_dropout", 0.0)):
            t.no_equal["lora_dropout"] = f"{rate:g}: there is none, so that policy and reference stay comparable"
    elif adapter:
        raise UserError(f"adapter: {adapter} is not offered here; choose from: lora, qlora")
    else:
        t.ignore(*(name for name in t.given if name.startswith(("lora_", "peft_use_"))))  # without an adapter
    if eight:
        t.no_equal["load_in_8bit"] = "quantized to 8 bits; here 4 bits only (peft=qlora)"
    if t.take("bfloat16", False):
        t.set(model__dtype="bfloat16")
    if t.take("float16", False):
        t.set(model__dtype="float16")
    t.ignore("float32")


def _data(t: Translation) -> None:
    t.groups["data"] = "auto"
    named = t.take("chat_template")
    found = [_source(t, source) for source in _sources(t, "datasets")]
    t.set_sources(found)
    held_out = [_source(t, source) for source in _sources(t, "test_datasets")]
    if held_out and len(found) == 1 and held_out[0]["path"] == found[0]["path"] and "split" in held_out[0]:
        t.set(data__eval_split=held_out[0]["split"])
    elif held_out:
        t.set(data__eval_path=held_out[0]["path"])
    if len(held_out) > 1:
        t.no_equal["test_datasets"] = f"one set is held out, {held_out[0]['path']}: join {len(held_out)} in one file"
    size = float(t.take("val_set_size", 0.0))
    t.hold_out(size)
    if not size and not held_out:
        t.set(data__eval_records=0)  # as there: nothing is held out
    t.rename(dataset_processes="dataset_num_proc")
    t.set(data__num_proc=t.take("dataset_num_proc"), data__max_length=int(t.take("sequence_len", SEQUENCE_LEN)))
    if (strategy := t.take("excess_length_strategy", "drop")) != "drop":
        t.no_equal["excess_length_strategy"] = f"{strategy}: rows over data.max_length are rejected and counted"
    t.drop("train_on_inputs", "trains the prompt, too; only completions contribute to the loss")
    t.drop("chat_template_jinja", "save the template in a .jinja file and give data.template=FILE")
    if named in TEMPLATES:
        _template(t, "all sources", TEMPLATES[named])
    elif named and not str(named).startswith("tokenizer_default"):
        t.differs.append(f"chat_template {named}: the tokenizer's own chat template is used (data.template=auto)")


def _sources(t: Translation, name: str) -> list[dict[str, Any]]:
    found = t.take(name) or []
    if not isinstance(found, list) or not all(isinstance(source, dict) for source in found):
        raise UserError(f"{name} must be a list of mappings such as {{path: FILE, type: chat_template.default}}")
    return [dict(source) for source in found]


def _source(t: Translation, given: dict[str, Any]) -> dict[str, Any]:
    """Convert one entry of `datasets`; the options without an equivalent are recorded under its path."""
    path, files = given.pop("path", None) or "???", given.pop("data_files", None)
    files = [files] if isinstance(files, str) else files or []
    if files and path in ("json", "parquet", "csv", "arrow"):
        path, files = files[0], files[1:]
    if files:
        t.no_equal[f"data_files of {path}"] = f"{', '.join(files)}: give each as a source of data.mixture"
    kind = given.pop("type", None)
    own = given.pop("ds_type", None)  # follows from the file's name
    named = dict(kind) if isinstance(kind, dict) else given
    found: dict[str, Any] = {"path": path, "subset": given.pop("name", None), "split": given.pop("split", None)}
    if own and Path(path).suffix and (Path(path).exists() or Path(path).suffix[1:].startswith(("json", "csv", "parq"))):
        found["split"] = None  # Axolotl asks for `train` of a file
    fields = {ours: named.pop(theirs) for theirs, ours in COLUMNS.items() if named.get(theirs)}
    fields = {ours: column for ours, column in fields.items() if column not in NAMED_BOTH_WAYS.get(ours, (ours,))}
    for name, plain in FORMATS.items():
        if (value := named.pop(name, None)) not in (None, plain):
            t.no_equal[f"{name} of {path}"] = f"{value!r}: data.template formats prompts; write other text in the file"
    _type(t, path, kind)
    found["fields"] = fields
    roles = given.pop("roles", None) or {}
    if any(target not in names for target, names in roles.items()):
        t.no_equal[f"roles of {path}"] = "turns are recognised by the usual names of roles: rename them in the file"
    if set((given.pop("message_property_mappings", None) or {}).values()) - {"role", "content", "from", "value"}:
        t.no_equal[f"message_property_mappings of {path}"] = "keys of turns are role and content, or from and value"
    rest = given | named
    for name in sorted(name for name, value in rest.items() if value not in (None, False, "", "tokenizer_default")):
        t.no_equal[f"{name} of {path}"] = SOURCE_OPTIONS.get(name, "not offered for a source; see docs/data.md")
    return {key: value for key, value in found.items() if value}


def _type(t: Translation, path: str, kind: Any) -> None:
    """Convert the type of a source, which in Axolotl names a template and the columns; columns are recognised here."""
    if isinstance(kind, dict):
        t.differs.append(f"type of {path}: Axolotl trains on its texts as they are, and so does data.template=plain")
        _template(t, path, "plain")
    elif kind is not None:
        family, _, form = str(kind).partition(".")
        if family in TEMPLATES:
            _template(t, path, TEMPLATES[family])
        elif family not in OWN_TEMPLATE:
            t.differs.append(f"type {kind} of {path}: columns are recognised, and the tokenizer's own chat template is "
                             "used (data.template=auto); look with `prefopt data show`")  # fmt: skip
        if form == "nectar":
            t.no_equal[f"type of {path}"] = "nectar: pairs the two lowest ranks; data.pairs_from has other choices"


def _template(t: Translation, path: str, name: str) -> None:
    """Choose the template, which is one for all sources."""
    if t.settings.setdefault("data.template", name) != name:
        t.no_equal[f"type of {path}"] = f"template {name}: all sources have one, {t.settings['data.template']}"


def _trainer(t: Translation, processes: int) -> None:
    """Rename the trainer's options as transformers has them, and convert those."""
    total, micro = t.take("batch_size"), int(t.take("micro_batch_size", 1))
    if total and not t.given.get("gradient_accumulation_steps"):
        t.given["gradient_accumulation_steps"] = max(1, int(total) // micro)
    t.given["per_device_train_batch_size"] = micro
    t.rename(num_epochs="num_train_epochs", lr_scheduler="lr_scheduler_type", optimizer="optim")
    if t.given.get("lr_scheduler_type") in ("one_cycle", "rex"):
        t.no_equal["lr_scheduler"] = f"{t.given['lr_scheduler_type']}: cosine instead"
        t.given["lr_scheduler_type"] = "cosine"
    if t.given.get("optim") in OPTIMIZERS:
        t.no_equal["optimizer"] = f"{t.given['optim']}: AdamW instead; see trainer.optim for those that are offered"
        t.given["optim"] = "adamw_torch_fused"
    if isinstance(arguments := t.given.get("optim_args"), dict):
        t.given["optim_args"] = ",".join(f"{name}={value}" for name, value in arguments.items())
    epochs = float(t.given.get("num_train_epochs") or 1)
    for what in ("save", "eval"):
        if (often := t.take(f"{what}s_per_epoch")) is not None:
            t.given[f"{what}_steps"] = round(1 / (float(often) * epochs), 6)
        if t.given.get(f"{what}_steps"):
            t.given[f"{what}_strategy"] = "steps"
    if t.settings.get("data.eval_records") == 0:
        t.ignore("eval_steps", "eval_strategy", "evaluation_strategy")  # nothing is held out
    if t.given.get("warmup_steps") is None and t.given.get("warmup_ratio") is None:
        t.given["warmup_steps"] = 0.03
        t.differs.append("warm-up: Axolotl warms up for 3 % of the steps, at most 100; here trainer.warmup_steps=0.03")
    half = t.take("bf16", "auto")
    t.given["bf16"] = not t.given.get("fp16") if half == "auto" else bool(half)
    if t.given["bf16"]:
        t.differs.append("bf16: Axolotl also holds the weights in bfloat16 (model.dtype=bfloat16 repeats that); here "
                         "they stay in float32")  # fmt: skip
    if t.given.get("tf32") == "auto":
        del t.given["tf32"]
    if t.given.get("gradient_checkpointing") in ("offload", "offload_disk"):
        t.no_equal["gradient_checkpointing"] = f"{t.given['gradient_checkpointing']}: recomputed, and not moved"
        t.given["gradient_checkpointing"] = True
    if t.given.get("gradient_checkpointing") is not True:
        t.ignore("gradient_checkpointing_kwargs")
    t.set(trainer__early_stopping_patience=t.take("early_stopping_patience"))
    _tracking(t)
    convert_trainer_options(t, DEFAULTS, processes)


def _tracking(t: Translation) -> None:
    trackers = [name for name in ("wandb", "mlflow", "tensorboard", "trackio") if t.take(f"use_{name}", False)]
    if t.given.get("wandb_project") and "wandb" not in trackers:
        trackers.insert(0, "wandb")  # a project turns wandb on
    if t.take("use_comet", False):
        trackers.append("comet_ml")
    if trackers:
        t.given["report_to"] = trackers
        t.set(tracking__project=t.take(f"{trackers[0]}_project", t.take(f"{trackers[0]}_project_name")))
        t.set(tracking__mode=t.take("wandb_mode") if trackers[0] == "wandb" else None)
        if name := t.take(f"{trackers[0]}_name", t.take(f"{trackers[0]}_run_name")):
            t.given["run_name"] = name
