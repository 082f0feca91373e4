"""Keeps the variables of the environment that libraries read and set."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def environment_kept(*names: str) -> Iterator[None]:
    """Leave these variables of the environment as they were: libraries set them for the whole program."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
