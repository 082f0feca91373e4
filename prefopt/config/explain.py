"""Explains errors of Hydra in one line, with the option or the choice that was probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from prefopt.config.check_values import KINDS, wrong_kind
from prefopt.errors import UserError, first_line, nearest

OF_NODES = {"Float": float, "Integer": int, "Boolean": bool}  # as OmegaConf names them in messages


def initialized() -> AbstractContextManager[Any]:
    """A context in which Hydra can compose; nothing to do where a job or a stage is being composed."""
    if GlobalHydra.instance().is_initialized():
        return nullcontext()
    return hydra.initialize_config_module("prefopt.conf", version_base="1.3")


def sections(node: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """The mappings in a mapping that have a value."""
    for key in map(str, node):
        if not (OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key)):
            child = node[key]
            if isinstance(child, DictConfig):
                yield key, child


def explain(error: Exception, overrides: list[str]) -> UserError:
    """Turn Hydra's error into one line with the remedy."""
    text = str(error)
    cause = error.__cause__
    whole = f"{text}\n{cause}" if cause is not None else text
    if match := re.search(r"Error parsing override '([^'=]*)'", text):
        return UserError(f"{match[1]!r} is not a setting: write KEY=VALUE, such as loss.beta=0.1")
    if match := re.search(r"Ambiguous value for argument '(([^'=]*)=.*)'", text):
        return UserError(f"{match[1]}: several values are several runs (-m), or a list: {match[2]}=[A,B]; one text "
                         f"with a comma is quoted: {match[2]}='A,B'")  # fmt: skip
    if match := re.search(r"Could not find '([^'\s]+)/([^'\s]+)'", text):
        group, wrong = match.groups()
        valid = group_choices(group)
        return UserError(f"unknown {group} {wrong!r}{nearest(wrong, valid)}; choose from: {', '.join(valid)}")
    for override in sorted(overrides, key=lambda o: -len(o.split("=", 1)[0])):  # data.path before data
        key = override.split("=", 1)[0].lstrip("+~")
        if f"'{key}'" in text or f"full_key: {key}" in whole or f"Could not override '{key}'" in text:
            if (
                "is not in struct" in whole
                or "not in '" in whole
                or ("Could not override" in text and "convert" not in whole)
            ):
                valid = option_names(overrides)
                return UserError(
                    f"there is no option {key!r}{nearest(key, valid)}; `prefopt train --cfg job` prints all options"
                )
            first = (str(cause) if cause is not None else text).splitlines()[0]
            return UserError(_wrong_value(override, first))
    lines = [line.strip() for line in whole.splitlines() if line.strip()]
    return UserError(" ".join(lines[:3]))


def _wrong_value(override: str, message: str) -> str:
    """OmegaConf's message about the value of an override, in the words of a user."""
    found = re.fullmatch(r"Value '.*' of type '\w+' could not be converted to (\w+)", message)
    if found is None or found[1] not in OF_NODES:
        return f"{override}: {message}"
    key, _, value = override.partition("=")
    return str(wrong_kind(key, value.strip("'"), KINDS[OF_NODES[found[1]]]))  # quoted by Hydra's grammar


def not_composed(error: Exception, overrides: list[str]) -> UserError:
    """The error for overrides that make Hydra itself fail."""
    return UserError(f"these options make no configuration: {' '.join(overrides)[:300]} ({first_line(error)})")


def group_choices(group: str) -> list[str]:
    """The names that a group can be given, such as those of losses."""
    with initialized():
        options = GlobalHydra.instance().config_loader().get_group_options(group)
    return [option for option in options if not option.startswith("_")]


def option_names(overrides: list[str]) -> list[str]:
    """The full names of all options, under the groups that overrides choose."""
    chosen = [
        o for o in overrides if re.fullmatch(r"(loss|model|peft|data|batch|trainer|tracking|world|experiment)=[^,]*", o)
    ]
    with initialized():
        try:
            config = hydra.compose("train", chosen)
        except HydraException:
            config = hydra.compose("train")
    found: list[str] = []

    def walk(node: DictConfig, prefix: str) -> None:
        found.extend(f"{prefix}{key}" for key in map(str, node))
        for key, child in sections(node):
            walk(child, f"{prefix}{key}.")

    walk(config, "")
    return found
