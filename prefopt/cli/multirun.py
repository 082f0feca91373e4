"""Ends `prefopt train -m` with a table of its runs: Hydra calls it when all of them are over."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class RunsTable(Callback):
    """Prints the table and writes `runs.html`, where there are several runs."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        # Loads transformers; Hydra makes this object before the options of any run are checked.
        from prefopt.report.runs_page import end_multirun

        folder = Path(config.hydra.sweep.dir)
        try:
            end_multirun(folder, config.progress)
        except Exception as error:  # the runs are whole without their table
            print(f"warning: the table of the runs in {folder} could not be made ({error})", file=sys.stderr)
