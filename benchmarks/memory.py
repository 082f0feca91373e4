"""Memory of this process: its peak, and what it shares with no file."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_gib() -> float:
    """Peak resident memory of this process in GiB; getrusage would, on Linux, start at the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    scale = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def anonymous_mib() -> float:
    """Private memory of this process in MiB, without mapped files.

    `psutil`'s unique set would count a library's pages too, and only while no other process maps that library.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024
