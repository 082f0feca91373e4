"""Prints the menu of losses, from facts that the cache keeps: importing all plugins takes torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from prefopt.common.cache import cache_dir, cached_json
from prefopt.common.digest import of_bytes
from prefopt.common.escaping_console import Console, Table
from prefopt.common.json_output import print_json
from prefopt.config.options import choices
from prefopt.losses import MENU

COLUMNS = ("name", "data", "ranking", "needs", "hyper-parameters", "paper", "audit", "source")


def source() -> str:
    """The digest of all that the facts of the menu are read from."""
    package = files("prefopt")  # of prefopt.plugin itself would import it, and torch
    code = sorted((folder, file.name, file.read_bytes()) for folder in ("losses", "plugin")
                  for file in (package / folder).iterdir() if file.name.endswith(".py"))  # fmt: skip
    return of_bytes(b"".join(content for *_, content in code))


def facts_file() -> Path:
    """Where the cache keeps the facts of the menu as the plugins are now."""
    return cache_dir() / "menu" / f"{source()}.json"


def facts(describe_all: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What each loss needs and declares, from the cache; from `describe_all` where other packages have losses."""
    if {*MENU} != {*choices()["loss"]}:
        return describe_all()
    found: list[dict[str, Any]] = cached_json(
        facts_file(), describe_all, lambda kept: {loss["name"] for loss in kept} == {*MENU}
    )
    return found


def print_menu(losses: Sequence[Mapping[str, Any]], *, as_json: bool) -> int:
    """Print a row for each loss, or a JSON list."""
    if as_json:
        print_json(losses, indent=2)
        return 0
    rows = [_row(loss) for loss in losses]
    console = Console()
    if not console.is_terminal:
        console = Console(width=360)  # a pipe has no width to fit into
    for count in range(len(COLUMNS), 2, -1):  # the last columns go first where the terminal is narrow
        table = Table(*COLUMNS[:count], box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*row[:count])
        if table.fits(console, console.width):
            break
    console.print(table)
    if console.is_terminal:
        console.print("`prefopt losses NAME` describes one.", style="dim")
    if count < len(COLUMNS):
        console.print(f"A wider terminal, or --json, also shows: {', '.join(COLUMNS[count:])}.", style="dim")
    return 0


def flags(loss: Mapping[str, Any]) -> list[str]:
    """The names of what a loss needs beside its data."""
    return [key for key, value in loss["needs"].items() if value is True] + list(loss["needs"]["vocab"])


def _row(loss: Mapping[str, Any]) -> tuple[str, ...]:
    settings = [f"{key}={'?' if value is None else value}" for key, value in loss["hyperparameters"].items()]
    return (loss["name"], loss["needs"]["data"], loss["ranking"], " ".join(flags(loss)), " ".join(settings),
            loss["paper"].removeprefix("https://"), loss["audit"], loss["source"])  # fmt: skip
