"""`prefopt data` reads data alone without what reads models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_data_alone_is_checked_without_transformers(pairs_file: Path) -> None:
    """Half of the time of a look at a small file was the import of what reads models."""
    code = (f"import sys; from prefopt.cli import main; path = {str(pairs_file)!r}\n"
            "assert main(['data', 'check', path]) == main(['data', 'show', path, '--row', '1']) == 0\n"
            "print({'transformers', 'peft', 'accelerate'} & {*sys.modules}, file=sys.stderr)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "set()\n"
