"""Runs stages in a row, each from the model of the one before: SFT, then preference tuning.

A stage is a run like any other, in a folder that is named after everything its model depends on. So a later call finds
a finished stage again, an interrupted one resumes from its last checkpoint, and several preference methods share one
SFT.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
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
    config = rounds_as_stages(config)
    check_names(config.stages)
    if config.stages:  # else the run itself does
        for each in (*config.stages.values(), config):
            check_training(each)
    before: dict[str, Any] | None = None
    done: list[dict[str, Any]] = []
    for name, stage in config.stages.items():
        stage = _from(stage, before)
        digest = fingerprint(stage, before["digest"] if before else None)
        folder = Path(config.stages_folder) / f"{name}-{digest}"
        with _locked(folder):
            found = (folder / "summary.json").exists()
            log(f"stage {name}: {stage.loss_name}, {'found in' if found else 'in'} {folder}")
            if not found:
                run(dataclasses.replace(stage, output_dir=folder), log=log)
        before = {"name": name, "digest": digest, "folder": str(folder), "method": stage.loss_name, "found": found}
        done.append(before)
    if done:
        log(f"stage {config.loss_name}: the last, from {done[-1]['folder']}")
    summary = run(dataclasses.replace(_from(config, before), stages={}), log=log)
    if done and is_first_process():
        write_json(config.output_dir / STAGES, done)
    return summary


def _from(config: RunConfig, before: Mapping[str, Any] | None) -> RunConfig:
    """The configuration of a stage, with the model of the stage before it."""
    if before is None:
        return config
    final = str(Path(before["folder"], "final").resolve())  # so that it can be found from any folder
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
