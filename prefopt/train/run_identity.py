"""What a run is known by: a resumed run must share it with the run that it continues."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from prefopt.data.tokenize import digest_of_tokenizer
from prefopt.engine.reference.fingerprint import fingerprint
from prefopt.errors import UserError
from prefopt.plugin import Loss
from prefopt.train.settings import Settings
from prefopt.train.sources.source import RecordSource

logger = logging.getLogger(__name__)

IDENTITY = "run.json"
# Of transformers' arguments, what changes the steps after a resume; most are in the states that it loads, so another
# value would be ignored without a word.
OPTIONS = (
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args",
    "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "bf16", "fp16",
    "tf32",
)  # fmt: skip
# Schedules whose learning rate does not depend on the number of all steps.
ENDLESS = ("constant", "reduce_lr_on_plateau")
ENDLESS_AFTER_WARMUP = ("constant_with_warmup", "inverse_sqrt")
# Contents that are known by their digests: the words for others, how the options begin that may have changed them, and
# the option that names their files.
CONTENTS = {
    "tokens": ("other records", "data.", "data.path"),
    "held_out_tokens": ("other held-out records", "data.", "data.eval_path"),
    "tokenizer": ("another tokenizer", "model.path", "model.path"),
    "weights": ("other starting weights", "model.", "model.path"),
    "reference": ("another reference", "model.reference", "model.reference"),
    "value_model": ("another value model", "model.value_model", "model.value_model"),
}
# What a resume may change, as where a reward's error was mended; the user is told.
NOTED = {"reward_code": "the code of the reward"}
ORIGIN = "origin"  # the options that gave the contents; others that give the same are no other run
# Of an adapter, what `peft` options set, and what says where it is from.
ADAPTER = {"r": "peft.r", "lora_alpha": "peft.alpha", "target_modules": "peft.target_modules"}
ADAPTERS_OWN = {"use_dora", "base_model_name_or_path", "revision", "inference_mode", "peft_type", "task_type",
                "auto_mapping", "peft_version"}  # fmt: skip


def identity_of(
    loss: Loss, sources: Mapping[str, RecordSource], args: TrainingArguments, model: Any, reference: str | None,
    settings: Settings,
) -> dict[str, Any]:  # fmt: skip
    """The identity of a run, as JSON values.

    Args:
        loss: the plugin.
        sources: of training records, and of held-out ones.
        args: the options.
        model: as it was given, not sharded and not trained yet.
        reference: the reference's fingerprint.
        settings: the tokenizer, and what the run already knows of the model and the origin of its records.
    """
    train, held_out, tokenizer = sources["train"], sources.get("eval"), settings.tokenizer
    facts = {
        "loss": repr(loss),
        "tokens": train.fingerprint(),
        "held_out_tokens": None if held_out is None else held_out.fingerprint(),
        "batch.records": train.records,
        "seed": args.seed,
        "tokenizer": None if tokenizer is None else digest_of_tokenizer(tokenizer),
        "weights": settings.weights or fingerprint(model),
        "reference": reference,
        "value_model": None if settings.value_model is None else fingerprint(settings.value_model),
        ORIGIN: dict(settings.origin),
        "source": "rollouts" if train.options else "offline",
        **train.options,
        **_options(args),
        "trainer.router_aux_loss": settings.trainer.get("router_aux_loss") or None,
        "model.dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        **_adapter(model),
    }
    plain: dict[str, Any] = json.loads(json.dumps(facts, default=str))
    return plain


def _options(args: TrainingArguments) -> dict[str, Any]:
    """The options that the steps after a resume depend on, by their names.

    The length of a run is among them only where the schedule of the learning rate depends on it: a run at a constant
    one may be resumed for longer than it was begun for.
    """
    if args.lr_scheduler_type in ENDLESS_AFTER_WARMUP:
        endless = args.warmup_steps == 0 or args.warmup_steps >= 1  # below 1 it is a share of all steps
    else:
        endless = args.lr_scheduler_type in ENDLESS
    facts = {f"trainer.{name}": getattr(args, name) for name in OPTIONS}
    if not endless:
        facts["trainer.max_steps"] = args.max_steps
        facts["trainer.num_train_epochs"] = args.num_train_epochs if args.max_steps <= 0 else None  # None: not read
    facts["trainer.data_seed"] = None if args.data_seed == args.seed else args.data_seed  # None: it is `seed`
    return facts


def _adapter(model: Any) -> dict[str, Any]:
    """The settings of the adapter that is trained: those of the group `peft`, and others that are not its defaults."""
    found = next(iter(getattr(model, "peft_config", {}).values()), None)
    if found is None:
        return {"peft.method": "none"}
    values = {name: sorted(v) if isinstance(v, set) else v for name, v in found.to_dict().items()}
    plain = type(found)().to_dict()
    rest = {k: v for k, v in values.items() if v != plain.get(k) and k not in ADAPTER and k not in ADAPTERS_OWN}
    return {
        "peft.method": "dora" if values.get("use_dora") else str(values["peft_type"]).rpartition(".")[2].lower(),
        **{option: values.get(name) for name, option in ADAPTER.items()},
        "adapter_config.json": rest,
    }


def write_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Put it into a checkpoint."""
    (folder / IDENTITY).write_text(json.dumps(identity, indent=1))


def check_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Raise UserError where a checkpoint was made by another run than this one."""
    if not (folder / IDENTITY).exists():
        return
    kept = json.loads((folder / IDENTITY).read_text())
    if said := differences(kept, identity):
        raise UserError(f"cannot resume from {folder}: it was made with {' and '.join(said)}; give what it was made "
                        "with, or start from its weights in another folder")  # fmt: skip
    for name, words in NOTED.items():
        if kept.get(name) is not None and kept[name] != identity.get(name):
            logger.warning("%s has changed since %s: the steps after it are not those of a run that was not stopped",
                           words, folder)  # fmt: skip


def differences(kept: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A phrase for each difference of two identities, with the option that made it.

    A name that only one of the two has is of another version, or of a schedule that is named itself.
    """
    origin, before = now.get(ORIGIN, {}), kept.get(ORIGIN, {})
    found = []
    ignored = {ORIGIN, *NOTED}
    for name in (name for name, value in kept.items() if name in now and now[name] != value and name not in ignored):
        if name not in CONTENTS:
            found.append(f"another {name} ({kept[name]!s:.200}, now {now[name]!s:.200})")
            continue
        words, options, files = CONTENTS[name]
        why = [
            f"{option}: {before[option]!s:.200}, now {origin[option]!s:.200}"
            for option in before
            if option.startswith(options) and option in origin and origin[option] != before[option]
        ]
        if not why and origin.get(files):
            why = [f"no option of theirs has changed: look at the files of {files}={origin[files]!s:.200}"]
        found.append(f"{words} ({', '.join(why)})" if why else words)
    return found
