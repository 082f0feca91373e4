"""Writes settings of other trainers, and composes what they are converted to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from prefopt.config.compose import compose
from prefopt.config.run_config import RunConfig
from prefopt.migrate.convert import convert

# Of three programs, as their sources of July and August 2026 declare them, each with a value that is not its default.
OPTIONS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("options.json").read_text())
GIVEN = ["model.path=model", "data.path=pairs.jsonl"]


def written(folder: Path, settings: dict[str, Any], name: str = "theirs.json") -> str:
    path = folder / name
    path.write_text(json.dumps(settings) if name.endswith("json") else yaml.safe_dump(settings))
    return str(path)


def composed(source: Any, folder: Path, **how: Any) -> RunConfig:
    """What `prefopt train experiment=FILE` would run."""
    found = convert(source, **how)
    (folder / "ours.yaml").write_text(found.yaml())
    open_ = [o for o in GIVEN if found.settings.get(o.split("=")[0]) == "???"]
    if found.settings.get("source") == "rollouts" and "reward" not in found.settings:
        open_.append("reward=world")
    return compose([f"experiment={folder}/ours.yaml", "model=local", "data=auto", *open_])
