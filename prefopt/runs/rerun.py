"""A run again, from what its folder says, and whether the numbers are the same."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.common.redact import redacted
from prefopt.errors import PrefoptError, UserError, first_line
from prefopt.runs.manifest import setting
from prefopt.runs.read import RunFolder, is_run

if TYPE_CHECKING:
    from prefopt.config.run_config import RunConfig

# Figures of the machine's day, not of the run.
TIMES = re.compile(r"runtime|per_second|seconds|memory")
# What two repetitions of one run may differ in.
OF_THE_REPETITION = ("output_dir", "resume")
SETTING = ("versions", "python", "platform", "device", "threads", "processes", "git")


@dataclass(frozen=True)
class Comparison:
    """What two runs have in common: `figures` that were compared, and every difference as a line."""

    figures: int
    differences: tuple[str, ...]

    @property
    def identical(self) -> bool:
        """Whether every figure, text and weight is the same, bit for bit."""
        return self.figures > 0 and not self.differences


def config_of(folder: Path, output_dir: Path) -> RunConfig:
    """The configuration of a run, for another folder; tracking, which changes no number, is left out.

    Raises:
        UserError: it has no configuration, or one that this version cannot read.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from prefopt.config.compose import schemas
    from prefopt.config.run_config import RunConfig
    from prefopt.losses import registry

    kept = RunFolder.open(folder).located
    try:
        given = {k: v for k, v in kept["loss"].items() if k != "name"}
        name = kept["loss"]["name"]
        groups = {group: kept[group] for group in schemas() if group in kept and group not in ("trainer", "tracking")}
        plain = {"seed": int(kept["seed"]), "reference_folder": kept.get("reference_folder"), "resume": "never"}
        if not isinstance(plain["reference_folder"], str | None):
            raise TypeError("reference_folder is no path")
        trainer = dict(kept["trainer"])
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{folder}/config.yaml is not a run's configuration ({type(error).__name__}: {error})"
        ) from error
    try:
        loss = OmegaConf.to_object(OmegaConf.merge(schemas(loss=name)["loss"], given))
        objects = {g: OmegaConf.to_object(OmegaConf.merge(schemas()[g], section)) for g, section in groups.items()}
        typed: Any = OmegaConf.to_container(OmegaConf.merge(schemas()["trainer"], trainer))
    except PrefoptError:
        raise
    except (OmegaConfBaseException, TypeError, ValueError, OverflowError, AttributeError, LookupError) as error:
        raise UserError(f"{folder}/config.yaml: {first_line(error)}") from error
    for needed in ("model", "data"):
        if needed not in objects:
            raise UserError(f"{folder}/config.yaml is not a run's configuration (it has no {needed})")
    assert name in registry.names()
    trainer = {key: typed[key] for key in trainer}
    return RunConfig(loss=loss, loss_name=name, output_dir=output_dir, trainer=trainer, **plain, **objects)  # type: ignore[arg-type]


def rerun(
    folder: Path, output_dir: Path, *, trust_remote_code: bool = False, say: Callable[[str], None] = print
) -> Comparison:
    """Run it again, and compare. A repetition that was interrupted goes on from its last checkpoint.

    Args:
        folder: of a finished run.
        output_dir: of its repetition.
        trust_remote_code: run the model's own code if the run did; its folder may be somebody else's.
        say: called with lines for a person.

    Raises:
        UserError: the run cannot be repeated, or another run is in `output_dir`.
    """
    from prefopt.runs.run import run

    before = RunFolder.open(folder)
    if not before.summary:
        raise UserError(f"the run in {folder} has not ended: there is nothing to compare a repetition with")
    config = config_of(folder, output_dir)
    if config.model.trust_remote_code and not trust_remote_code:
        raise UserError(f"{folder} has model.trust_remote_code=true, which runs code of its model's author: give "
                        "--trust-remote-code if you trust them")  # fmt: skip
    if is_run(output_dir):  # else checkpoints there are of nobody knows what, and refused
        if not is_repetition(output_dir, config):
            raise UserError(f"--output-dir={output_dir} has another run: choose another folder, or delete it")
        config = dataclasses.replace(config, resume="auto")
    for line in differences_of(before.manifest, setting(), SETTING):
        say(f"warning: other than then: {line}")
    run(config, say=say)
    return compare(folder, output_dir)


def is_repetition(folder: Path, config: RunConfig) -> bool:
    """Whether the run in `folder`, finished or not, has this configuration."""
    try:
        kept = RunFolder.open(folder).config
    except UserError:
        return False
    wanted = config.plain()

    def written(value: Any) -> str:
        return json.dumps(redacted(value), sort_keys=True)

    return all(written(kept.get(key)) == written(wanted[key]) for key in wanted if key not in OF_THE_REPETITION)


def folder_for(folder: Path) -> Path:
    """Where a repetition of a run goes: `FOLDER-rerun`, or with the first number behind it that is free or has a
    repetition of this run that was interrupted.

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


def compare(folder: Path, other: Path) -> Comparison:
    """Two finished runs: what they started from, every figure of every step, texts, weights."""
    from prefopt.train.checksums import checksums

    one, two = RunFolder.open(folder), RunFolder.open(other)
    found = list(differences_of(one.manifest, two.manifest, ("data", "weights")))
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
    return Comparison(sum(map(len, rows[0])), tuple(found))


def differences_of(one: Any, other: Any, names: tuple[str, ...] | list[str]) -> Iterator[str]:
    """`name: value, and value` for each that is not the same in both; dicts entry by entry."""
    for name in names:
        a, b = one.get(name), other.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from (f"{name}.{line}" for line in differences_of(a, b, sorted(a.keys() | b.keys())))
        elif a != b:
            yield f"{name}: {json.dumps(a)}, and {json.dumps(b)}"


def _timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if not TIMES.search(k)} for line in lines]


def shown(comparison: Comparison, most: int = 10) -> list[str]:
    """The comparison in lines for a person."""
    if comparison.identical:
        return [f"identical: {comparison.figures:,} figures, the texts and the weights, bit for bit"]
    lines = [f"not identical: {len(comparison.differences)} differences"]
    rest = len(comparison.differences) - most
    return (
        lines + [f"  {line}" for line in comparison.differences[:most]] + ([f"  and {rest} more"] if rest > 0 else [])
    )
