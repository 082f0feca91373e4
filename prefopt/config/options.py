"""Reads the names, defaults and comments of a run's options from source text, without importing torch or Hydra."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from prefopt.losses import MENU

# Where the dataclass of each group stands.
CLASSES = {
    "model": "models/model_config.py:ModelConfig",
    "peft": "models/peft_config.py:PeftConfig",
    "data": "data/data_config.py:DataConfig",
    "batch": "train/batch_config.py:BatchConfig",
    "trainer": "train/trainer_config.py:TrainerConfig",
    "evaluation": "config/run_config.py:EvaluationConfig",
    "sentinels": "train/sentinels.py:SentinelConfig",
    "rollout": "train/sources/rollout_config.py:RolloutConfig",
    "tracking": "config/tracking.py:TrackingConfig",
}
OUTSIDE = {"losses": "prefopt.losses", "presets": "prefopt.conf"}  # entry points of other packages
OF_PATHS = ("model", "data")  # groups that may be given a file, folder or hub id instead of a preset
PRESETS = ("world", "experiment")  # groups of presets that choose presets of other groups; the last one wins
ONLINE = "@rollouts"  # ends the name of a loss on the policy's own samples in a comparison: dpo@rollouts
ADAPTER_RATE = 10  # times the learning rate of full tuning: https://thinkingmachines.ai/blog/lora/
RATE = "trainer.learning_rate"
OVERRIDE = re.compile(r"(\w+(?:\.\w+)*)=(.*)", re.DOTALL)  # without Hydra's other forms: +a=b, ~a, a/b=c, a@b=c


@dataclass(frozen=True)
class Option:
    """An option as it stands in the source: `default` is empty where a value must be given."""

    name: str
    default: str
    comment: str


def group_options(group: str) -> list[Option]:
    """The options of a group other than `loss`."""
    return _fields(CLASSES[group], group)


def loss_options(name: str) -> list[Option] | None:
    """The hyper-parameters of a loss; None where the source of another package does not show all of them."""
    if name in MENU:
        module, _, cls = MENU[name].partition(":")
        return _fields(f"losses/{module}.py:{cls}", "loss")
    for point in entry_points(group=OUTSIDE["losses"], name=name):
        folder = folder_of(point.module)
        for file in (folder / "__init__.py", folder.with_suffix(".py")):
            if file.is_file() and _is_plain(str(file), point.attr):
                return _fields(f"{file}:{point.attr}", "loss")
    return None


def folder_of(package: str) -> Path:
    """Where a package of an entry point lies, without importing it: that takes torch, and may fail."""
    top, *parts = package.split(".")
    try:
        found = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        found = None
    locations = list(found.submodule_search_locations or ()) if found is not None else []
    if found is not None and not locations and found.origin is not None:  # a module that is one file
        return Path(found.origin).with_suffix("").joinpath(*parts)
    return Path(locations[0] if locations else top).joinpath(*parts)


def _is_plain(file: str, name: str) -> bool:
    """Whether a file defines a class without bases, so that its fields stand there."""
    return any(
        isinstance(node, ast.ClassDef) and node.name == name and not node.bases for node in _source(file)[1].body
    )


def root_keys() -> list[str]:
    """The options that are in no group, such as `seed`."""
    text = (files("prefopt.conf") / "train.yaml").read_text(encoding="utf-8")
    return [key for key in re.findall(r"^(\w+):", text, re.MULTILINE) if key not in ("defaults", "hydra")]


@cache
def choices() -> Mapping[str, list[str]]:
    """The choices in each group, from the names of losses and of presets."""
    found = {"loss": {*MENU, *(point.name for point in entry_points(group=OUTSIDE["losses"]))}}
    outside = [folder_of(point.value) for point in entry_points(group=OUTSIDE["presets"])]
    for presets in (files("prefopt.conf"), *(folder for folder in outside if folder.is_dir())):
        for group in presets.iterdir():
            if group.is_dir() and (names := set(_presets(group, ""))):
                found.setdefault(group.name, set()).update(names)
    return {group: sorted(names) for group, names in sorted(found.items())}


def is_own(group: str, value: str) -> bool:
    """Whether the value of `data=` or `model=` is a file, a folder or a hub id, and no preset."""
    if group not in OF_PATHS or value in choices()[group]:
        return False
    return any(mark in value for mark in "/.:") or os.path.exists(value)


def with_paths(words: Iterable[str]) -> list[str]:
    """The words of a command with `data=pairs.jsonl` as `data.path=pairs.jsonl`, and `model=` likewise."""
    return [f"{group}.path={value}" if _all_own(group, value) else word
            for word in words for group, _, value in [word.partition("=")]]  # fmt: skip


def _all_own(group: str, value: str) -> bool:
    return all(is_own(group, one) for one in ([value] if os.path.exists(value) else value.split(",")))


def implied_preset(group: str, path: str) -> str | None:
    """The preset of a group that a path implies: of another world, or for a file or model of the user's own."""
    if path.startswith("world"):
        named = path.replace("/", "_")
        return named if "/" in path and named in choices()[group] else None
    return {"model": "local", "data": "auto"}[group]


def _presets(folder: Traversable, prefix: str) -> Iterator[str]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _presets(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".yaml") and not entry.name.startswith("_"):
            yield prefix + entry.name.removesuffix(".yaml")


