"""Describes what a run depends on: `config.yaml`, `manifest.json` and `rejections.jsonl` in its folder."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from omegaconf import OmegaConf

from prefopt.common import digest
from prefopt.common.files import write_json, write_lines, write_text
from prefopt.common.redact import HIDDEN, redact, redacted
from prefopt.common.versions import version_of
from prefopt.config.effects import Effect, options_with
from prefopt.config.run_config import RunConfig
from prefopt.data.jinja_source import template_source
from prefopt.data.prepare import Prepared
from prefopt.data.tokenize import digest_of_tokenizer
from prefopt.engine.reference.fingerprint import fingerprint
from prefopt.errors import UserError
from prefopt.train.run_identity import differences

MANIFEST = "manifest.json"
PACKAGES = ("prefopt", "torch", "transformers", "accelerate", "datasets", "hydra-core", "peft", "safetensors", "numpy")
ESCAPED = re.compile(r"\\([\\'\"()\[\]{}:=, \t])")  # in an override


def manifest(
    config: RunConfig, prepared: Prepared, start: Mapping[str, Any], checkpoint: Path | None = None
) -> dict[str, Any]:
    """The facts that it takes to repeat a run, and to tell why a repetition differs.

    A run that resumes from a `checkpoint` keeps the manifest of its start, and adds the present setting.

    Args:
        config: of the run.
        prepared: its data.
        start: what it starts from (`start_of`).
        checkpoint: the one to resume from.
    """
    now = {**setting(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    earlier = _read(config.output_dir / MANIFEST) if checkpoint is not None else None
    if earlier is None:
        return {**now, "data": data_facts(prepared), **start}
    resumed = [*earlier.get("resumed", []), {**now, "from": str(checkpoint)}]
    return {**earlier, "resumed": resumed}


def id_of(folder: Path, checkpoint: Path | None) -> str:
    """The name of a run for trackers: its own, or that of the run in its folder which resumes from a checkpoint."""
    earlier = _read(folder / MANIFEST) if checkpoint is not None else None
    return str((earlier or {}).get("run_id") or uuid.uuid4().hex[:12])


def start_of(config: RunConfig, tokenizer: Any, model: Any) -> dict[str, Any]:
    """The facts of the model that a run starts from, and the options that gave it and the records."""
    chosen = options_with(redacted(config.plain()), Effect.WEIGHTS)
    origin = {f"{group}.{name}": value for group in ("data", "model") for name, value in chosen[group].items()}
    template = digest.of_json(template_source(config.data.template, tokenizer), size=4)
    origin["data.template"] = f"{config.data.template} (with the digest {template})"
    return {"weights": fingerprint(model), "tokenizer": digest_of_tokenizer(tokenizer), "origin": origin}


def check_repetition(now: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Raise UserError where a repetition has not the records, tokenizer or weights of the run that it repeats.

    Args:
        now: the manifest of the repetition.
        before: that of the run; what it does not have, or has as another kind of digest, cannot be compared.
    """
    one, other = _identity(before), _identity(now)
    for name in ("tokens", "held_out_tokens"):
        if len(str(one.get(name))) != len(str(other.get(name))):
            one.pop(name, None)
    if said := differences(one, other):
        raise UserError(f"the run cannot be repeated: it was made with {' and '.join(said)}; bring back what it was "
                        "made with, or start a new run (prefopt train)")  # fmt: skip


def _identity(manifest: Mapping[str, Any]) -> dict[str, Any]:
    records = manifest.get("data", {}).get("records", {})
    names = {"tokens": records.get("train"), "held_out_tokens": records.get("eval")}
    facts = {name: manifest.get(name) for name in ("tokenizer", "weights", "origin")}
    return {name: value for name, value in {**names, **facts}.items() if value is not None}


def write_record(config: RunConfig, prepared: Prepared, manifest: dict[str, Any]) -> None:
    """Write the three files."""
    out = config.output_dir
    write_text(out / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(redacted(config.plain()))))
    write_json(out / MANIFEST, manifest)
    write_lines(out / "rejections.jsonl", [dataclasses.asdict(r) for r in prepared.rejections])


def setting() -> dict[str, Any]:
    """The command, the folder it was given in, versions, machine, and the state of the user's own code."""
    return {
        "command": _command(),
        "folder": str(Path.cwd()),  # relative paths of config.yaml start here
        "versions": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "processes": PartialState().num_processes,
        "git": git_state(Path.cwd()),
    }


def _command() -> str:
    """The command as it can be pasted; for Hydra the name of the program is `prefopt train`, two words."""
    program, *words = sys.argv
    names = program.split() if program.startswith("prefopt ") else [program]
    return shlex.join(map(_without_secrets, [*names, *words]))


def _without_secrets(word: str) -> str:
    """A word of the command without its secrets, also where characters are escaped for Hydra."""
    plain = ESCAPED.sub(r"\1", word)
    if redact(plain) != plain and redact(word) == word:
        return word.partition("=")[0] + "=" + HIDDEN
    return redact(word)


def versions() -> dict[str, str | None]:
    """The versions of the packages that numbers depend on; None where one is not installed."""
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


def data_facts(prepared: Prepared) -> dict[str, Any]:
    """Schema, counts, and a digest of the token records of each split."""
    splits = {"train": prepared.train, "eval": prepared.eval}
    digests = {name: digest.of_records(table) for name, table in splits.items() if table is not None}
    return {"schema": prepared.schema, "counts": prepared.counts, "records": digests}


def _read(path: Path) -> dict[str, Any] | None:
    """The manifest of the start of a run; None where a kill left none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
