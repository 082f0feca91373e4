"""What a run left behind, read back: its configuration, figures, texts; and models as people name them."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import typing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prefopt.errors import PrefoptError, UserError, first_line, nearest

CONFIG, FINAL = "config.yaml", "final"
ADAPTER = "adapter_config.json"
# What Hydra's grammar reads as text without quotes: starts with a letter or a slash, and is no keyword. Inside a list
# or a dict a colon needs quotes.
_PLAIN = re.compile(r"(?!(?i:null|true|false|nan|inf)$)[A-Za-z/][\w./:-]*")
# What values that no run writes make of other libraries' code.
_BROKEN = (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError)
# What may be a relative path, seen from where the run was started.
_PATHS = (("model", "path"), ("model", "reference"), ("data", "path"), ("data", "eval_path"), ("data", "template"))


@dataclass(frozen=True)
class RunFolder:
    """The files of one run; what is not there is empty."""

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The run in `path`.

        Raises:
            UserError: there is none.
        """
        folder = Path(path)
        if not is_run(folder):
            siblings = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
            hint = nearest(folder.name, siblings) if not folder.exists() else "; it has no config.yaml"
            raise UserError(f"{path} is not the folder of a run{hint} (`prefopt train` prints the folder it writes to)")
        return cls(folder)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration, as plain values.

        Raises:
            UserError: it is not one that a run wrote: an unknown key, an interpolation, a group that is none.
        """
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError

        file = self.path / CONFIG
        try:
            loaded: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        except (YAMLError, OmegaConfBaseException, *_BROKEN) as error:
            raise UserError(f"{file} is not the configuration of a run: {first_line(error)[:200]}") from error
        if wrong := _foreign(loaded):
            raise UserError(f"{file} is not a run's configuration: {wrong}")
        assert isinstance(loaded, dict)
        return loaded

    @cached_property
    def located(self) -> dict[str, Any]:
        """`config` with the relative paths of files that are where the run was started as absolute ones."""
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
        """The folder in which the configuration was written: that of the last resume, or of the start."""
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

    def overrides(self) -> list[str]:
        """What `prefopt train` needs to be told to run the same again: every value that is not a default.

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
                    f"{group}.{key}={_value(given)}"
                    for key, given in value.items()
                    if (group, key) != ("loss", "name") and (key not in known or given != known[key])
                ]
            elif group not in ("output_dir", "resume", "progress", "stages") and value != plain.get(group):
                found.append(f"{group}={_value(value)}")
        return found

    def run_config(self, *overrides: str) -> Any:
        """The run's `RunConfig`, with overrides of the command line's kind on top; with other data, all of the run's
        own settings of data are left out, since its columns and splits do not belong to them.

        Raises:
            UserError: the configuration is not a run's, or an override is refused.
        """
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        from prefopt.config.compose import compose

        given = {o.split("=", 1)[0] for o in overrides}
        try:
            kept = [o for o in self._overrides(self.located) if o.split("=", 1)[0] not in given]
            if given & {"data", "data.path", "data.mixture"}:
                kept = [o for o in kept if not o.startswith(("data=", "data."))]
            return compose([*kept, *overrides])
        except PrefoptError:
            raise
        except (HydraException, OmegaConfBaseException, *_BROKEN) as error:
            raise UserError(f"{self.path / CONFIG} is not a run's configuration: {first_line(error)[:200]}") from error


def _foreign(config: Any) -> str | None:
    """What no run writes into its configuration, as a phrase, or None.

    Interpolations are resolved before a configuration is written; one that is read would look into this environment.
    """
    from prefopt.config.run_config import RunConfig

    if not isinstance(config, dict):
        return "it is no mapping of options"
    hints = typing.get_type_hints(RunConfig)
    known = [name for name in hints if name != "loss_name"]
    groups = [name for name in known if dataclasses.is_dataclass(hints[name])] + ["loss", "trainer", "stages"]
    for key, value in config.items():
        if key not in known:
            return f"there is no option {key!r}{nearest(str(key), known)}; take it out"
        if key in groups and not isinstance(value, dict):
            return f"{key} is no mapping of options"
        if key not in groups and isinstance(value, dict | list):
            return f"{key} has several values, where one belongs"
    left: list[tuple[str, Any]] = [("", config)]
    while left:
        where, value = left.pop()
        if isinstance(value, dict):
            if (odd := next((k for k in value if not isinstance(k, str) or "${" in k), None)) is not None:
                return f"{where.lstrip('.') or 'it'} has the key {odd!r}, which is no name"
            left += [(f"{where}.{k}", v) for k, v in value.items()]
        elif isinstance(value, list):
            left += [(f"{where}[{n}]", v) for n, v in enumerate(value)]
        elif isinstance(value, str) and "${" in value:
            return f"{where.lstrip('.')} has an interpolation, which no run writes; give the value itself"
        elif not isinstance(value, str | bool | int | float | None):
            return f"{where.lstrip('.')} is of the type {type(value).__name__}, which no option has"
    return None


def _has_a_meaning(key: str, name: str) -> bool:
    """Whether a value names something else than a file, whatever files there are."""
    if key == "template":
        return not name.endswith(".jinja")
    return name in ("world", "world/base") or name.startswith("package:")


def _schemas(loss: str) -> tuple[dict[str, type[Any]], dict[str, Any]]:
    """The dataclass of each group of a run's configuration, and the defaults of its plain values."""
    from prefopt.config.run_config import RunConfig
    from prefopt.losses import registry
    from prefopt.train.arguments import schema

    hints = typing.get_type_hints(RunConfig)
    classes = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    return classes | {"loss": registry.loss_class(loss), "trainer": schema()}, _defaults(RunConfig)


def _defaults(cls: type[Any]) -> dict[str, Any]:
    """The defaults of a dataclass's fields, as JSON values."""
    found = {}
    for field in dataclasses.fields(cls):
        value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if value is not dataclasses.MISSING:
            found[field.name] = json.loads(json.dumps(value, default=str))
    return found


def _value(value: Any, *, inside: bool = False) -> str:
    """A plain value in Hydra's grammar, which reads quoted strings and JSON-like lists and dicts."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return str(value)  # inf and nan as Hydra spells them
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and not (inside and ":" in value):
            return value
        escaped = value.replace("\\'", "\\\\'").replace("'", "\\'")
        return f"'{escaped}'"
    if isinstance(value, list):
        return f"[{','.join(_value(item, inside=True) for item in value)}]"
    return "{" + ",".join(f"{key}:{_value(item, inside=True)}" for key, item in value.items()) + "}"


def is_run(path: str | Path) -> bool:
    """Whether `path` is the folder of a run."""
    folder = Path(path)
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def model_path(name: str) -> str:
    """What `model.path` would say for a model as people name it: a run's folder stands for its tuned model."""
    return str(RunFolder.open(name).final) if is_run(name) else name


def open_model(name: str, dtype: str = "float32") -> tuple[Any, Any]:
    """(model, tokenizer) of a run folder, a model folder, a PEFT adapter folder, a hub id, `package:NAME` or `world`.

    Raises:
        UserError: nothing loadable there.
    """
    from accelerate import PartialState

    from prefopt.models.load import ModelConfig, load_model, load_tokenizer

    path = model_path(name)
    config = ModelConfig(path=path, dtype=dtype)
    model = load_model(config)
    adapter = Path(path) / ADAPTER
    if adapter.is_file() and not Path(path, "tokenizer_config.json").is_file():  # peft alone saves no tokenizer
        config = ModelConfig(path=json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"])
    return model.to(PartialState().device), load_tokenizer(config)
