"""Prints JSON on a standard output to which nothing else writes."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

_reserved: TextIO | None = None  # the standard output, while everything else that is printed goes to stderr


@contextmanager
def only_json(*, for_good: bool = False) -> Iterator[None]:
    """Reserve the standard output for `print_json`: what libraries and child processes print goes to stderr.

    Args:
        for_good: the process ends after this, so that what C code has in its buffers must not come out either.
    """
    global _reserved
    before = _reserved
    own = sys.__stdout__
    if own is None or sys.stdout is not own:  # a test or a notebook reads what is printed
        _reserved = before or sys.stdout
        with redirect_stdout(sys.stderr):
            try:
                yield
            finally:
                _reserved = before
        return
    own.flush()
    kept = os.dup(1)
    os.dup2(2 if sys.stderr is not None else os.open(os.devnull, os.O_WRONLY), 1)
    with open(os.dup(kept), "w", encoding="utf-8") as _reserved:
        try:
            yield
        finally:
            _reserved = before
            own.flush()
            if not for_good:
                os.dup2(kept, 1)
            os.close(kept)


def json_stream() -> TextIO:
    """Where JSON is printed: the reserved standard output, else the one of the moment."""
    return _reserved or sys.stdout


def print_json(value: Any, *, indent: int | None = None) -> None:
    """Print a value as JSON, which has no nan and infinities: these are printed by their names."""
    print(json.dumps(finite(value), indent=indent), file=json_stream(), flush=True)


def finite(value: Any) -> Any:
    """A JSON value with nan and infinities, which JSON does not have, as their names."""
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
