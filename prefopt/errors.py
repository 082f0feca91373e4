"""Errors that a user can mend, and the exit codes that the command line turns them into."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PrefoptError(Exception):
    """Base of every error that prefopt raises on purpose; the message names the remedy."""

    exit_code = 1


class UserError(PrefoptError, ValueError):
    """Something the user gave is wrong: an option, a file, a model, a plugin. Exit code 2."""

    exit_code = 2


class ThresholdError(PrefoptError):
    """A check ran to its end and a threshold failed. Exit code 3."""

    exit_code = 3


class TrainingError(PrefoptError):
    """A run that had to stop: a loss that is not finite, or a first batch that is provably wrong."""


class Stopped(PrefoptError):
    """A signal ended the run; what it had is saved, and the same command goes on from there. Exit code 75."""

    exit_code = 75


def first_line(error: BaseException) -> str:
    """What another library's error says, on one line; its type where it says nothing.

    A first line that ends in a colon only announces the reason, which follows.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


def nearest(word: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest choice, or nothing."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
