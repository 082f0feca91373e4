"""Checkpoints that are whole or absent: written aside, flushed to disk, renamed; `last` and `best` point at them."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefopt.engine.plan import Lengths
from prefopt.engine.store import flush
from prefopt.errors import PrefoptError, TrainingError, UserError
from prefopt.trainer.checksums import about, wrong_with

IDENTITY = "run.json"
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
    """
    found = checkpoints(folder)
    for checkpoint in reversed(found):
        wrong = wrong_with(checkpoint)
        if wrong is None and about(checkpoint).get("resumable"):
            sweep(folder)
            return checkpoint
        if wrong is None:
            say(f"{checkpoint.name} is passed over: it has weights alone (trainer.save_only_model)")
            continue
        aside = free_name(folder / f"broken-{checkpoint.name}")
        checkpoint.rename(aside)
        say(f"{checkpoint.name} is passed over: {wrong}; it is kept as {aside.name}")
    if found:
        raise UserError(
            f"output_dir={folder} has checkpoints, but none that can be resumed from: choose another folder"
        )
    return None


def sweep(folder: Path) -> None:
    """Delete what deletions that were cut short left."""
    for gone in folder.glob("tmp-old-checkpoint-*"):
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
    tmp = target.with_name(f"tmp-{target.name}")
    try:
        if writes:
            shutil.rmtree(tmp, ignore_errors=True)
            tmp.mkdir(parents=True)
        yield tmp
        if writes:
            _flush(tmp)
            if target.exists():
                old = target.with_name(f"tmp-old-{target.name}")
                shutil.rmtree(old, ignore_errors=True)
                target.rename(old)
                tmp.rename(target)
                shutil.rmtree(old)
            else:
                tmp.rename(target)
            flush(target.parent)
    except PrefoptError:
        raise
    except Exception as error:  # each library has its own for a full disk: OSError, RuntimeError, SafetensorError
        raise TrainingError(
            f"could not write {target}: {error}; earlier checkpoints are untouched: free some space and start again"
        ) from error
    finally:
        if writes:
            shutil.rmtree(tmp, ignore_errors=True)


def point(link: Path, target: Path) -> None:
    """Make `link` a symbolic link to its sibling `target`, in one step."""
    tmp = link.with_name(f"tmp-{link.name}")
    tmp.unlink(missing_ok=True)
    tmp.symlink_to(target.name)
    tmp.replace(link)


def rotate(folder: Path, keep: int | None, spared: str | None) -> None:
    """Delete the oldest checkpoints beyond `keep`, but never the newest or `spared` (a folder's path)."""
    sweep(folder)
    if not keep:
        return
    found = checkpoints(folder)
    spare = {found[-1].name} if found else set()
    if spared:
        spare.add(Path(spared).name)
    for old in found:
        if len(checkpoints(folder)) <= max(keep, len(spare)):
            return
        if old.name not in spare:
            # Out of sight first: a deletion that is cut short must not leave half a checkpoint behind.
            gone = old.with_name(f"tmp-old-{old.name}")
            old.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def fingerprint_of_records(lengths: Lengths) -> str:
    """A hash of the records' ids and lengths, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for name in lengths.ids or ():
        digest.update(name.encode() + b"\0")
    for column in (lengths.prompt, lengths.completions, lengths.offsets):
        digest.update(column.astype("<i8").tobytes())
    return digest.hexdigest()


def write_identity(folder: Path, identity: dict[str, Any]) -> None:
    """Put into a checkpoint what a resumed run must share with the run that it goes on from."""
    (folder / IDENTITY).write_text(json.dumps(identity, indent=1))


def refuse_other_identity(folder: Path, identity: dict[str, Any]) -> None:
    """Raise UserError where a checkpoint was made by another run than this one."""
    if not (folder / IDENTITY).exists():
        return
    kept = json.loads((folder / IDENTITY).read_text())
    other = " and another ".join(name for name, value in kept.items() if identity.get(name) != value)
    if other:
        raise UserError(f"cannot resume from {folder}: it was made with another {other}; give what it was made with, "
                        "or start from its weights in another folder")  # fmt: skip


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            flush(path)
    flush(folder)
