"""Silences the progress bars and notices of the libraries that prefopt uses."""

from __future__ import annotations

import sys

import datasets
from transformers.utils import logging


def quiet(*, keep_data_bars: bool = False) -> None:
    """Silence transformers and `datasets`; `keep_data_bars` spares the bars of the latter on a terminal."""
    if not (keep_data_bars and sys.stderr.isatty()):
        datasets.disable_progress_bars()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
