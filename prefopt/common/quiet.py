"""One progress display is enough."""

from __future__ import annotations

import sys


def quiet(*, bars_of_data: bool = False) -> None:
    """Silence the bars and notices of the libraries below.

    Args:
        bars_of_data: keep those of `datasets`, on a terminal.
    """
    import datasets
    from transformers.utils import logging

    if not (bars_of_data and sys.stderr.isatty()):
        datasets.disable_progress_bars()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
