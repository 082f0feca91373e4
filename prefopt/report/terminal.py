"""Prints the end of a run: the held-out table, the verdict, and where the files are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefopt.common.escaping_console import Console, Table
from prefopt.report.bands import State
from prefopt.report.before_after import held_out_rows, reward_model_rows, written_rows
from prefopt.report.run_facts import RunFacts
from prefopt.report.verdict import judge
from prefopt.runs.run_folder import RunFolder

STYLES = {State.GOOD: "bold", State.LOOK: "bold yellow", State.BAD: "bold red"}


def show_end(console: Console, folder: Path, summary: Mapping[str, Any]) -> None:
    """Print the results of the run in `folder`; `summary` is what `prefopt.runs.run.run` returned."""
    run = RunFolder(folder)
    facts, verdict = RunFacts(run), judge(run)
    rows = [
        *held_out_rows(facts.before, facts.after, facts.change),
        *reward_model_rows(facts.scores),
        *written_rows(run.summary.get("texts", {})),
    ]
    if rows:
        table = Table(box=None, padding=(0, 2, 0, 0), title="held out", title_justify="left")
        for column in ("", "base", "tuned", "change", ""):
            table.add_column(column, justify="right" if column else "left")
        for row in rows:
            table.add_row(row.title, row.before, row.after, row.change, row.direction)
        console.print(table)
    for i, line in enumerate(verdict.lines()):
        style = None if i else STYLES[verdict.state]
        console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)
    seconds = summary["seconds"]
    use = f"prefopt eval {folder}" if facts.scores else f"prefopt chat {folder}"
    for line in (
        f"{summary['steps']} steps, {seconds['train']} s of training, {seconds['total']} s in all",
        f"model:   {folder / 'final'}    ({use})",
        f"report:  {folder / 'report.html'}",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
