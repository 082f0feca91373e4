"""Puts the runs of a multirun side by side: the options in which they differ, how each ended, and its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.text import Text

from prefopt.common.escaping_console import Console, Table
from prefopt.common.estimate import Estimate
from prefopt.common.redact import printable, redact
from prefopt.report.bands import State
from prefopt.report.formatting import with_error
from prefopt.report.page import PAGE, render, write_page
from prefopt.report.run_facts import RunFacts
from prefopt.report.verdict import judge
from prefopt.runs.progress import run_progress
from prefopt.runs.run_folder import RunFolder
from prefopt.runs.run_path import CONFIG

RUNS_PAGE = "runs.html"
OF_ITS_FOLDER = ("output_dir", "resume", "progress")  # options that say nothing of a training
# figure of `RunFacts.banded`, title, unit
FIGURES = (("grew", "log-ratio right, %", "%"), ("kl", "KL", "nats"), ("chosen", "chosen, a token", "nats"),
           ("length", "length", "x"))  # fmt: skip


@dataclass(frozen=True)
class RunLine:
    """One run.

    Attributes:
        name: of its folder.
        method: of its loss.
        options: by their names, those in which the runs differ.
        figures: as text, by the titles of `FIGURES`; empty where it was not measured.
        state, said: of its verdict.
        page: the address of its page, from the folder of the multirun; empty where it has none.
    """

    name: str
    method: str
    options: Mapping[str, str]
    figures: Mapping[str, str]
    state: State
    said: str
    page: str


def runs_of(folder: Path) -> list[RunLine]:
    """The runs in the folder of a multirun, in the order of their numbers; those that did not end say so."""
    runs = [RunFolder(path.parent) for path in folder.glob(f"*/{CONFIG}")]
    runs.sort(key=lambda run: [(not part.isdigit(), part.zfill(9)) for part in run.path.name.split("-")])
    configs = [flat(run.config) for run in runs]
    differing = [name for name in dict.fromkeys(n for config in configs for n in config)
                 if name not in OF_ITS_FOLDER and len({config.get(name) for config in configs}) > 1]  # fmt: skip
    return [_line(folder, run, {n: config.get(n, "–") for n in differing})
            for run, config in zip(runs, configs, strict=True)]  # fmt: skip


def end_multirun(folder: Path, progress: str) -> None:
    """Write the page of the runs in a folder, and print their table as the progress of runs is shown."""
    lines = runs_of(folder)
    if len(lines) < 2:
        return
    page = write_runs_page(folder, lines)
    if (console := run_progress(progress, "").console) is not None:
        show_runs(console, lines, page)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The options of a configuration by their whole names, as text."""
    found: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + str(name)] = str(value)
    return found


def _line(folder: Path, run: RunFolder, options: dict[str, str]) -> RunLine:
    facts = RunFacts(run)
    method = options.pop("loss.name", facts.name)
    if not run.summary:
        return RunLine(run.path.name, method, options, {}, State.BAD, "did not end", "")
    verdict = judge(run)
    figures = {title: _text(facts.banded.get(key), unit) for key, title, unit in FIGURES}
    page = f"{run.path.relative_to(folder)}/{PAGE}" if (run.path / PAGE).is_file() else ""
    return RunLine(run.path.name, method, options, figures, verdict.state, verdict.headline, page)


def _text(figure: Estimate | None, unit: str) -> str:
    return with_error(figure, unit, bare=True) if figure is not None else ""


def show_runs(console: Console, lines: Sequence[RunLine], page: Path) -> None:
    """Print the table, and where its page is."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, header_style="bold")
    columns = [title for _, title, _ in FIGURES if any(line.figures.get(title) for line in lines)]
    options = list(lines[0].options)
    for title in ("run", *short_names(options)):
        table.add_column(title)
    for title in columns:
        table.add_column(title, justify="right")
    table.add_column("")
    for line in lines:
        figures = (line.figures.get(title, "") for title in columns)
        cells = (line.name, *(line.options[name] for name in options), *figures, line.state.value)
        table.add_row(*(Text(printable(redact(cell))) for cell in cells))
    console.print(table)
    for line in lines:
        console.print(Text(printable(redact(f"{line.state.value} {line.name}: {line.said}"))))
    console.print(Text(f"one run each, so differences may be noise (`prefopt compare` tells); page: {page}"),
                  soft_wrap=True)  # fmt: skip


def short_names(options: Sequence[str]) -> list[str]:
    """Return the last parts of options' names, where these tell them apart; a terminal is narrow."""
    last = [name.rpartition(".")[2] for name in options]
    return [short if last.count(short) == 1 else name for name, short in zip(options, last, strict=True)]


def write_runs_page(folder: Path, lines: Sequence[RunLine]) -> Path:
    """Write the page of a multirun into its folder."""
    columns = [title for _, title, _ in FIGURES if any(line.figures.get(title) for line in lines)]
    html = render("runs.html", lines=lines, columns=columns, options=list(lines[0].options), folder=folder.name)
    write_page(folder / RUNS_PAGE, redact(html))
    return folder / RUNS_PAGE
