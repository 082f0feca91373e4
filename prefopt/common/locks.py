"""Locks that one process holds at a time; a lock ends with its process, however that ends."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from prefopt.common.redact import printable
from prefopt.errors import UserError

LOCK = ".lock"
LONG_SECONDS = 10.0  # after so long a process says what it waits for
logger = logging.getLogger(__name__)


@contextmanager
def locked(file: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of `file`, which exists only while it is locked and names the process that holds it.

    Args:
        file: the lock file.
        wait: wait for another process to release it, instead of raising an error.

    Raises:
        UserError: another process holds it.
        OSError: the file cannot be made.
    """
    lock = FileLock(file, fallback_to_soft=False)
    try:
        lock.acquire(timeout=LONG_SECONDS if wait else 0)
    except Timeout:
        if not wait:
            raise UserError(f"{file.parent} is in use by {_holder(file)}: choose another folder, or wait") from None
        logger.warning("waiting for %s, which makes %s", _holder(file), file.with_suffix(""))
        lock.acquire()
    try:
        file.write_text(_this_process())
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.release()


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Make a folder and keep it for this run alone; if nothing is written into it, it is removed afterwards.

    Raises:
        UserError: another run has it, of this process or of another one.
        OSError: it cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / LOCK):
            yield
    finally:
        with suppress(OSError):
            folder.rmdir()  # only if it is empty


def _this_process() -> str:
    return f"process {os.getpid()} on {platform.node()}"


def _holder(file: Path) -> str:
    try:
        holder = printable(file.read_text(encoding="utf-8", errors="replace").strip())[:200]
    except OSError:  # released meanwhile
        holder = ""
    return "another run of this process" if holder == _this_process() else holder or "another process"
