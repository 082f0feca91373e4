"""Where prefopt keeps what it can make again: `$PREFOPT_CACHE`, or `prefopt` in the platform's cache folder."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """The root of the cache; safe to delete at any time when nothing runs."""
    return Path(os.environ.get("PREFOPT_CACHE") or platformdirs.user_cache_dir("prefopt"))


def cached_folder(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, made by `make(temporary folder)` if it is not there yet.

    It appears whole or not at all, by a rename; of several processes that make it at once, one wins and the others
    use the winner's. So the name of `folder` must say everything that its content depends on.
    """
    if folder.is_dir():
        return folder
    temporary = folder.parent / f"tmp-{folder.name}-{uuid.uuid4().hex}"
    temporary.mkdir(parents=True)
    try:
        make(temporary)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # not a lost race
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
