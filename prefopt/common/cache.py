"""The cache: what prefopt can make again, in `$PREFOPT_CACHE` or the platform's cache folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import platformdirs

from prefopt.common.files import new_folder


def cache_dir() -> Path:
    """The root of the cache; safe to delete at any time when nothing runs."""
    return Path(os.environ.get("PREFOPT_CACHE") or platformdirs.user_cache_dir("prefopt"))


def cached_folder(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, filled by `make(temporary folder)` if it is not there yet.

    It is whole or absent; of several processes that make it at once, the first wins. So the name of `folder` must say
    everything that its content depends on.
    """
    if not folder.is_dir():
        try:
            with new_folder(folder) as temporary:
                make(temporary)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
    return folder
