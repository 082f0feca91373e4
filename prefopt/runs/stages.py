"""Runs stages in a row, each from the model of the one before: SFT, then preference tuning.

A stage is a run like any other, in a folder that is named after everything its model depends on. So a later call finds
a finished stage again, an interrupted one resumes from its last checkpoint, and several preference methods share one
SFT.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from prefopt import __version__
from prefopt.common.digest import of_json
from prefopt.common.files import write_json
from prefopt.common.locks import locked
from prefopt.common.processes import is_first_process, process_count
from prefopt.config.effects import Effect, options_with
from prefopt.config.run_config import RunConfig
from prefopt.config.stage_overrides import check_names
from prefopt.errors import UserError
from prefopt.runs.resolve_reward import digest_of_reward
from prefopt.runs.run import check_training, run
from prefopt.runs.sampling_rounds import content_of, rounds_as_stages, state_of_model

STAGES = "stages.json"


def run_stages(
    config: RunConfig, *, log: Callable[[str], None] = print, run: Callable[..., dict[str, Any]] = run
) -> dict[str, Any]:
    """Run the stages of a configuration that are not there yet, then the run itself from the last of them.

    `output_dir` also gets `stages.json`: each stage's name, folder and method, and whether it was found finished.

    Args:
        config: the last run; `config.stages` are run before it.
        log: called with lines for a reader.
        run: runs one stage.

    Returns:
        The summary of the last run.

    Raises:
        UserError, TrainingError: as `prefopt.runs.run.run`; a stage's name cannot be used.
    """
    stages, last = in_a_row(config)
    if stages:  # else the run itself does
        for each in (*(stage.config for stage in stages), last):
            check_training(each)
    done: list[dict[str, Any]] = []
    for stage in stages:
        with _locked(stage.folder):
            found = stage.is_finished()
            log(f"stage {stage.name}: {stage.config.loss_name}, {'found in' if found else 'in'} {stage.folder}")
            if not found:
                run(stage.config, log=log)
        done.append({"name": stage.name, "digest": stage.digest, "folder": str(stage.folder),
                     "method": stage.config.loss_name, "found": found})  # fmt: skip
    if done:
        log(f"stage {last.loss_name}: the last, from {done[-1]['folder']}")
    summary = run(last, log=log)
    if done and is_first_process():
        write_json(last.output_dir / STAGES, done)
    return summary


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageRun:
    """A run before the last.

    Attributes:
        name: as in `config.stages`.
        digest: the fingerprint of everything that its model depends on.
        config: as it runs in `folder`, from the model of the stage before.
    """

    name: str
    digest: str
    config: RunConfig

    @property
    def folder(self) -> Path:
        """Named after the digest, so that every run that needs this stage finds it."""
        return self.config.output_dir

    def is_finished(self) -> bool:
        """Whether an earlier call has left its model."""
        return (self.folder / "summary.json").exists()


def in_a_row(config: RunConfig) -> tuple[list[StageRun], RunConfig]:
    """The stages of a configuration and its last run, each with the model of the one before as its start.

    Raises:
        UserError: a stage's name cannot be used, or the next cannot start from its model.
    """
    config = rounds_as_stages(config)
    check_names(config.stages)
    stages: list[StageRun] = []
    for name, own in config.stages.items():
        started = _from(own, stages[-1] if stages else None)
        digest = fingerprint(started, stages[-1].digest if stages else None)
        folder = Path(config.stages_folder) / f"{name}-{digest}"
        stages.append(StageRun(name=name, digest=digest, config=dataclasses.replace(started, output_dir=folder)))
    last = dataclasses.replace(_from(config, stages[-1] if stages else None), stages={})
    for stage, following in itertools.pairwise([*(stage.config for stage in stages), last]):
        if stage.loss.needs.reward_model and not following.loss.needs.reward_model:
            raise UserError(f"stages: loss={stage.loss_name} trains a reward model, which loss={following.loss_name} "
                            "cannot start from: train it alone, and give its folder as reward=RUN")  # fmt: skip
    return stages, last


def _from(config: RunConfig, before: StageRun | None) -> RunConfig:
    """The configuration of a stage, with the model of the stage before it."""
    if before is None:
        return config
    final = str((before.folder / "final").resolve())  # so that it can be found from any folder
    return dataclasses.replace(config, model=dataclasses.replace(config.model, path=final, revision=None))


def fingerprint(config: RunConfig, before: str | None = None) -> str:
    """The digest of everything that the model of a run depends on: settings, data, the model that it starts from.

    Args:
        config: the configuration of the run.
        before: the fingerprint of the stage whose model it starts from, if there is one.
    """
    facts = options_with(config.plain(), Effect.WEIGHTS)
    del facts["stages"]  # `before` stands for them
    model = config.model
    facts["model"] |= {
        "path": before or state_of_model(model.path, config.data),
        "reference": model.reference and state_of_model(model.reference, config.data),
        "value_model": model.value_model and state_of_model(model.value_model, config.data),
    }
    files = [config.data.path, config.data.eval_path, *(source.path for source in config.data.sources())]
    facts["files"] = [content_of(Path(str(file))) for file in files if file]
    facts["reward_code"] = digest_of_reward(config)
    facts["version"] = __version__
    return of_json(facts, size=6)


def _locked(folder: Path) -> AbstractContextManager[Any]:
    """Let one of several runs that need a stage make it while the others wait.

    The processes of a distributed run make it together.
    """
    if process_count() > 1:
        return nullcontext()
    folder.parent.mkdir(parents=True, exist_ok=True)
    return locked(folder.with_suffix(".lock"), wait=True)
