"""`experiment=FILE.yaml`: a named set of overrides from a file of one's own, wherever it lies."""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from prefopt.errors import UserError, first_line

PREFIX = "experiment="
SUFFIXES = (".yaml", ".yml")


def from_file(overrides: list[str]) -> list[str]:
    """The overrides, with a file after `experiment=` put among Hydra's experiments and named there.

    Raises:
        UserError: a file that is not there, or is none of the kind.
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
    return path.stem
