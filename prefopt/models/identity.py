"""Identifies a model by the content of its files."""

from __future__ import annotations

import os
from pathlib import Path

from prefopt.common.digest import FileState, of_files
from prefopt.models.adapters import BASE, saved_settings

OF_A_MODEL = (
    ".safetensors",
    ".bin",
    ".json",
    ".jinja",
    ".gguf",
    ".model",
    ".py",
)  # suffixes of files that change its output
VOCABULARIES = ("merges.txt", "vocab.txt")
OF_A_RUN = (".lock", "jobs", "manifest.json", "trainer_state.json")  # a folder with one of these is no part of a model


def digest_of_weights(path: str) -> str:
    """The digest of the files in a model's folder, and of those below an adapter; for a hub id its name.

    The revision of a hub id is in the configuration.
    """
    files = model_files(path)
    if not files:
        return path if not os.path.isdir(path) else of_files([])
    below = _below(Path(path))
    return of_files(files) + (f" {digest_of_weights(below)}" if below and below != path else "")


def model_files(path: str) -> list[FileState]:
    """The files in a model's folder that change its output; none for a hub id."""
    if not os.path.isdir(path):
        return []
    top = Path(path)
    found = []
    for folder, folders, names in os.walk(top):
        here = Path(folder)
        if here != top and any(name in OF_A_RUN for name in (*folders, *names)):
            folders.clear()  # what is trained and compared below the folder does not change the model in it
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [here / name for name in names if name.endswith(OF_A_MODEL) or name in VOCABULARIES]
    return [FileState.of(file, top) for file in sorted(found) if file.is_file()]


def _below(folder: Path) -> str:
    """The folder of an adapter's base model; empty for a whole model, and where the base is a hub id."""
    below = str((saved_settings(str(folder)) or {}).get(BASE, ""))
    return below if os.path.isdir(below) else ""
