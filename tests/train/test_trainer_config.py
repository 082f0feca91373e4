"""The options of the trainer are those of the installed transformers, in type and default, but for what is ours."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import types
import typing
from typing import Any

from transformers import TrainingArguments

from prefopt.train.trainer_config import EXPOSED, OWN, TrainerConfig

# Defaults of ours where transformers has others.
OURS = {"learning_rate", "lr_scheduler_type", "warmup_steps", "logging_steps", "save_strategy", "disable_tqdm",
        "num_train_epochs"}  # fmt: skip
SCALARS = {bool, int, float, str}


def test_types_and_defaults_are_those_of_transformers() -> None:
    theirs = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    ours = {field.name: field.default for field in dataclasses.fields(TrainerConfig)}
    assert not set(OWN) & set(theirs)
    for name in EXPOSED:
        default = theirs[name].default
        default = None if default is dataclasses.MISSING else getattr(default, "value", default)
        assert (ours[name] == default) is (name not in OURS), name


def test_kinds_are_those_of_transformers() -> None:
    theirs, ours = typing.get_type_hints(TrainingArguments), typing.get_type_hints(TrainerConfig)
    for name in set(EXPOSED) - {"fsdp"}:  # typed anew: theirs still allows for an old spelling
        if ours[name] is Any:
            assert _kinds(theirs[name]) & {dict, list}, name
        else:
            assert _kinds(ours[name]) & SCALARS == _kinds(theirs[name]) & SCALARS, name


def _kinds(hint: Any) -> set[Any]:
    """The types that an annotation allows."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return {typing.get_origin(one) or one for one in options}


def test_printing_a_configuration_loads_no_transformers() -> None:
    code = ("import sys; from prefopt.cli import main; main(['train', 'loss=simpo', '--cfg', 'job'])\n"
            "print('\\n'.join(sys.modules), file=sys.stderr)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    assert "learning_rate: 0.001" in done.stdout
    assert "torch" in loaded
    assert not loaded & {"transformers", "accelerate", "datasets", "pandas", "peft", "matplotlib"}
