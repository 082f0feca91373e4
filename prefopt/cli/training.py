"""Runs what `prefopt train` composes, writes the page of the run and prints its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefopt.common.processes import is_first_process
from prefopt.common.redact import redact
from prefopt.config.run_config import RunConfig
from prefopt.errors import ThresholdError
from prefopt.report.run_page import write_run_page
from prefopt.report.terminal import show_end
from prefopt.report.verdict import judge
from prefopt.runs import run as runs
from prefopt.runs.progress import JsonProgress, RunProgress, run_progress
from prefopt.runs.run_folder import RunFolder
from prefopt.runs.stages import run_stages


def run_and_show(config: RunConfig) -> dict[str, Any]:
    """Run what was composed, its stages first, and print the end."""
    progress = run_progress(config.progress, config.loss_name)
    what = f"{config.loss_name} on {config.data.path} from {config.model.path} → {config.output_dir}"
    progress.print(redact(what))
    summary = run_stages(config, log=progress.print, run=run_and_report)
    _show_result(progress, config.output_dir, summary)
    return summary


def run_and_report(
    config: RunConfig, *, log: Callable[[str], None], repeats: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Run a training and write its page, also where a sentinel fails the finished run."""
    try:
        summary = runs.run(config, log=log, repeats=repeats)
    except ThresholdError:
        _write_page(config.output_dir, log)
        raise
    _write_page(config.output_dir, log)
    return summary


def _write_page(folder: Path, log: Callable[[str], None]) -> None:
    if not is_first_process() or not (folder / "summary.json").exists():  # stopped before its end
        return
    try:
        write_run_page(folder)
    except Exception as error:  # the run is whole without its page
        log(f"warning: report.html could not be made ({error}); `prefopt report {folder}` tries again")


def _show_result(progress: RunProgress, folder: Path, summary: dict[str, Any]) -> None:
    """Print the verdict, the held-out table and where everything is, in the way of the run's progress."""
    if isinstance(progress, JsonProgress):
        verdict = judge(RunFolder(folder)).plain()
        progress.emit("end", output_dir=str(folder), summary=summary, verdict=verdict)
    elif (console := progress.console) is not None:
        show_end(console, folder, summary)
