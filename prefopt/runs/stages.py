"""Several runs in a row, each from the model that the one before left: SFT, then preference tuning.

A stage is a run like any other, with a folder of its own that is named after everything its model depends on. So a
finished stage is found again by every later call that asks for the same, an interrupted one goes on from its last
checkpoint, and another preference method behind the same SFT pays for the SFT once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from prefopt import __version__
from prefopt.common.digest import of_file, of_json
from prefopt.common.files import write_json
from prefopt.common.locks import locked
from prefopt.common.processes import is_first_process, process_count
from prefopt.config.effects import Effect, options_with
from prefopt.config.run_config import RunConfig
from prefopt.config.stages import refuse_names
from prefopt.runs.resolve import resolve_path
from prefopt.runs.run import run

STAGES = "stages.json"


def run_stages(
    config: RunConfig, *, log: Callable[[str], None] = print, run: Callable[..., dict[str, Any]] = run
) -> dict[str, Any]:
    """Run the stages of a configuration that are not there yet, then the run itself from the last of them.

    Besides what `run` leaves, `output_dir` gets `stages.json`: each stage's name, folder and method, and whether it
    was found finished.

    Args:
        config: the last run; `config.stages` are run before it.
        log: called with lines for a reader.
        run: runs one stage.

    Returns:
        The summary of the last run.

    Raises:
        UserError, TrainingError: as `prefopt.runs.run.run`; a name that cannot be that of a stage.
    """
    refuse_names(config.stages)
    before: dict[str, Any] | None = None
    done: list[dict[str, Any]] = []
    for name, stage in config.stages.items():
        stage = _from(stage, before)
        digest = fingerprint(stage, before["digest"] if before else None)
        folder = Path(config.stages_folder) / f"{name}-{digest}"
        with _alone(folder):
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
    """A stage's configuration with the model that the stage before it left."""
    if before is None:
        return config
    final = str(Path(before["folder"], "final").resolve())  # found from any folder, later
    return dataclasses.replace(config, model=dataclasses.replace(config.model, path=final, revision=None))


def fingerprint(config: RunConfig, before: str | None = None) -> str:
    """A hash of all that the model which a run leaves depends on: settings, data, the model that it starts from.

    Args:
        config: of the run.
        before: the fingerprint of the stage whose model it starts from, if there is one.
    """
    facts = options_with(config.plain(), Effect.WEIGHTS)
    del facts["stages"]  # `before` stands for them
    facts["model"] |= {"path": before or _model(config.model.path), "reference": None}
    files = [config.data.path, config.data.eval_path, *(source.path for source in config.data.sources())]
    facts["files"] = [_content(Path(str(file))) for file in files if file]
    facts["version"] = __version__
    return of_json(facts, size=6)


def _model(path: str) -> Any:
    """A model by its files; a hub id by its name."""
    folder = Path(resolve_path(path))
    if not folder.is_dir():
        return path
    return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in sorted(folder.iterdir()) if f.is_file()]


def _content(path: Path) -> Any:
    """Data by what is in its files, wherever they lie; a hub set by its name."""
    if path.is_dir():
        return [_content(file) for file in sorted(path.rglob("*")) if file.is_file()]
    if not path.is_file():
        return str(path)
    return of_file(path)


def _alone(folder: Path) -> AbstractContextManager[Any]:
    """Of several runs that need a stage at once one makes it, and the others wait for it.

    Processes of one run (torchrun) make it together.
    """
    if process_count() > 1:
        return nullcontext()
    folder.parent.mkdir(parents=True, exist_ok=True)
    return locked(folder.with_suffix(".lock"), wait=True)
