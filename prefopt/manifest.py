"""What a run depended on, written before it begins: `config.yaml`, `manifest.json`, `rejections.jsonl`."""

from __future__ import annotations

import dataclasses
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from prefopt.folder import write, write_json, write_lines

if TYPE_CHECKING:
    from prefopt.run import RunConfig

PACKAGES = ("prefopt", "torch", "transformers", "accelerate", "datasets", "hydra-core", "peft", "safetensors", "numpy")


def write_manifest(config: RunConfig, prepared: Any) -> None:
    """Leave the three files in the run's folder."""
    from omegaconf import OmegaConf

    out = config.output_dir
    manifest = {
        "versions": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "data": {"schema": prepared.schema, "counts": prepared.counts},
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write(out / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config.plain())))
    write_json(out / "manifest.json", manifest)
    write_lines(out / "rejections.jsonl", [dataclasses.asdict(r) for r in prepared.rejections])


def versions() -> dict[str, str | None]:
    """Of the packages that numbers depend on; None where one is not installed."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
