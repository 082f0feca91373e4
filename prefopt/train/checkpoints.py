"""Checkpoints that are whole or absent: written aside, flushed to disk, renamed; `last` and `best` point at them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from prefopt.common.files import new_folder
from prefopt.errors import PrefoptError, TrainingError, UserError, disk_full, first_line
from prefopt.train.checksums import about, wrong_with

NAME = re.compile(r"checkpoint-(\d+)")


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = [(int(m[1]), p) for p in folder.glob("checkpoint-*") if (m := NAME.fullmatch(p.name)) and p.is_dir()]
    return [p for _, p in sorted(found)]


def last_whole(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint of a run that a resume can start from, or None where the run has no checkpoint.

    What is newer and cannot be used is named, and put aside as `broken-checkpoint-<step>` if it was altered or cut
    short, so that nothing is written over it.

    Args:
        folder: of the run.
        say: called with a line for each checkpoint that is passed over.

    Raises:
        UserError: there are checkpoints, but none can be used.
        TrainingError: one cannot be read now.
    """
    found = checkpoints(folder)
    for checkpoint in reversed(found):
        wrong = wrong_with(checkpoint)
        if wrong is None and about(checkpoint).get("resumable"):
            return checkpoint
        if wrong is None:
            say(f"{checkpoint.name} is passed over: it has weights alone (save_only_model, or within a rollout)")
            continue
        aside = free_name(folder / f"broken-{checkpoint.name}")
        checkpoint.rename(aside)
        say(f"{checkpoint.name} is passed over: {wrong}; it is kept as {aside.name}")
    if found:
        raise UserError(
            f"output_dir={folder} has checkpoints, but none that can be resumed from: choose another folder"
        )
    if broken := sorted(path.name for path in folder.glob("broken-checkpoint-*")):
        raise UserError(f"output_dir={folder} has no checkpoint but broken ones ({', '.join(broken[:3])}): delete them "
                        "to start anew, or choose another folder")  # fmt: skip
    return None


def sweep(folder: Path) -> None:
    """Clear up after a kill: a checkpoint that was being replaced is put back, what was being deleted is deleted."""
    for old in folder.glob("tmp-old-checkpoint-*"):
        target = old.with_name(old.name.removeprefix("tmp-old-"))
        if not target.exists() and wrong_with(old) is None:
            old.rename(target)
        else:
            shutil.rmtree(old, ignore_errors=True)
    for gone in folder.glob("tmp-gone-checkpoint-*"):
        shutil.rmtree(gone, ignore_errors=True)


def free_name(path: Path) -> Path:
    """`path`, or with the first number behind it that is not taken."""
    taken, number = path, 2
    while taken.exists():
        taken, number = path.with_name(f"{path.name}-{number}"), number + 1
    return taken


@contextmanager
def writing(target: Path, *, writes: bool) -> Iterator[Path]:
    """A folder to fill; it becomes `target` when the block ends without an error, and is removed otherwise.

    Args:
        target: the final place.
        writes: whether this process makes the folder and moves it (one of all processes does).

    Raises:
        TrainingError: the disk is full or refuses; what was there before is untouched.
    """
    temporary = target.with_name(f"tmp-{target.name}")  # one name for all processes
    try:
        with new_folder(target, replace=True, temporary=temporary) if writes else nullcontext(temporary) as folder:
            yield folder
    except PrefoptError:
        raise
    except Exception as error:  # each library has its own for a full disk: OSError, RuntimeError, SafetensorError
        remedy = ": free some space and start again" if disk_full(error) else ""
        raise TrainingError(
            f"could not write {target}: {first_line(error)}; earlier checkpoints are untouched{remedy}"
        ) from error


def rotate(folder: Path, keep: int | None, *spared: str | Path | None) -> None:
    """Delete the oldest checkpoints beyond `keep`, but never the newest or one `spared` (folders' paths)."""
    sweep(folder)
    if not keep:
        return
    found = checkpoints(folder)
    spare = {found[-1].name} if found else set()
    spare |= {Path(path).name for path in spared if path} & {path.name for path in found}
    for old in found:
        if len(checkpoints(folder)) <= max(keep, len(spare)):
            return
        if old.name not in spare:
            # Out of sight first: a deletion that is cut short must not leave half a checkpoint behind.
            gone = old.with_name(f"tmp-gone-{old.name}")
            old.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
