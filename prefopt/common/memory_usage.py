"""Measures the memory of this process, or of its GPU where there is one."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

import psutil
import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def memory_gib() -> float:
    """GiB in use now; on CUDA the most that was allocated so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return float(psutil.Process().memory_info().rss) / 2**30


def peak_memory_gib() -> float:
    """The most GiB that were in use since `reset_peak_memory`, or since the process began."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    with contextlib.suppress(OSError, StopIteration):
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return float(line.split()[1]) / 2**20
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**30 if sys.platform == "darwin" else 2**20)  # bytes there, KiB elsewhere


def reset_peak_memory() -> None:
    """Start the peak afresh, where the system can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif CLEAR.exists():
        with contextlib.suppress(OSError):
            CLEAR.write_text("5")  # resets VmHWM
