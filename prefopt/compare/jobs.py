"""Defines a job, one training run and its measurement, and keeps its result under a key of all that it depends on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from prefopt.common.digest import of_files, of_json, source_files
from prefopt.common.files import new_folder, write_json
from prefopt.common.versions import version_of
from prefopt.compare.spec import MeasureConfig, RewardChange, Split
from prefopt.config.effects import Effect, groups_with
from prefopt.config.run_config import RunConfig
from prefopt.losses import registry

Status = Literal["ok", "diverged", "failed"]
RESULT, ARRAYS = "result.json", "arrays.safetensors"
VERSIONS = ("prefopt", "torch", "transformers", "accelerate")
MEASUREMENT = 4  # raise it when a figure or an array of a measurement changes its meaning


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """One training run and its measurement.

    Attributes:
        method: the row it belongs to.
        label: its name in messages.
        config: the configuration of the run; its `output_dir` plays no part.
        fingerprints: digests of the records, of the weights that training starts from, and of judge and tasks.
        measure: how the model is measured.
        split: the prompts it is measured on.
        trained: False measures the model as it starts.
        sides_swapped: train on records with chosen and rejected exchanged.
        reward_change: train on changed rewards of samples.
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
    reward_change: RewardChange = ""
    setting: dict[str, float] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """A digest of everything that its numbers depend on, and nothing else: the name of its folder."""
        config = groups_with(self.config.plain(), Effect.WEIGHTS, Effect.MEASUREMENT)
        if not self.trained:
            config = {name: config[name] for name in ("model", "data", "evaluation", "batch")}
        content = {
            "config": config,
            "fingerprints": self.fingerprints,
            "measure": [MEASUREMENT, dataclasses.asdict(self.measure)],
            "split": self.split,
            "kind": [self.trained, self.sides_swapped],
            "versions": {package: version_of(package) for package in VERSIONS},
        }
        if self.reward_change:
            content["reward"] = self.reward_change
        if self.trained and (code := code_of(self.config.loss, self.config.loss_name)):
            content["code"] = code
        return of_json(content)


@dataclass(frozen=True, eq=False, kw_only=True)
class JobResult:
    """The result of a job.

    Attributes:
        status: `ok`; `diverged`: the run itself went wrong and would again; or `failed`: something around it did (a
            killed process, a missing file), so the next call tries again.
        reason: why, in one line.
        figures, arrays, texts: see `prefopt.compare.spec.Measurement`.
        curve: the figures logged during training, by step.
        cost: `train_seconds`, `processor_seconds`, `measure_seconds`, `job_seconds`, `tokens` (of the steps),
            `tokens_sampled`, `tokens_scored`, `labels`, `reward_model_seconds`, `steps`, `peak_memory_mib`, and of the
            reference pass `reference_seconds` and `reference_texts`. Of a loss that reads no reference, a pass for the
            curves is `figures_seconds` and `figures_texts`, and of these only `job_seconds` includes it.
        warnings: what weakens it, as sentences.
        kept: it was read from an earlier call's folder.
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
        """Whether a model was measured."""
        return self.status == "ok"

    def plain(self) -> dict[str, Any]:
        """Return everything but the arrays as JSON values; numbers that are not finite become null."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("arrays", "kept")}
        cleaned: dict[str, Any] = finite(fields)
        return cleaned


def failure(job: Job, status: Status, reason: str, cost: dict[str, float] | None = None) -> JobResult:
    """Return the result of a job without a measured model."""
    line = " ".join(reason.split())[:500]
    return JobResult(
        key=job.key, method=job.method, label=job.label, status=status, reason=line, setting=job.setting,
        cost=cost or {},
    )  # fmt: skip


def save(folder: Path, result: JobResult) -> None:
    """Write a result to `folder`/KEY, whole or not at all; it replaces a failed one."""
    target = folder / result.key
    with new_folder(target, replace=True) as temporary:
        if result.arrays:
            arrays = {name: np.ascontiguousarray(a, dtype=np.float64) for name, a in result.arrays.items()}
            save_file(arrays, temporary / ARRAYS)
        write_json(temporary / RESULT, result.plain())


def load(folder: Path, job: Job, *, failed: bool = False) -> JobResult | None:
    """Read the kept result of a job, under the job's present name; None if it must run (again).

    Args:
        folder: where the results are.
        job: the job.
        failed: return a failed result, too.
    """
    target = folder / job.key
    try:
        plain = json.loads((target / RESULT).read_text(encoding="utf-8"))
        arrays = load_file(target / ARRAYS) if (target / ARRAYS).exists() else {}
        known = {f.name for f in dataclasses.fields(JobResult)} - {"arrays", "kept"}
        plain["figures"] = {name: math.nan if v is None else float(v) for name, v in plain["figures"].items()}
        result = JobResult(arrays=arrays, **{name: value for name, value in plain.items() if name in known})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError):
        return None
    if result.key != job.key or (result.status == "failed" and not failed):
        return None
    return dataclasses.replace(result, method=job.method, label=job.label, setting=job.setting, kept=True)


def finite(value: Any) -> Any:
    """Replace numbers that are not finite by None, which JSON can hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def code_of(loss: Any, name: str) -> dict[str, str]:
    """Version and source of a loss from outside prefopt, whose own losses go with its version; empty for those."""
    if _package(type(loss)) == "prefopt":
        return {}
    known = {"prefopt", *sys.stdlib_module_names}
    files = source_files(cls.__module__ for cls in type(loss).__mro__ if _package(cls) not in known)
    found = {"source": of_files(files)}
    with contextlib.suppress(KeyError):  # not registered: made in Python
        if installed := version_of(registry.package_of(name)):
            found["version"] = installed
    return found


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]
