"""Keeping large buffers: told to glibc, or to nobody."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from prefopt.engine.cpu.allocator import keep_large_buffers

FAULTS = """
import resource, sys
import numpy as np
from prefopt.engine.cpu.allocator import keep_large_buffers
if sys.argv[1] == "keep":
    assert keep_large_buffers()
np.ones(2**21)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(2**21)  # 16 MiB: 4,096 pages of 4 KiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_the_switch_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFOPT_MALLOC", "0")
    assert not keep_large_buffers()


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_large_buffers()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_a_freed_buffer_is_used_again_without_page_faults() -> None:
    """20 buffers of 16 MiB, each freed before the next: kept memory faults in once at most, 4,096 pages. A busy kernel
    that moves pages adds a few; memory that is given back faults in 20 times."""
    run = subprocess.run([sys.executable, "-c", FAULTS, "keep"], capture_output=True, text=True, check=True)
    assert int(run.stdout) <= 2 * 4096
