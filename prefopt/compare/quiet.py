"""One progress display is enough."""

from __future__ import annotations


def quiet() -> None:
    """Silence the bars and notices of the libraries below."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
