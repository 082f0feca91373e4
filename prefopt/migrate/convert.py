"""Converts a file of settings, or a command line, of another program."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from prefopt.errors import UserError, first_line
from prefopt.migrate import axolotl, llamafactory, swift, trl
from prefopt.migrate.translation import Translation

MAX_BYTES = 1_000_000  # of a file of settings
# Verbs of TRL's command line, and names of its example scripts.
VERBS = {
    "dpo": "DPOConfig", "kto": "KTOConfig", "orpo": "ORPOConfig", "cpo": "CPOConfig", "rloo": "RLOOConfig",
    "grpo": "GRPOConfig", "dpo_online": "OnlineDPOConfig", "online_dpo": "OnlineDPOConfig", "reward": "RewardConfig",
    "reward_modeling": "RewardConfig",
}  # fmt: skip
SWIFT = ("swift rlhf", "swift sft")


def convert(source: str | Sequence[str], *, kind: str | None = None, processes: int = 1) -> Translation:
    """Convert settings.

    Args:
        source: a JSON or YAML file, or the words of a command line (`trl dpo --beta 0.1 ...`, `swift rlhf ...`).
        kind: TRL's class, `swift rlhf` or `swift sft`, if the settings do not show it.
        processes: how many processes the original run had; its global batch was that many times the per-device one.

    Raises:
        UserError: a file that cannot be read, or settings that prefopt does not offer.
    """
    if processes < 1:
        raise UserError(f"--processes {processes} must be at least 1")
    if isinstance(source, str):
        given, folder = _read_file(Path(source)), Path(source).parent
    else:
        given, named = _read_words(source)
        kind, folder = kind or named, Path()
    if kind in SWIFT:
        return swift.translate(given, processes, rlhf=kind == "swift rlhf")
    if kind is None and swift.MARKS & set(given):
        if given.get("rlhf_type") is None:
            raise UserError("ms-swift's arguments without rlhf_type do not show what they train: give --class "
                            "'swift sft' for demonstrations, or --class 'swift rlhf', whose rlhf_type is dpo unless "
                            "it is given")  # fmt: skip
        return swift.translate(given, processes)
    if kind is None and axolotl.MARKS & set(given):
        return axolotl.translate(given, processes)
    if kind is None and llamafactory.MARKS & set(given):
        return llamafactory.translate(given, processes, folder)
    return trl.translate(given, kind or trl.class_of(given), processes)


def _read_file(path: Path) -> dict[str, Any]:
    if path.suffix == ".bin":
        raise UserError(f"{path} is a pickle, and loading one can run code: save the settings with `to_json_string()`")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} is too large to be a file of settings")
        text = path.read_text()
        given = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON or YAML: {first_line(error)}") from error
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise UserError(f"{path} is not a mapping of settings")
    return given


def _read_words(words: Sequence[str]) -> tuple[dict[str, Any], str | None]:
    """Return the options of a command line, where `--flag` alone is true, and the class that its verb names."""
    given: dict[str, Any] = {}
    kind: str | None = None
    name: str | None = None
    before: list[str] = []  # the words that are no options
    for word in words:
        if word.startswith("--"):
            name, _, text = word[2:].partition("=")
            name = name.replace("-", "_")
            given[name] = _scalar(text) if text else True
            if text:
                name = None
        elif name is not None:
            value, new = given[name], _scalar(word)
            given[name] = new if value is True else [*(value if isinstance(value, list) else [value]), new]
        else:
            verb = Path(word).stem.lower()
            kind = f"swift {verb}" if f"swift {verb}" in SWIFT and "swift" in before else VERBS.get(verb, kind)
            before.append(verb)
    if "config" in given:
        given = _read_file(Path(str(given.pop("config")))) | given
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
