"""Repeats a run from its folder, and compares the numbers."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.common.redact import redacted
from prefopt.config.effects import Effect, options_with
from prefopt.config.grammar import value_of
from prefopt.config.run_config import RunConfig
from prefopt.errors import UserError
from prefopt.runs.manifest import setting
from prefopt.runs.run import run
from prefopt.runs.run_folder import RunFolder
from prefopt.runs.run_path import is_run
from prefopt.train.checksums import checksums

# Figures that depend on the machine, not on the run.
TIMES = re.compile(r"runtime|per_second|seconds|memory")
SETTING = ("versions", "python", "platform", "device", "threads", "processes", "git")


@dataclass(frozen=True)
class RunComparison:
    """How many figures of two runs were compared, and every difference as a line."""

    figures: int
    differences: tuple[str, ...]

    @property
    def identical(self) -> bool:
        """Whether all figures, texts and weights are the same, bit for bit."""
        return self.figures > 0 and not self.differences


def config_of(folder: Path, output_dir: Path) -> RunConfig:
    """The configuration of a run, for another folder; tracking, which changes no number, is left out.

    Raises:
        UserError: it has no configuration, or one that this version cannot read.
    """
    run = RunFolder.open(folder)
    return run.run_config(f"output_dir={value_of(str(output_dir))}", "resume=never", "tracking=none")


def rerun(
    folder: Path,
    output_dir: Path,
    *,
    trust_remote_code: bool = False,
    log: Callable[[str], None] = print,
    run: Callable[..., dict[str, Any]] = run,
) -> RunComparison:
    """Repeat a run and compare the numbers. A repetition that was interrupted resumes from its last checkpoint.

    Args:
        folder: the folder of a finished run.
        output_dir: the folder of its repetition.
        trust_remote_code: run the model's own code if the run did; its folder may be somebody else's.
        log: called with lines for a reader.
        run: runs it.

    Raises:
        UserError: the run cannot be repeated, such as with other records or weights, or another run is in `output_dir`.
    """
    before = RunFolder.open(folder)
    if not before.summary:
        raise UserError(f"the run in {folder} has not ended: there is nothing to compare a repetition with")
    config = config_of(folder, output_dir)
    if config.model.trust_remote_code and not trust_remote_code:
        raise UserError(f"{folder} has model.trust_remote_code=true, which runs code of its model's author: give "
                        "--trust-remote-code if you trust them")  # fmt: skip
    if is_run(output_dir):  # else checkpoints in it are of an unknown run, and an error
        if not is_repetition(output_dir, config):
            raise UserError(f"--output-dir={output_dir} has another run: choose another folder, or delete it")
        config = dataclasses.replace(config, resume="auto")
    for line in differences_of(before.manifest, setting(), SETTING):
        log(f"warning: the setting differs: {line}")
    run(config, log=log, repeats=before.manifest)
    return compare(folder, output_dir)


def is_repetition(folder: Path, config: RunConfig) -> bool:
    """Whether the run in `folder`, finished or not, has this configuration, its output aside."""
    try:
        kept = RunFolder.open(folder).config
    except UserError:
        return False
    effects = (Effect.WEIGHTS, Effect.MEASUREMENT, Effect.SPEED)
    return bool(options_with(kept, *effects) == redacted(options_with(config.plain(), *effects)))


def folder_for(folder: Path) -> Path:
    """The folder for a repetition: `FOLDER-rerun`, or with the first number that is free or has one to resume.

    Raises:
        UserError: as `config_of`.
    """
    whole = folder.resolve()
    first = (folder if folder.name == whole.name else whole).with_name(f"{whole.name}-rerun")
    config = config_of(folder, first)
    found, number = first, 2
    while found.exists() and ((found / "summary.json").exists() or not is_repetition(found, config)):
        found, number = first.with_name(f"{first.name}-{number}"), number + 1
    return found


def compare(folder: Path, other: Path) -> RunComparison:
    """Compare two finished runs: their data and initial weights, every figure of every step, texts, final weights."""
    one, two = RunFolder.open(folder), RunFolder.open(other)
    start, other_start = _starts(one, two)
    found = list(differences_of(start, other_start, ("data", "weights")))
    rows = [_timeless(run.metrics) for run in (one, two)]
    if len(rows[0]) != len(rows[1]):
        found.append(f"metrics.jsonl has {len(rows[0])} lines, and {len(rows[1])}")
    for a, b in zip(*rows, strict=False):
        found += [f"step {a.get('step')}: {line}" for line in differences_of(a, b, sorted(a.keys() | b.keys()))]
    for name in ("samples.jsonl", "heldout.jsonl"):
        if one.lines(name) != two.lines(name):
            found.append(f"{name} differs")
    weights = [sorted(p.name for p in run.final.glob("*.safetensors")) for run in (one, two)]
    if weights[0] != weights[1] or checksums(one.final, weights[0]) != checksums(two.final, weights[1]):
        found.append("the weights in final/ differ")
    return RunComparison(sum(map(len, rows[0])), tuple(found))


def _starts(*runs: RunFolder) -> list[dict[str, Any]]:
    """The data and the weights that runs started from; without digests of records where some are of an older kind."""
    data = [dict(run.manifest.get("data", {})) for run in runs]
    if len({len(digest) for facts in data for digest in facts.get("records", {}).values()}) > 1:
        data = [facts | {"records": None} for facts in data]
    return [{"data": d, "weights": run.manifest.get("weights")} for d, run in zip(data, runs, strict=True)]


def differences_of(one: Any, other: Any, names: tuple[str, ...] | list[str]) -> Iterator[str]:
    """A line `name: value, and value` for each name whose values differ; dicts entry by entry."""
    for name in names:
        a, b = one.get(name), other.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from (f"{name}.{line}" for line in differences_of(a, b, sorted(a.keys() | b.keys())))
        elif a != b:
            yield f"{name}: {json.dumps(a)}, and {json.dumps(b)}"


def _timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if not TIMES.search(k)} for line in lines]


def shown(comparison: RunComparison, most: int = 10) -> list[str]:
    """The comparison in lines for a reader."""
    if comparison.identical:
        return [f"identical: {comparison.figures:,} figures, the texts and the weights, bit for bit"]
    lines = [f"not identical: {len(comparison.differences)} differences"]
    rest = len(comparison.differences) - most
    return (
        lines + [f"  {line}" for line in comparison.differences[:most]] + ([f"  and {rest} more"] if rest > 0 else [])
    )
