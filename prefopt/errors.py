"""Errors that a user can mend, and the exit codes that the command line turns them into."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable, Iterator

FULL = ("no space left", "disk quota exceeded", "pytorchstreamwriter failed", "unexpected pos")  # the latter of torch
SHORT = ("cannot allocate memory", "can't allocate memory", "out of memory", "not enough memory", "bad_alloc",
         "failed to map segment", "can't start new thread")  # fmt: skip


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
    """A signal ended the run; what it had is saved, and the same command resumes from there. Exit code 75."""

    exit_code = 75


def first_line(error: BaseException) -> str:
    """What another library's error says, on one line; its type where it says nothing.

    A first line that ends in a colon only announces the reason, which follows.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


def disk_full(error: BaseException) -> bool:
    """Whether an error, of whatever library, says that a disk or a quota is used up."""
    return any(
        getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(word in str(e).lower() for word in FULL)
        for e in _causes(error)
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error, of whatever library, says that there is too little memory."""
    return any(
        isinstance(e, MemoryError)
        or getattr(e, "errno", None) == errno.ENOMEM
        or any(word in str(e).lower() for word in SHORT)
        for e in _causes(error)
    )


def of_machine(error: BaseException) -> bool:
    """Whether an error is the machine's, so that it says nothing about the file or the model that was at hand."""
    return disk_full(error) or out_of_memory(error)


def is_panic(error: BaseException) -> bool:
    """Whether Rust code panicked: its error derives from BaseException, and cannot be imported from anywhere."""
    return type(error).__name__ == "PanicException"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def no_such_file(path: str) -> UserError:
    """The error for a file or folder that does not exist, with the nearest name in the same place."""
    folder, name = os.path.split(path.rstrip("/"))
    beside = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
    return UserError(f"no such file or folder: {path}{nearest(name, beside, folder)}")


def nearest(word: str, choices: Iterable[str], folder: str = "") -> str:
    """`; did you mean 'x'?` for the closest choice, or nothing; choices of a folder are shown with it."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {os.path.join(folder, close[0])!r}?" if close else ""
