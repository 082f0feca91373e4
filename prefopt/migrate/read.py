"""From a file or command-line arguments of another program to a `Translation`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from prefopt.errors import UserError, first_line
from prefopt.migrate import llamafactory, trl
from prefopt.migrate.translation import Translation

LARGEST = 1_000_000  # bytes of a file of settings
# First words of TRL's command line, and its example scripts.
VERBS = {"dpo": "DPOConfig", "kto": "KTOConfig", "orpo": "ORPOConfig", "cpo": "CPOConfig"}


def read(source: str | Sequence[str], *, kind: str | None = None, processes: int = 1) -> Translation:
    """Translate settings.

    Args:
        source: a JSON or YAML file, or the words of a command line (`trl dpo --beta 0.1 ...`).
        kind: TRL's class, where the settings do not tell.
        processes: of the original run; its global batch was that many times the per-device one.

    Raises:
        UserError: a file that is none, or settings that are not offered here.
    """
    if processes < 1:
        raise UserError(f"--processes {processes} must be at least 1")
    if isinstance(source, str):
        given, folder = _file(Path(source)), Path(source).parent
    else:
        given, said = _words(source)
        kind, folder = kind or said, Path()
    if kind is None and llamafactory.MARKS & set(given):
        return llamafactory.translate(given, processes, folder if (folder / "data").is_dir() else Path())
    return trl.translate(given, kind or trl.class_of(given), processes)


def _file(path: Path) -> dict[str, Any]:
    if path.suffix == ".bin":
        raise UserError(f"{path} is a pickle, which could run code: write the settings with `to_json_string()`")
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is too large to be a file of settings")
        text = path.read_text()
        given = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON or YAML: {first_line(error)}") from error
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise UserError(f"{path} is not a table of settings")
    return given


def _words(words: Sequence[str]) -> tuple[dict[str, Any], str | None]:
    """Options of a command line and the class that its first words name; `--flag` alone is true."""
    given: dict[str, Any] = {}
    kind: str | None = None
    name: str | None = None
    for word in words:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            name = name.replace("-", "_")
            given[name] = _scalar(value) if value else True
            if value:
                name = None
        elif name is not None:
            before = given[name]
            value_ = _scalar(word)
            given[name] = value_ if before is True else [*(before if isinstance(before, list) else [before]), value_]
        else:
            stem = Path(word).stem.lower()
            kind = VERBS.get(stem, kind)
    if "config" in given:
        path = str(given.pop("config"))
        given = _file(Path(path)) | given
    return given, kind


def _scalar(word: str) -> Any:
    try:
        value = yaml.safe_load(word)
    except yaml.YAMLError:
        return word
    if isinstance(value, str):  # YAML 1.1 reads 5e-7 as text
        try:
            return float(value)
        except ValueError:
            return value
    return value if isinstance(value, bool | int | float) else word
