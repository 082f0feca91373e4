"""Runs a program of `peers/` in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from prefopt.errors import PrefoptError

PEERS = Path(__file__).with_name("peers")


def run_peer(program: str, job: dict[str, Any], *, preload: str | None = None) -> str:
    """What `peers/run_PROGRAM.py` prints.

    Args:
        program: its name.
        job: given to it as JSON on standard input; `threads` is the number of its threads.
        preload: a shared library that is loaded first.

    Raises:
        PrefoptError: it failed; with the end of what it wrote.
    """
    script = PEERS / f"run_{program}.py"
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(job["threads"]),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
    }
    if preload:
        environment["LD_PRELOAD"] = preload
    done = subprocess.run(
        [sys.executable, str(script)], input=json.dumps(job), env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise PrefoptError(f"{script.name} failed with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout
