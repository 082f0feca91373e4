"""Reports a lost or stalled process of a distributed run, which torch reports as a failed exchange."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed

from prefopt.errors import TrainingError, first_line

# What a failed exchange is called: by gloo, NCCL, sockets, torch's store.
FAILURES = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out waiting", "socket",
            "store->")  # fmt: skip


@contextmanager
def lost_processes() -> Iterator[None]:
    """Turn the failure of an exchange into a TrainingError that says what it means and what to do.

    Every exchange ends within `trainer.ddp_timeout` seconds; where a process was killed, it fails at once.
    """
    try:
        yield
    except Exception as error:
        failed = next((e for e in (error, error.__cause__) if _of_exchange(e)), None)
        if failed is None:
            raise
        rank, count = distributed.get_rank(), distributed.get_world_size()
        raise TrainingError(
            f"rank {rank} of {count}: an exchange with the other processes failed: {first_line(failed)[:300]}; one of "
            "them was killed, left with an error, or did not come within trainer.ddp_timeout: look at what it printed, "
            "and start the same command again to resume from the last checkpoint"
        ) from error


def _of_exchange(error: BaseException | None) -> bool:
    if not distributed.is_initialized():
        return False
    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in FAILURES)
