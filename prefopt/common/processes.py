"""Facts of a distributed run: how many processes it has, which one is the first, and one answer for all."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

from accelerate.utils import broadcast_object_list, gather_object

from prefopt.errors import PrefoptError

K = TypeVar("K")
T = TypeVar("T")
_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


def process_count() -> int:
    """The number of processes that torchrun or accelerate started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this is the first, or the only, process of a run."""
    return os.environ.get("RANK", "0") == "0"


def from_first_process(make: Callable[[], T]) -> T:
    """What `make` gives, or raises, in the first process; the others wait for it.

    Inside `make` the first process is alone: nothing is exchanged there.
    """
    if _ALONE.get():
        return make()
    answer: list[T | PrefoptError | None] = [None]
    if is_first_process():
        before = _ALONE.set(True)
        try:
            answer = [make()]
        except PrefoptError as error:
            answer = [error]
        finally:
            _ALONE.reset(before)
    if process_count() > 1:
        broadcast_object_list(answer)
    if isinstance(answer[0], PrefoptError):
        raise answer[0]
    return answer[0]  # type: ignore[return-value]


def from_all_processes(make: Callable[[], dict[K, T]]) -> dict[K, T]:
    """The union of what `make` gives in each process.

    A `PrefoptError` that it raises in one is raised in all, and none waits for it; any other ends that process alone.
    """
    part: dict[K, T] | PrefoptError
    try:
        part = make()
    except PrefoptError as error:
        part = error
    whole: dict[K, T] = {}
    for found in gather_object([part]) if process_count() > 1 and not _ALONE.get() else [part]:
        if isinstance(found, PrefoptError):
            raise found
        whole |= found
    return whole
