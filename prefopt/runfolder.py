"""What a run left behind, read back: its configuration, figures, texts; and models as people name them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prefopt.errors import UserError, nearest

CONFIG, FINAL = "config.yaml", "final"
ADAPTER = "adapter_config.json"


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
        """The resolved configuration, as plain values."""
        from omegaconf import OmegaConf

        loaded: Any = OmegaConf.to_container(OmegaConf.load(self.path / CONFIG), resolve=False)
        return loaded if isinstance(loaded, dict) else {}

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
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                found.append(value)
        return found

    def _object(self, name: str) -> dict[str, Any]:
        file = self.path / name
        try:
            value = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except ValueError as error:
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
        model = self.config.get("model", {})
        return str(model.get("reference") or model.get("path"))

    def run_config(self, *overrides: str) -> Any:
        """The run's `RunConfig`, with overrides of the command line's kind on top."""
        from prefopt.cli.compose import compose

        config = self.config
        flat = [f"loss={config['loss']['name']}", "model=local", "data=auto"]
        for group in ("loss", "model", "data", "batch", "evaluation"):
            flat += [f"{group}.{key}={_value(value)}" for key, value in config.get(group, {}).items() if key != "name"]
        flat.append(f"seed={config.get('seed', 0)}")
        given = {o.split("=", 1)[0] for o in overrides}
        # data=... and data.path=... start afresh: the run's own columns and splits do not belong to other data
        afresh = given & {"data", "data.path", "data.mixture"}
        kept = [
            o for o in flat if not (afresh and o.startswith(("data=", "data."))) and o.split("=", 1)[0] not in given
        ]
        return compose([*kept, *overrides])


def _value(value: Any) -> str:
    """A plain value in Hydra's grammar, which reads quoted strings and JSON-like lists and dicts."""
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, str):
        escaped = value.replace("\\'", "\\\\'").replace("'", "\\'")
        return f"'{escaped}'"
    if isinstance(value, list):
        return f"[{','.join(map(_value, value))}]"
    return "{" + ",".join(f"{key}:{_value(item)}" for key, item in value.items()) + "}"


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
    from prefopt.models import ModelConfig, load_model, load_tokenizer

    path = model_path(name)
    adapter = Path(path) / ADAPTER
    if not adapter.is_file():
        config = ModelConfig(path=path, dtype=dtype)
        return load_model(config), load_tokenizer(config)
    try:
        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError) as error:
        raise UserError(f"{adapter} does not name the model that the adapter belongs to") from error
    try:
        from peft import PeftModel
    except ImportError as error:
        raise UserError(f"{path} is a PEFT adapter: `pip install prefopt[peft]` brings what it needs") from error
    config = ModelConfig(path=str(base), dtype=dtype)
    own = Path(path, "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(ModelConfig(path=path) if own else config)
    model = PeftModel.from_pretrained(load_model(config), path, is_trainable=False, use_safetensors=True)
    return model, tokenizer
