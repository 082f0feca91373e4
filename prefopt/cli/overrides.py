"""Checks the overrides of a command line for common mistakes before any heavy library is imported."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from prefopt.config.check_values import OF_COMPARE, check_values
from prefopt.config.options import (
    CLASSES,
    OF_PATHS,
    ONLINE,
    OVERRIDE,
    choices,
    group_options,
    is_own,
    loss_options,
    root_keys,
    values,
)
from prefopt.data.formats import is_data
from prefopt.errors import UserError, nearest, no_such_file

VERBS = ("train", "plan", "compare", "eval", "sample", "chat", "data", "reference")
# What a verb reads of the options of a run; the others are refused instead of ignored. The rest of `VERBS` takes all:
# what a run or a comparison does not read, given its other options, `prefopt.config.read_options` refuses.
READS = {
    "eval": (
        "data", "data.*", "loss", "batch.max_tokens", "evaluation.kl_prompts", "evaluation.max_new_tokens", "seed",
    ),
    "sample": ("data", "data.*"),
    "chat": ("data", "data.*"),
    "data": ("data", "data.*"),
    "plan --model-shape": (
        "loss", "loss.*", "model", "model.path", "model.dtype", "model.quantization", "peft", "peft.method", "batch",
        "batch.records", "batch.max_tokens", "trainer", "trainer.max_steps", "trainer.num_train_epochs",
        "trainer.activation_checkpointing", "trainer.bf16", "trainer.fp16", "trainer.optim", "source", "experiment",
    ),
}  # fmt: skip
OF_A_RUN = ("train", "plan")  # all their words KEY=VALUE are options of a run
# Options of other trainers, by the last part of their names -> ours. Those that have the same name here, in some group,
# are found without this list.
MEANT = {
    "lr": "trainer.learning_rate",
    "learning_rate": "trainer.learning_rate",
    "beta": "loss.beta",
    "epochs": "trainer.num_train_epochs",
    "num_epochs": "trainer.num_train_epochs",
    "warmup_ratio": "trainer.warmup_steps",
    "num_warmup_steps": "trainer.warmup_steps",
    "scheduler": "trainer.lr_scheduler_type",
    "gradient_checkpointing": "trainer.activation_checkpointing",
    "gradient_clipping": "trainer.max_grad_norm",
    "optimizer": "trainer.optim",
    "batch_size": "batch.records",
    "train_batch_size": "batch.records",
    "per_device_train_batch_size": "batch.records",
    "max_seq_length": "data.max_length",
    "max_seq_len": "data.max_length",
    "cutoff_len": "data.max_length",
    "model_name_or_path": "model.path",
    "model_name": "model.path",
    "model_path": "model.path",
    "torch_dtype": "model.dtype",
    "dataset_name": "data.path",
    "dataset": "data.path",
    "data_path": "data.path",
    "loss_type": "loss",
    "report_to": "tracking",
    "lora_r": "peft.r",
    "lora_rank": "peft.r",
    "lora_alpha": "peft.alpha",
    "lora_target_modules": "peft.target_modules",
}
# Of Hydra, which parses the words of `prefopt train`.
FLAGS = ("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun",
         "--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun",
         "--info")  # fmt: skip
MORE_CHOICES = ("--config-dir", "-cd", "hydra.searchpath")  # may add presets to every group
CHOICES = re.compile(r"[\w/.-]+(,[\w/.-]+)*")
ALL = "`prefopt train --cfg job` prints all options"


def check_overrides(verb: str, argv: list[str]) -> None:
    """Check the names of options, losses and presets, and values that are wrong whatever the other options are.

    Raises:
        UserError: an unknown loss, preset or option, with the one that was probably meant; a value that its option
            cannot have.
    """
    if verb not in VERBS:
        return
    known = _known(argv)
    reader = f"{verb} --model-shape" if any(word.startswith("--model-shape") for word in argv) else verb
    more = any(word.startswith(MORE_CHOICES) for word in argv)
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if meant := _meant(verb, name, bool(equals), known):
            raise UserError(f"there is no option {name!r}; did you mean {meant}={value if equals else following}?")
        if verb == "train" and name.startswith("--") and not any(flag.startswith(name) for flag in FLAGS):
            raise UserError(f"there is no option {name}; options are KEY=VALUE, such as loss.beta=0.1, and {ALL}")
        if reader in READS and OVERRIDE.fullmatch(word) and not os.path.exists(word):
            _check_read(reader, name, known)
        if verb in OF_A_RUN and not more and OVERRIDE.fullmatch(word):
            _check_option(name, known)
            _check_choice(name, value)
    for loss in _losses(argv):
        if loss not in (names := choices()["loss"]) and not more:
            known_names = [*names, *(name + ONLINE for name in names if "@" in loss)]
            raise UserError(f"unknown loss {loss!r}{nearest(loss, known_names)}; `prefopt losses` prints the menu")
    if not {"-h", "--help"} & {*argv}:
        check_values(argv)
        if verb == "compare":
            check_values(argv, OF_COMPARE)


def check_files(verb: str, argv: Sequence[str]) -> None:
    """Check that the data files of a command line exist (no name on the hub ends like one), and that each has its key.

    Raises:
        UserError: a file that does not exist, with the nearest name beside it; a loss, file or folder without its key.
    """
    if verb not in VERBS or any(word in ("-h", "--help", "--cfg", "-c") for word in argv):
        return
    for previous, word in zip(["", *argv], argv, strict=False):
        key, equals, value = word.partition("=")
        if verb in OF_A_RUN and not equals and not previous.startswith("-"):
            _check_key(word)
        if key not in ("data", "data.path") and (verb != "data" or equals or previous.startswith("-")):
            continue
        given = value if equals else word
        for path in [given] if os.path.lexists(given) else given.split(","):  # of a sweep
            if is_data(Path(path)) and "$" not in path and not os.path.lexists(path):
                raise no_such_file(path)


def _known(argv: Sequence[str]) -> dict[str, list[str]]:
    """The full names of all options by their groups, and of the groups and those in none under an empty name.

    `loss` is left out where the words alone do not tell which loss it is.
    """
    known = {group: [option.name for option in group_options(group)] for group in CLASSES}
    known[""] = [*root_keys(), *choices()]
    if any(word.lstrip("+").startswith("experiment=") for word in argv):
        return known
    chosen = any(word.lstrip("+").startswith(("loss=", "losses=")) for word in argv)
    options = [loss_options(name) for name in (_losses(argv) if chosen else (values(())["loss"],))]
    if options and None not in options:
        known["loss"] = [option.name for one in options for option in one or ()]
    return known


def _meant(verb: str, name: str, has_value: bool, known: Mapping[str, Sequence[str]]) -> str:
    """The option of ours that a word of another trainer means, such as `trainer.learning_rate` for `--lr`, or none."""
    flag = name.startswith("--")
    key = name.removeprefix("--").replace("-", "_") if flag else name
    group, _, last = key.rpartition(".")
    options = [option for names in known.values() for option in names]
    if flag and verb == "train" and key in options:
        return key
    if key in options or not (has_value or flag) or (group and group not in known):
        return ""
    if last in MEANT and group in ("", "trainer"):
        return MEANT[last]
    if verb not in OF_A_RUN or (flag and verb != "train"):  # they have options of their own
        return ""
    same = [option for option in options if option.endswith(f".{last}")]
    return same[0] if len(same) == 1 else ""


def _check_read(verb: str, key: str, known: Mapping[str, Sequence[str]]) -> None:
    """Raise UserError for an option of a run that this verb would ignore."""
    group, dot, _ = key.partition(".")
    is_option = key in known[""] if not dot else group == "loss" or group in known
    reads = READS[verb]
    if is_option and not any(fnmatchcase(key, pattern) for pattern in reads):
        shown = ", ".join(name for name in reads if f"{name}.*" not in reads)
        raise UserError(f"{key}: `prefopt {verb}` does not read it (of a run's options it reads {shown}); leave it out")


def _check_option(key: str, known: Mapping[str, Sequence[str]]) -> None:
    group, dot, rest = key.partition(".")
    if group in ("hydra", "stages") or (group == "loss" and dot and "loss" not in known):
        return
    option = f"{group}.{rest.partition('.')[0]}" if dot else group
    if option not in known.get(group if dot else "", ()):
        options = [one for names in known.values() for one in names]
        raise UserError(f"there is no option {key!r}{nearest(key, options)}; {ALL}")


def _check_key(word: str) -> None:
    """Raise UserError for a loss, a file or a folder that is given without its key."""
    file = os.path.isfile(word)
    key = "loss" if word in choices()["loss"] else "data" if file else "model" if os.path.isdir(word) else ""
    if key:
        raise UserError(f"{word!r} is not a setting: write KEY=VALUE; did you mean {key}={word}?")


def _check_choice(group: str, value: str) -> None:
    """Raise UserError for an unknown preset; a sweep's functions, such as glob(), are left to Hydra."""
    names = choices().get(group)
    if names is not None and not value:
        raise UserError(f"{group}= has no value; choose from: {', '.join(names)}{_own(group)}")
    if group == "loss" or names is None or not CHOICES.fullmatch(value):
        return
    for one in value.split(","):
        if one not in (*names, "null") and not is_own(group, one) and not one.endswith((".yaml", ".yml")):
            here = (
                [name for name in os.listdir() if group == "data" or os.path.isdir(name)] if group in OF_PATHS else []
            )
            raise UserError(f"unknown {group} {one!r}{nearest(one, [*names, *here])}; choose from: "
                            f"{', '.join(names)}{_own(group)}")  # fmt: skip


def _own(group: str) -> str:
    return f"; a file, a folder or a hub id is {group}.path=..." if group in OF_PATHS else ""


def _losses(argv: Sequence[str]) -> Iterator[str]:
    """The losses named by `loss=A`, `loss=A,B` and `losses=[A,B@rollouts]`; not those of a sweep's functions, such as
    glob()."""
    for word in argv:
        if found := re.fullmatch(r"loss=(\w+(?:,\w+)*)|losses=\[([\w@ ]+(?:,[\w@ ]+)*)\]", word):
            yield from (name.strip().removesuffix(ONLINE) for name in (found[1] or found[2]).split(","))
