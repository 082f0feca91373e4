"""The folder of a run: one process writes it, its files are whole or absent, and a checkpoint in it is gone on from."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prefopt.errors import UserError
from prefopt.common.redact import printable, redact, redacted

LOCK = ".lock"
_held: set[tuple[int, int]] = set()  # device and inode of this process's folders: the system's lock is for others
_guard = threading.Lock()


def write(path: Path, text: str) -> None:
    """Replace a file in one step, without the secrets that the text may have."""
    tmp = path.with_name(f"tmp-{path.name}")
    try:
        tmp.write_text(redact(text), encoding="utf-8")
        tmp.replace(path)
    finally:
        tmp.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """`write` a value as JSON."""
    write(path, json.dumps(redacted(content), indent=1))


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """`write` one JSON object a line."""
    write(path, "".join(json.dumps(row) + "\n" for row in redacted(list(rows))))


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Makes a folder and keeps it for this run alone; a process that dies, however, lets go of it.

    A folder that nothing was written into is gone again afterwards.

    Raises:
        UserError: another process has it, or another run of this one.
        OSError: it cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts = folder.stat()
    key = (facts.st_dev, facts.st_ino)
    with _guard:
        if key in _held:
            raise UserError(f"output_dir={folder} is being written by another run of this process: choose another "
                            "folder, or wait")  # fmt: skip
        _held.add(key)
    try:
        with _locked(folder):
            yield
    finally:
        with _guard:
            _held.discard(key)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = folder / LOCK
    while True:
        file = lock.open("a+")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, no forked worker keeps it alive
        except OSError as error:
            file.seek(0)
            holder = printable(file.readline().strip())[:200] or "another process"
            file.close()
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise UserError(
                f"output_dir={folder} is being written by {holder}: choose another folder, or wait"
            ) from None
        if lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat()):
            break
        file.close()  # its holder removed it between our two calls
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield
    finally:
        lock.unlink(missing_ok=True)
        file.close()
        with suppress(OSError):
            folder.rmdir()  # only if it is empty


def checkpoint_to_resume(out: Path, resume: str, say: Callable[[str], None]) -> Path | None:
    """The checkpoint to go on from; of several processes all get the first one's answer.

    Args:
        out: the run's folder.
        resume: `auto`, `never`, or a checkpoint folder.
        say: called with what was found, for a person.

    Raises:
        UserError: the folder has a finished or another run or later checkpoints, or no such checkpoint is there, or
            it was altered.
        TrainingError: a checkpoint cannot be read now.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    from prefopt.errors import PrefoptError

    answer: list[Any] = [None]
    if PartialState().is_main_process:
        try:
            answer = [_checkpoint(out, resume, say)]
        except PrefoptError as error:
            answer = [error]
    if PartialState().num_processes > 1:
        broadcast_object_list(answer)
    if isinstance(answer[0], PrefoptError):
        raise answer[0]
    checkpoint: Path | None = answer[0]
    return checkpoint


def _checkpoint(out: Path, resume: str, say: Callable[[str], None]) -> Path | None:
    from prefopt.train.checkpoints import checkpoints, last_whole, sweep
    from prefopt.train.checksums import about, wrong_with

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
        say(f"resume={resume}: going on from it")
        return folder
    if resume == "auto":
        found = last_whole(out, say)
        say(f"resume=auto: going on from {found}" if found else "resume=auto: nothing to go on from, starting anew")
        return found
    if checkpoints(out):
        raise UserError(f"resume=never, but output_dir={out} has checkpoints: choose another folder, or delete them")
    return None


def _step_of(checkpoint: Path, resume: str) -> int:
    """After which step a checkpoint was written, whatever its folder is called."""
    try:
        return int(json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"resume={resume}: its trainer_state.json has no step; take another checkpoint") from error
