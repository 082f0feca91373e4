"""What a run depended on, written before it begins: `config.yaml`, `manifest.json`, `rejections.jsonl`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.common.files import write_json, write_lines, write_text
from prefopt.common.redact import HIDDEN, redact, redacted
from prefopt.common.versions import version_of

if TYPE_CHECKING:
    from prefopt.config.run_config import RunConfig
    from prefopt.data.token_table import TokenTable

PACKAGES = ("prefopt", "torch", "transformers", "accelerate", "datasets", "hydra-core", "peft", "safetensors", "numpy")
ESCAPED = re.compile(r"\\([\\'\"()\[\]{}:=, \t])")  # in an override
ROWS = 65_536  # hashed at a time


def manifest(config: RunConfig, prepared: Any, model: Any, checkpoint: Path | None = None) -> Callable[[], None]:
    """What leaves the three files in the run's folder when it is called: enough to repeat the run, and to tell why a
    repetition differs. The facts are those of now.

    A run that goes on from a `checkpoint` keeps the manifest of its beginning, and adds what it goes on with.
    """
    from omegaconf import OmegaConf

    out = config.output_dir
    now = {**setting(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    facts = _earlier(out / "manifest.json") if checkpoint is not None else None
    if facts is None:
        facts = {**now, "data": data_facts(prepared), "weights": weights_fingerprint(model)}
    else:
        facts.setdefault("resumed", []).append({**now, "from": str(checkpoint)})

    def leave() -> None:
        write_text(out / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(redacted(config.plain()))))
        write_json(out / "manifest.json", facts)
        write_lines(out / "rejections.jsonl", [dataclasses.asdict(r) for r in prepared.rejections])

    return leave


def setting() -> dict[str, Any]:
    """Command and where it was given, versions, machine and the state of the user's own code."""
    import torch
    from accelerate import PartialState

    return {
        "command": shlex.join(map(_shown, sys.argv)),
        "folder": str(Path.cwd()),  # relative paths of config.yaml start here
        "versions": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "processes": PartialState().num_processes,
        "git": git_state(Path.cwd()),
    }


def _shown(word: str) -> str:
    """A word of the command without its secrets, also one with characters that are escaped for Hydra."""
    plain = ESCAPED.sub(r"\1", word)
    if redact(plain) != plain and redact(word) == word:
        return word.partition("=")[0] + "=" + HIDDEN
    return redact(word)


def versions() -> dict[str, str | None]:
    """Of the packages that numbers depend on; None where one is not installed."""
    return {package: version_of(package) for package in PACKAGES}


def git_state(folder: Path) -> dict[str, Any] | None:
    """`{"commit", "changed"}` of the repository around a folder, or None where there is none (or no git)."""

    def ask(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def data_facts(prepared: Any) -> dict[str, Any]:
    """Schema, counts, and a hash of the token records of each split."""
    splits = {"train": prepared.train, "eval": prepared.eval}
    hashes = {name: records_fingerprint(table) for name, table in splits.items() if table is not None}
    return {"schema": prepared.schema, "counts": prepared.counts, "records": hashes}


def records_fingerprint(table: TokenTable) -> str:
    """A hash of all that training reads of the records, in their order."""
    import pyarrow as pa
    import pyarrow.compute as pc

    digest = hashlib.sha256()
    for start in range(0, len(table), ROWS):
        part = table.table.take(pa.array(table.rows[start : start + ROWS]))
        plain = [part.column(name).to_pylist() for name in ("id", "kind", "desirable", "scores", "weight")]
        digest.update(json.dumps(plain).encode())
        completions = pc.list_flatten(part.column("completions"))
        counts = pc.list_value_length(part.column("completions"))
        for lists in (part.column("prompt"), completions):
            digest.update(pc.list_value_length(lists).to_numpy().astype("<i8").tobytes())
            digest.update(pc.list_flatten(lists).to_numpy().astype("<i4").tobytes())
        digest.update(counts.to_numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def weights_fingerprint(model: Any) -> str:
    """A hash of all that a model computes from."""
    from prefopt.engine.reference.table import fingerprint

    return fingerprint(model)


def _earlier(path: Path) -> dict[str, Any] | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return kept if isinstance(kept, dict) else None
