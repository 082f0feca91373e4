"""A job: one training run and its measurement, in a folder named after everything that its numbers depend on."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from prefopt.compare.spec import MeasureConfig, Split
from prefopt.folder import write_json

if TYPE_CHECKING:
    from prefopt.run import RunConfig

Status = Literal["ok", "diverged", "failed"]
RESULT, ARRAYS = "result.json", "arrays.safetensors"
# change no number
IRRELEVANT = ("output_dir", "tracking", "resume", "reference_folder", "progress", "sentinels", "stages_folder")
VERSIONS = ("prefopt", "torch", "transformers", "accelerate")


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """One training run and its measurement.

    Attributes:
        method: the row that it belongs to.
        label: what a person calls it.
        config: of the run; its `output_dir` plays no part.
        fingerprints: of the records and of the weights that training starts from.
        measure: how the model is measured.
        split: on which prompts.
        trained: False measures the model as it starts.
        sides_swapped: train on the records turned round.
        setting: what was searched over, for tables.
    """

    method: str
    label: str
    config: RunConfig
    fingerprints: dict[str, str]
    measure: MeasureConfig
    split: Split
    trained: bool = True
    sides_swapped: bool = False
    setting: dict[str, float] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """The name of its folder: the content of everything that its numbers depend on, and nothing else."""
        config = {name: value for name, value in self.config.plain().items() if name not in IRRELEVANT}
        if not self.trained:
            config = {name: config[name] for name in ("model", "data", "evaluation", "batch")}
        content = {
            "config": config,
            "fingerprints": self.fingerprints,
            "measure": dataclasses.asdict(self.measure),
            "split": self.split,
            "kind": [self.trained, self.sides_swapped],
            "versions": {package: version(package) for package in VERSIONS},
        }
        text = json.dumps(content, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """What a job left behind.

    Attributes:
        status: `ok`; `diverged`, the run itself went wrong, which a repetition would do again; or `failed`, something
            around it did (a killed process, a missing file), which the next call tries again.
        reason: why, in one line.
        figures, arrays, texts: of the measurement, see `prefopt.compare.spec.Measured`.
        curve: the figures that training logged, by step.
        cost: `train_seconds`, `measure_seconds`, `tokens`, `steps`, `peak_memory_mib`.
        kept: it was there from before.
    """

    key: str
    method: str
    label: str
    status: Status
    reason: str = ""
    setting: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    arrays: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    texts: list[dict[str, Any]] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)
    cost: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    kept: bool = False

    @property
    def ok(self) -> bool:
        """Whether there is a measured model."""
        return self.status == "ok"

    def plain(self) -> dict[str, Any]:
        """Everything but the arrays, as JSON values; what is not finite is null."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("arrays", "kept")}
        cleaned: dict[str, Any] = finite(fields)
        return cleaned


def failure(job: Job, status: Status, reason: str, cost: dict[str, float] | None = None) -> Result:
    """The result of a job without a measured model."""
    line = " ".join(reason.split())[:500]
    return Result(
        key=job.key, method=job.method, label=job.label, status=status, reason=line, setting=job.setting,
        cost=cost or {},
    )  # fmt: skip


def save(folder: Path, result: Result) -> None:
    """Put a result into `folder`/KEY; it appears whole, by a rename, and replaces one that failed."""
    from safetensors.numpy import save_file

    target = folder / result.key
    temporary = folder / f"tmp-{result.key}-{uuid.uuid4().hex}"
    temporary.mkdir(parents=True)
    try:
        if result.arrays:
            arrays = {name: np.ascontiguousarray(a, dtype=np.float64) for name, a in result.arrays.items()}
            save_file(arrays, temporary / ARRAYS)
        write_json(temporary / RESULT, result.plain())
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load(folder: Path, job: Job, *, failed: bool = False) -> Result | None:
    """The kept result of a job under its present name, or None: it must be run (again).

    Args:
        folder: of the results.
        job: what was run.
        failed: give one that failed, too.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    target = folder / job.key
    try:
        plain = json.loads((target / RESULT).read_text(encoding="utf-8"))
        arrays = load_file(target / ARRAYS) if (target / ARRAYS).exists() else {}
        known = {f.name for f in dataclasses.fields(Result)} - {"arrays", "kept"}
        plain["figures"] = {name: math.nan if v is None else float(v) for name, v in plain["figures"].items()}
        result = Result(arrays=arrays, **{name: value for name, value in plain.items() if name in known})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError):
        return None
    if result.key != job.key or (result.status == "failed" and not failed):
        return None
    return dataclasses.replace(result, method=job.method, label=job.label, setting=job.setting, kept=True)


def finite(value: Any) -> Any:
    """The value with numbers that are not finite turned into None, as JSON wants."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def sweep_leftovers(folder: Path) -> None:
    """Remove what killed processes left half-written."""
    for leftover in folder.glob("tmp-*") if folder.is_dir() else ():
        shutil.rmtree(leftover, ignore_errors=True)


def digest_of_records(*tables: Any) -> str:
    """A hash of all that training and evaluation read of token records: ids, tokens, labels, scores, weights."""
    digest = hashlib.blake2b(digest_size=12)
    for table in tables:
        for record in table if table is not None else ():
            facts = [record.id, record.kind.value, record.desirable, record.scores, record.weight]
            digest.update(json.dumps(facts).encode())
            for ids in (record.prompt, *record.completions):
                digest.update(len(ids).to_bytes(4, "little") + ids.astype("<i4").tobytes())
    return digest.hexdigest()


def digest_of_weights(path: str) -> str:
    """A hash of a model folder's files, or for a hub id its name: the revision is in the configuration."""
    folder = Path(path)
    if not folder.is_dir():
        return path
    digest = hashlib.blake2b(digest_size=12)
    for file in sorted(_weights_and_configs(folder)):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _weights_and_configs(folder: Path) -> Iterable[Path]:
    return (f for f in folder.iterdir() if f.suffix in (".safetensors", ".json", ".jinja") and f.is_file())


def peak_memory_mib() -> float:
    """The most memory that this process, or its GPU, has held since `reset_peak_memory`, in MiB."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        status = Path("/proc/self/status").read_text()
        return float(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) / 1024
    except (OSError, StopIteration):
        return float("nan")


def reset_peak_memory() -> None:
    """Start the peak afresh, where the system can (Linux: 5 into clear_refs resets the high-water mark)."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif os.path.exists("/proc/self/clear_refs"):
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
