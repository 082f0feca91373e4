"""Ends `prefopt train -m` with a table of its runs: Hydra calls it when all of them are over."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from prefopt.report.runs_page import runs_of, show_runs, write_runs_page
from prefopt.runs.progress import run_progress


class RunsTable(Callback):
    """Prints the table and writes `runs.html`, where there are several runs."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        try:
            lines = runs_of(folder)
            if len(lines) < 2:
                return
            page = write_runs_page(folder, lines)
            console = run_progress(config.progress, "").console
            if console is not None:
                show_runs(console, lines, page)
        except Exception as error:  # the runs are whole without their table
            print(f"warning: the table of the runs in {folder} could not be made ({error})", file=sys.stderr)
