"""Reads back what a run left in its folder: configuration, figures, texts, model."""

from __future__ import annotations

import dataclasses
import json
import os
import typing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import PartialState
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from prefopt.common.bounds import check_yaml
from prefopt.config.compose import compose
from prefopt.config.grammar import value_of
from prefopt.config.run_config import RunConfig
from prefopt.data.data_config import FORMAT, DataConfig
from prefopt.data.world_names import WORLD_MODELS
from prefopt.errors import UserError, first_line, nearest
from prefopt.losses import registry
from prefopt.models.adapters import BASE, saved_settings
from prefopt.models.load import load_model, load_tokenizer
from prefopt.models.model_config import ModelConfig
from prefopt.runs.resolve import resolve_path
from prefopt.runs.run_path import CONFIG, check_model, check_run, is_run
from prefopt.train.trainer_config import TrainerConfig

FINAL = "final"
# What may be a relative path, seen from where the run was started.
_PATHS = (
    ("model", "path"),
    ("model", "reference"),
    ("model", "value_model"),
    ("data", "path"),
    ("data", "eval_path"),
    ("data", "template"),
)
_OF_ITS_FOLDER = ("output_dir", "resume", "progress", "stages")  # options that are not of the training itself


@dataclass(frozen=True)
class RunFolder:
    """The files of one run; those that are not there are empty."""

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open the folder of a run.

        Raises:
            UserError: it is not the folder of a run.
        """
        check_run(path)
        return cls(Path(path))

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration, as plain values.

        Raises:
            UserError: no run wrote it: it has an unknown key, an interpolation, or a value in the place of a group.
        """
        file = self.path / CONFIG
        try:
            check_yaml(file)
            loaded: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        except (YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError) as error:
            raise UserError(f"{file} is not the configuration of a run: {first_line(error)[:200]}") from error
        if wrong := _foreign(loaded):
            raise UserError(f"{file} is not a run's configuration: {wrong}")
        return dict(loaded)

    @cached_property
    def located(self) -> dict[str, Any]:
        """`config` with absolute paths for the files that are found from where the run was started."""
        config, there = json.loads(json.dumps(self.config)), self._started_in()
        if there is None:
            return dict(config)
        places = [(config.get(group), key) for group, key in _PATHS] + [(config, "reference_folder")]
        mixture = config.get("data", {}).get("mixture")
        places += [(source, "path") for source in mixture] if isinstance(mixture, list) else []
        for section, key in places:
            name = section.get(key) if isinstance(section, dict) else None
            if isinstance(name, str) and name and not _has_a_meaning(key, name):
                absolute = os.path.join(there, name)
                section[key] = absolute if os.path.exists(absolute) else name
        return dict(config)

    def _started_in(self) -> str | None:
        """The folder in which the command of the last resume, or of the start, was given."""
        resumed = self.manifest.get("resumed")
        last = resumed[-1] if isinstance(resumed, list) and resumed else self.manifest
        folder = last.get("folder") if isinstance(last, dict) else None
        return folder if isinstance(folder, str) and os.path.isabs(folder) else None

    @cached_property
    def summary(self) -> dict[str, Any]:
        """`summary.json`; empty where the run has not ended."""
        return self._object("summary.json")

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """`manifest.json`."""
        return self._object("manifest.json")

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`."""
        return self.lines("metrics.jsonl")

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The objects of a JSON-lines file; lines cut short by a kill are left out."""
        found = []
        file = self.path / name
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                found.append(value)
        return found

    def _object(self, name: str) -> dict[str, Any]:
        file = self.path / name
        try:
            value = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file} is not valid JSON ({error}); it may have been cut short: run again") from error
        return value if isinstance(value, dict) else {}

    @property
    def final(self) -> Path:
        """The folder of the tuned model.

        Raises:
            UserError: the run has not ended.
        """
        folder = self.path / FINAL
        if not folder.is_dir():
            raise UserError(f"the run in {self.path} has no {FINAL}/ yet: let it end, or name one of its checkpoints")
        return folder

    @property
    def start(self) -> str:
        """The model that the run is measured against: its reference, else the one that it started from."""
        model = self.located.get("model", {})
        return str(model.get("reference") or model.get("path"))

    @property
    def start_folder(self) -> str:
        """The folder or hub id of `start`: of a world's models that of the run's own world (`data.world.seed=3`)."""
        data = self.located.get("data", {})
        return resolve_path(self.start, DataConfig(path=data.get("path"), world=data.get("world") or {}))

    @property
    def format(self) -> DataConfig:
        """How the prompts of training were written."""
        data = self.located.get("data", {})
        return DataConfig(path=str(self.path), **{name: data[name] for name in FORMAT if name in data})

    def format_overrides(self) -> list[str]:
        """The overrides with which prompts of other data are written in the same way."""
        return [one for one in self._overrides(self.located) if _is_of_format(one)]

    def overrides(self) -> list[str]:
        """The overrides with which `prefopt train` runs the same again: every value that is not a default.

        Raises:
            UserError: the configuration names no loss, or one that is not there.
        """
        return self._overrides(self.config)

    def _overrides(self, config: dict[str, Any]) -> list[str]:
        name = config.get("loss", {}).get("name")
        if not isinstance(name, str):
            raise UserError(f"{self.path / CONFIG} is not a run's configuration: it has no loss.name")
        found = [f"loss={name}", "model=local", "data=auto"]
        classes, plain = _schemas(name)
        for group, value in config.items():
            if group in classes:
                known = _defaults(classes[group])
                found += [
                    f"{group}.{key}={value_of(given)}"
                    for key, given in value.items()
                    if (group, key) != ("loss", "name") and (key not in known or given != known[key])
                ]
            elif group not in _OF_ITS_FOLDER and value != plain.get(group):
                found.append(f"{group}={value_of(value)}")
        return found

    def run_config(self, *overrides: str) -> RunConfig:
        """The run's configuration, with overrides of the command line's kind on top.

        An override that chooses a whole group, such as `tracking=none`, replaces all of the run's settings in it. So do
        other data: columns and splits of the run's own do not belong to them, but its model reads prompts as it did.

        Raises:
            UserError: the configuration is not a run's, or an override is wrong.
        """
        given = {override.split("=", 1)[0] for override in overrides}
        replaced = {key for key in given if "." not in key}
        if given & {"data.path", "data.mixture"}:
            replaced.add("data")
        own = [
            override
            for override in self._overrides(self.located)
            if (key := override.split("=", 1)[0]) not in given
            and (key.split(".", 1)[0] not in replaced or _is_of_format(override))
        ]
        try:
            return compose([*own, *overrides])
        except UserError as error:
            raise UserError(f"{self.path / CONFIG}: {error}") from error


def _foreign(config: Any) -> str | None:
    """What no run writes into a configuration, as a phrase, or None.

    Interpolations are resolved before a configuration is written; one that is read would look into this environment.
    """
    if not isinstance(config, dict):
        return "it is no mapping of options"
    hints = typing.get_type_hints(RunConfig)
    known = [field.name for field in dataclasses.fields(RunConfig) if field.name != "loss_name"]
    groups = [name for name in known if dataclasses.is_dataclass(hints[name])] + ["loss", "trainer", "stages"]
    for key, value in config.items():
        if key not in known:
            return f"there is no option {key!r}{nearest(str(key), known)}; take it out"
        if key in groups and not isinstance(value, dict):
            return f"{key} is no mapping of options"
        if key not in (*groups, "reward") and not isinstance(value, str | bool | int | float | None):
            return f"{key} is of the type {type(value).__name__}, where one value belongs"
    return _odd("", config)


def _odd(place: str, value: Any) -> str | None:
    """The first key that is no name, and the first interpolation, in a value and all that it holds."""
    if isinstance(value, dict):
        if (odd := next((key for key in value if not isinstance(key, str) or "${" in key), None)) is not None:
            return f"{place or 'it'} has the key {odd!r}, which is no name"
        parts = [(f"{place}.{key}" if place else key, part) for key, part in value.items()]
    elif isinstance(value, list):
        parts = [(f"{place}[{n}]", part) for n, part in enumerate(value)]
    else:
        interpolation = isinstance(value, str) and "${" in value
        return f"{place} has an interpolation, which no run writes; give the value itself" if interpolation else None
    return next((odd for where, part in parts if (odd := _odd(where, part))), None)


def _has_a_meaning(key: str, name: str) -> bool:
    """Whether a value is not the name of a file, although it may look like one."""
    if key == "template":
        return not name.endswith(".jinja")
    return name in WORLD_MODELS or name.startswith("package:")


def _schemas(loss: str) -> tuple[dict[str, type[Any]], dict[str, Any]]:
    """The dataclasses of the groups of a configuration, and the defaults of its single options."""
    hints = typing.get_type_hints(RunConfig)
    classes: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    return classes | {"loss": registry.loss_class(loss), "trainer": TrainerConfig}, _defaults(RunConfig)


def _defaults(cls: type[Any]) -> dict[str, Any]:
    """The defaults of a dataclass's fields, as JSON values."""
    found = {}
    for field in dataclasses.fields(cls):
        value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if value is not dataclasses.MISSING:
            found[field.name] = json.loads(json.dumps(value, default=str))
    return found


def _is_of_format(override: str) -> bool:
    group, _, name = override.split("=", 1)[0].partition(".")
    return group == "data" and name in FORMAT


def model_path(name: str, data: DataConfig | None = None) -> str:
    """The folder or hub id of a model as a user names it: a run's folder stands for its tuned model, and the name of a
    world's model for that of the world that `data` is of.

    Raises:
        UserError: no such folder, beside folders of runs; a folder of runs; or a data file.
    """
    if is_run(name):
        return str(RunFolder.open(name).final)
    check_model(name)
    return resolve_path(name, data)


def open_model(name: str, dtype: str = "float32", *, data: DataConfig | None = None) -> tuple[Any, Any]:
    """Load (model, tokenizer) of a run folder, a model folder, a PEFT adapter folder, a hub id, `package:NAME` or
    `world`, which is the model of the world that `data` is of.

    Raises:
        UserError: no model can be loaded from there.
    """
    path = model_path(name, data)
    config = ModelConfig(path=path, dtype=dtype)
    model = load_model(config)
    if (saved := saved_settings(path)) and not Path(path, "tokenizer_config.json").is_file():
        config = ModelConfig(path=saved[BASE])  # peft alone saves no tokenizer
    return model.to(PartialState().device), load_tokenizer(config)