@cache
def _source(file: str) -> tuple[list[str], ast.Module]:
    """The lines and the syntax tree of a file of prefopt, or of another one by its absolute path."""
    text = Path(str(files("prefopt") / file)).read_text(encoding="utf-8")
    return text.splitlines(), ast.parse(text)


def _fields(place: str, prefix: str) -> list[Option]:
    """The fields of a dataclass at `file:Class`, those of its bases first."""
    file, _, name = place.partition(":")
    lines, module = _source(file)
    found: dict[str, Option] = {}
    for node in module.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            for base in node.bases:
                found |= {option.name: option for option in _base_fields(base, file, prefix)}
            found |= {option.name: option for option in _own_fields(node, lines, prefix)}
    return list(found.values())


def _base_fields(base: ast.expr, file: str, prefix: str) -> list[Option]:
    """The fields of a base class, from the same file or the one that it is imported from."""
    if not isinstance(base, ast.Name):
        return []
    for node in _source(file)[1].body:
        if isinstance(node, ast.ClassDef) and node.name == base.id:
            return _fields(f"{file}:{base.id}", prefix)
        imported = isinstance(node, ast.ImportFrom) and any(one.name == base.id for one in node.names)
        if imported and isinstance(node, ast.ImportFrom) and str(node.module).startswith("prefopt.losses."):
            return _fields(f"{str(node.module).removeprefix('prefopt.').replace('.', '/')}.py:{base.id}", prefix)
    return []


def _own_fields(node: ast.ClassDef, lines: list[str], prefix: str) -> Iterator[Option]:
    for field in node.body:
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if ast.unparse(field.annotation).startswith("ClassVar") or field.end_lineno is None:
            continue
        behind = lines[field.end_lineno - 1].encode()[field.end_col_offset :].decode().strip()
        default = "" if field.value is None else ast.unparse(field.value)
        comment = behind.lstrip("# ") if behind.startswith("#") else ""
        yield Option(f"{prefix}.{field.target.id}", default, comment)


def rate_of_adapters(words: Iterable[str]) -> float | None:
    """The learning rate of a run whose words choose adapters and no rate: `ADAPTER_RATE` times that of full tuning."""
    given = dict(word.split("=", 1) for word in words if OVERRIDE.fullmatch(word))
    if given.get("peft") not in set(choices()["peft"]) - {"none"} or RATE in given:
        return None
    found = values(f"{key}={value}" for key, value in given.items() if key != "peft")
    if found["peft"] != "none":  # an experiment with adapters and its own rate
        return None
    default = next(option.default for option in group_options("trainer") if option.name == RATE)
    return ADAPTER_RATE * float(found.get(RATE, default))


def values(words: Iterable[str]) -> dict[str, Any]:
    """What presets and the words of a command set, by the options' full names and by groups; the other options have the
    defaults of their classes."""
    given: dict[str, Any] = dict(word.split("=", 1) for word in with_paths(words) if OVERRIDE.fullmatch(word))
    chosen = {group: choice for entry in _yaml("train.yaml")["defaults"] if isinstance(entry, dict)
              for group, choice in entry.items() if group in choices()}  # fmt: skip
    last: dict[str, Any] = {}
    for group in PRESETS:
        overridden, own = _preset(group, given.get(group))
        chosen, last = chosen | overridden, last | own
    for group in OF_PATHS:  # as `prefopt.config.compose.implied`
        preset = implied_preset(group, given.get(f"{group}.path", "world"))
        if preset is not None and chosen[group].startswith("world"):
            chosen[group] = preset
    chosen |= {group: choice for group, choice in given.items() if group in chosen}
    found: dict[str, Any] = {key: value for key, value in _yaml("train.yaml").items() if key in root_keys()} | chosen
    for group in ("trainer", *(group for group in chosen if group not in ("trainer", "loss", *PRESETS))):
        found |= _preset(group, chosen[group])[1]
    return found | last | given


def _preset(group: str, name: str | None) -> tuple[dict[str, str], dict[str, Any]]:
    """(choices of other groups, options) of a preset of ours or a file of the user's; nothing for those of others."""
    path = f"{group}/{name}.yaml"
    own = str(name).endswith((".yaml", ".yml"))
    if name is None or not (os.path.exists(name) if own else (files("prefopt.conf") / path).is_file()):
        return {}, {}
    body = yaml.safe_load(Path(name).read_text(encoding="utf-8")) if own else _yaml(path)
    chosen: dict[str, str] = {}
    found: dict[str, Any] = {}
    for entry in body.pop("defaults", []):
        if isinstance(entry, dict):
            chosen |= {key.removeprefix("override /"): str(choice) for key, choice in entry.items() if "/" in key}
        elif not entry.startswith("_"):
            found |= _preset(group, entry)[1]
    everywhere = own or group == "experiment" or "@package _global_" in (files("prefopt.conf") / path).read_text()
    return chosen, found | _flat(body if everywhere else {group: body})


def _yaml(path: str) -> dict[str, Any]:
    return dict(_parsed(path))


@cache
def _parsed(path: str) -> dict[str, Any]:
    return yaml.safe_load((files("prefopt.conf") / path).read_text(encoding="utf-8")) or {}


def _flat(body: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in body.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
