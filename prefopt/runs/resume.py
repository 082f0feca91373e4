"""Finds the checkpoint that a run resumes from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from prefopt.common.processes import from_first_process
from prefopt.errors import UserError
from prefopt.train.checkpoints import checkpoints, last_whole, sweep
from prefopt.train.checksums import about, wrong_with


def checkpoint_to_resume(out: Path, resume: str, log: Callable[[str], None]) -> Path | None:
    """Find the checkpoint to resume from; in a distributed run all processes get the first one's answer.

    Args:
        out: the folder of the run.
        resume: `auto`, `never`, or a checkpoint folder.
        log: called with what was found.

    Raises:
        UserError: the folder has a finished run or later checkpoints, or the checkpoint is missing or was altered.
        TrainingError: a checkpoint cannot be read now.
    """
    return from_first_process(lambda: _checkpoint(out, resume, log))


def _checkpoint(out: Path, resume: str, log: Callable[[str], None]) -> Path | None:
    if (out / "summary.json").exists():
        raise UserError(f"output_dir={out} already has a finished run: choose another folder, or delete it")
    sweep(out)
    if resume not in ("auto", "never"):
        folder = Path(resume)
        if not (folder / "trainer_state.json").is_file():
            raise UserError(f"resume={resume}: there is no checkpoint in that folder")
        if wrong := wrong_with(folder):
            raise UserError(f"resume={resume}: {wrong}; take another checkpoint, or resume=auto for the last good one")
        if not about(folder).get("resumable"):
            raise UserError(f"resume={resume}: it has weights alone; give them as model.path to start from them")
        step = _step_of(folder, resume)
        if later := [c.name for c in checkpoints(out) if int(c.name.rpartition("-")[2]) > step]:
            raise UserError(f"resume={resume}: output_dir={out} has later checkpoints ({', '.join(later[:3])}), which "
                            "would be written over: choose another output_dir, or move or delete them")  # fmt: skip
        log(f"resume={resume}: resuming from it")
        return folder
    if resume == "auto":
        found = last_whole(out, log)
        if found:
            log(f"resume=auto: resuming from {found}")
        elif (out / "manifest.json").exists():
            log(f"resume=auto: an earlier run in {out} left no checkpoint; starting anew")
        return found
    if checkpoints(out):
        raise UserError(f"resume=never, but output_dir={out} has checkpoints: choose another folder, or delete them")
    return None


def _step_of(checkpoint: Path, resume: str) -> int:
    """The step after which a checkpoint was written, whatever its folder is called."""
    try:
        return int(json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"resume={resume}: its trainer_state.json has no step; take another checkpoint") from error
