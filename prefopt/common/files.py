"""Writes files and folders that are whole or absent, whenever the process dies.

Everything is written under a temporary name beside its target, flushed to disk and renamed. A temporary name starts
with `tmp-` and ends with the process and the machine that write it, so that what killed processes left can be found.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from prefopt.common.redact import redacted

PREFIX = "tmp-"
ABANDONED_SECONDS = 24 * 3600.0  # age of a temporary file of another machine that counts as left behind


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step. A symbolic link at `path` is replaced, not followed."""
    temporary = _temporary(path)
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_cached(path: Path, content: bytes) -> None:
    """Replace a file in one step, without waiting for the disk: for what is checked when it is read, and made again."""
    temporary = _temporary(path)
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def open_to_append(path: Path) -> TextIO:
    """Open a file to add lines to it.

    Raises:
        OSError: it is a symbolic link, which could lead out of its folder, or a pipe.
    """
    check_not_link(path)
    own = os.O_NOFOLLOW | os.O_NONBLOCK
    return open(path, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags | own, 0o666))


def make_folder(path: Path) -> Path:
    """Make a folder below one that may be a stranger's, to write into; raises OSError for a symbolic link."""
    check_not_link(path)
    path.mkdir(parents=True, exist_ok=True)
    return path


def check_not_link(path: Path) -> None:
    """Raise OSError for a symbolic link: what is written through it would land wherever it leads."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "a symbolic link, through which nothing is written", str(path))


def write_json(path: Path, content: Any) -> None:
    """Replace a file with a value as JSON, without the secrets that its texts may have."""
    write_text(path, json.dumps(redacted(content), indent=1))


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file with one JSON object a line, without the secrets that their texts may have."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in redacted(list(rows))))


def write_link(link: Path, target: Path) -> None:
    """Make `link` a symbolic link to its sibling `target`, in one step."""
    temporary = _temporary(link)
    try:
        temporary.symlink_to(target.name)
        temporary.replace(link)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(target: Path, *, replace: bool = False, temporary: Path | None = None) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` when the block ends without an error, and is removed otherwise.

    Args:
        target: the final place; absent or empty, unless it is replaced.
        replace: put the new folder in the place of an old one, which until then is whole as `tmp-old-<name>`.
        temporary: the folder to yield, where other processes must know its name; emptied first.

    Raises:
        OSError: the disk is full or not writable, or `target` exists already.
    """
    temporary = temporary or _temporary(target)
    remove(temporary)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        flush_all(temporary)
        if replace and os.path.lexists(target):
            old = target.with_name(f"{PREFIX}old-{target.name}")
            remove(old)
            target.rename(old)
            temporary.rename(target)
            remove(old)
        else:
            temporary.rename(target)
        flush(target.parent)
        flush(target.parent.parent)  # the folder around it may be new, too
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Delete a file, a folder or a symbolic link (not what it leads to), as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left half-written in a folder."""
    for path in leftovers(folder):
        remove(path)


def leftovers(folder: Path) -> list[Path]:
    """The temporary files and folders in `folder` that killed processes left half-written."""
    old = time.time() - ABANDONED_SECONDS
    found = []
    for path in sorted(folder.glob(f"{PREFIX}*")):
        try:
            abandoned = path.lstat().st_mtime < old
        except OSError:  # finished meanwhile
            continue
        if abandoned or _writer_is_dead(path.name):
            found.append(path)
    return found


def flush(path: Path) -> None:
    """Put a file's content, or a folder's entries, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_all(folder: Path) -> None:
    """Put all that is in a folder on disk."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            flush(path)
    flush(folder)


def _temporary(target: Path) -> Path:
    return target.with_name(f"{PREFIX}{target.name}-{uuid.uuid4().hex[:8]}-{os.getpid()}@{platform.node()}")


def _writer_is_dead(name: str) -> bool:
    """Whether the process in a temporary name ran on this machine, and runs no more."""
    before, _, machine = name.partition("@")
    pid = before.rpartition("-")[2]
    if machine != platform.node() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # another user's
        return False
    return False
