"""Keep the memory of large buffers in the process, on CPU under glibc.

glibc gives every buffer above its mmap threshold back to the system when it is freed, and the next buffer of that size
faults in again, page by page and zeroed. A training step allocates the same large activations and gradients over and
over; faulting them in can take longer than computing them.
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
    """Tell glibc to serve buffers up to 32 MiB from its heap and never to hand heap back; whether it was told.

    Does nothing, and returns False, on another C library, or where the environment variable `PREFOPT_MALLOC` is `0`.
    Under a preloaded allocator (tcmalloc, jemalloc) it has no effect. Resident memory stays at the heap's peak until
    the process ends. May be called again.

    Source: mallopt(3). 32 MiB is the largest threshold that glibc takes (HEAP_MAX_SIZE / 2 on 64-bit systems), and
    larger buffers too are served from the heap while they fit into its free top; a trim threshold of -1 turns trimming
    off; the heap grows 256 MiB at a time.
    """
    if os.environ.get(SWITCH) == "0" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    told = [mallopt(_M_MMAP_THRESHOLD, 32 * _MIB), mallopt(_M_TRIM_THRESHOLD, -1), mallopt(_M_TOP_PAD, 256 * _MIB)]
    return all(told)


def give_back() -> None:
    """Return the heap that nothing is in to the system, after a piece of work whose like does not follow at once.

    What models and trainers hold in circles is collected first. Does nothing more on another C library.

    Source: malloc_trim(3), which since glibc 2.8 also returns whole free pages from the middle of the heap.
    """
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
