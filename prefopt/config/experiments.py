"""Reads experiments, named sets of overrides, from the user's own files: `experiment=FILE.yaml`."""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from prefopt.config.grammar import value_of
from prefopt.errors import UserError, first_line

PREFIX = "experiment="
SUFFIXES = (".yaml", ".yml")


def from_file(overrides: list[str]) -> list[str]:
    """Store files after `experiment=` as experiments of Hydra, and return the overrides with their names instead.

    Raises:
        UserError: a file cannot be read, or is not a table of settings.
    """
    return [
        PREFIX + _store(Path(override.removeprefix(PREFIX)))
        if override.startswith(PREFIX) and override.endswith(SUFFIXES)
        else override
        for override in overrides
    ]


def _store(path: Path) -> str:
    try:
        found = OmegaConf.load(path)
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"experiment={path} cannot be read: {first_line(error)}") from error
    if not isinstance(found, DictConfig):
        raise UserError(f"experiment={path} is not a table of settings")
    ConfigStore.instance().store(group="experiment", name=path.stem, node=found, package="_global_")
    return value_of(path.stem)
