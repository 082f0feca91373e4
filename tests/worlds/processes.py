"""Builds the review world of 400 pairs in ROOT, in several processes: `torchrun ... -m tests.worlds.processes ROOT`.

Each leaves `ROOT/<rank>.json`, the paths that it was given.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from accelerate import PartialState

from prefopt.worlds.build import build
from prefopt.worlds.review import ReviewWorld

PAIRS = 400


def main(root: Path) -> None:
    """Build, and leave the paths."""
    rank = PartialState(cpu=True).process_index
    found = dataclasses.asdict(build(ReviewWorld(pairs=PAIRS), root))
    (root / f"{rank}.json").write_text(json.dumps(found, default=str))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
