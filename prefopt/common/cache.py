"""The cache: what prefopt can make again, in `$PREFOPT_CACHE` or the platform's cache folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import platformdirs

from prefopt.common.files import new_folder, remove_leftovers, write_cached
from prefopt.common.locks import locked
from prefopt.errors import PrefoptError, disk_full, first_line


def cache_dir() -> Path:
    """The root of the cache; safe to delete at any time when nothing runs."""
    return Path(os.environ.get("PREFOPT_CACHE") or platformdirs.user_cache_dir("prefopt"))


def cached_json(file: Path, make: Callable[[], Any], is_whole: Callable[[Any], bool]) -> Any:
    """The JSON value of a file of the cache; made where it cannot be read or is not whole, and written if possible.

    Args:
        file: its name must say everything that the value depends on.
        make: gives the value.
        is_whole: whether a value that was read is what `make` gives.
    """
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if is_whole(kept):
            return kept
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    made = make()
    with suppress(OSError):  # a cache that cannot be written only costs time
        file.parent.mkdir(parents=True, exist_ok=True)
        write_cached(file, json.dumps(made).encode())
    return made


def cached_folder(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, filled by `make(temporary folder)` if it is not there yet.

    It is whole or absent; of several processes that need it, one makes it while the others wait. The name of `folder`
    must say everything that its content depends on.

    Raises:
        PrefoptError: the disk is full.
    """
    if not folder.is_dir():
        with making(folder):
            if not folder.is_dir():
                fill(folder, make)
    return folder


@contextmanager
def making(folder: Path) -> Iterator[None]:
    """Keep other processes from making a folder of the cache, and remove what killed ones left around it."""
    with whole_disk(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f"{folder.name}.lock"), wait=True):
            remove_leftovers(folder.parent)
            yield


def fill(folder: Path, make: Callable[[Path], None]) -> None:
    """Make a folder of the cache, whole or not at all, while `making(folder)`."""
    try:
        with new_folder(folder) as temporary:
            make(temporary)
    except OSError:
        if not folder.is_dir():  # else another machine was first, on a disk whose locks are its own
            raise


@contextmanager
def whole_disk(folder: Path, option: str = "PREFOPT_CACHE") -> Iterator[None]:
    """Turn any library's error for a full disk into one that names the folder, and the option for another one."""
    try:
        yield
    except PrefoptError:
        raise
    except Exception as error:
        if not disk_full(error):
            raise
        raise PrefoptError(f"could not write {folder}: {first_line(error)}; free some space, or set {option} to "
                           "a folder on another disk") from error  # fmt: skip
