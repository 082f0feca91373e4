"""Keeps the memory of large buffers in the process, on CPU under glibc.

glibc returns every buffer above its mmap threshold to the system when it is freed, and the next buffer of that size
faults in again, page by page and zeroed. A training step allocates the same large activations and gradients again and
again; faulting them in can take longer than computing them.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform

SWITCH = "PREFOPT_MALLOC"

# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3

_MIB = 2**20


def keep_large_buffers() -> bool:
    """Make glibc serve buffers up to 32 MiB from its heap, and never shrink the heap; returns whether it does.

    Does nothing with another C library, or if the environment variable `PREFOPT_MALLOC` is `0`; has no effect under a
    preloaded allocator (tcmalloc, jemalloc). Resident memory then stays at the heap's peak until the process ends.

    Source: mallopt(3). 32 MiB is the largest threshold that glibc takes (HEAP_MAX_SIZE / 2 on 64-bit systems); larger
    buffers are served from the heap, too, while they fit into its free top. A trim threshold of -1 turns trimming off,
    and the heap grows 256 MiB at a time.
    """
    if os.environ.get(SWITCH) == "0" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    accepted = [mallopt(_M_MMAP_THRESHOLD, 32 * _MIB), mallopt(_M_TRIM_THRESHOLD, -1), mallopt(_M_TOP_PAD, 256 * _MIB)]
    return all(accepted)


def give_back() -> None:
    """Collect garbage, and return free heap to the system: for the end of a run in a process that lives on.

    Source: malloc_trim(3), which since glibc 2.8 also returns whole free pages from the middle of the heap.
    """
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
