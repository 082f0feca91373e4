"""What a result file says of the machine that it was measured on."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """The model name of the processor."""
    information = Path("/proc/cpuinfo")
    for line in information.read_text().splitlines() if information.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
