"""Tells runs and models by their paths, and what was probably meant. Loads no heavy library: a typo is told at once."""

from __future__ import annotations

import os
from pathlib import Path

from prefopt.data.formats import is_data
from prefopt.data.world_names import WORLD_MODELS
from prefopt.errors import UserError, nearest
from prefopt.models.hub import check_on_hub

CONFIG = "config.yaml"


def is_run(path: str | Path) -> bool:
    """Whether `path` is the folder of a run."""
    folder = Path(path)
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def check_run(path: str | Path) -> None:
    """Raise UserError if `path` is not the folder of a run."""
    if not is_run(path):
        hint = _hint(Path(path))
        raise UserError(f"{path} is not the folder of a run{hint} (`prefopt train` prints the folder it writes to)")


def check_model(name: str) -> None:
    """Check that a run or a model has this name, as a user gives it.

    Raises:
        UserError: no such folder, beside folders of runs; a folder of runs; a data file; no such model on the hub.
    """
    folder = Path(name)
    if name in WORLD_MODELS or is_run(folder):
        return
    if is_data(folder):
        raise UserError(f"{name} is a data file, not a model: name a run or a model, and the data by data.path={name}")
    if folder.is_dir() and not (folder / "config.json").is_file() and any(is_run(one) for one in folder.iterdir()):
        raise UserError(f"{name} is not the folder of a run or a model{_hint(folder)}")
    beside = [one.name for one in folder.parent.iterdir() if is_run(one)] if folder.parent.is_dir() else []
    if beside and not folder.exists() and "/" in name:  # the hub would be asked for it
        raise UserError(f"there is no run {name}{nearest(folder.name, beside, str(folder.parent))}")
    runs = [str(one) for one in Path("runs").iterdir() if is_run(one)] if Path("runs").is_dir() else []
    here = [one.name for one in Path().iterdir() if one.is_dir()]
    check_on_hub(name, hint=nearest(name, [*runs, *here, *WORLD_MODELS]))


def _hint(folder: Path) -> str:
    """What was probably meant by a folder that is not that of a run."""
    if not folder.is_dir():
        beside = [one.name for one in folder.parent.iterdir() if one.is_dir()] if folder.parent.is_dir() else []
        return nearest(folder.name, beside, str(folder.parent))
    run = next((one for one in folder.resolve().parents if is_run(one)), None)
    if run is not None:
        return f"; it is part of the run {os.path.relpath(run)}"
    inside = [one for one in folder.iterdir() if is_run(one)]
    newest = max(inside, key=lambda one: one.stat().st_mtime, default=None)
    return "; it has no config.yaml" if newest is None else f"; the newest run in it is {newest}"
