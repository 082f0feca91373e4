"""Prints the menu of losses, from facts that are kept beside them: importing them all takes torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from rich.table import Table

from prefopt.common.digest import of_bytes
from prefopt.common.escaping_console import Console
from prefopt.common.json_output import print_json
from prefopt.config.options import choices
from prefopt.losses import MENU

FACTS = "facts.json"  # in prefopt.losses, as `prefopt losses docs` writes it


def source() -> str:
    """The digest of all that the facts of the menu are read from."""
    package = files("prefopt")  # of prefopt.plugin itself would import it, and torch
    code = sorted((folder, file.name, file.read_bytes()) for folder in ("losses", "plugin")
                  for file in (package / folder).iterdir() if file.name.endswith(".py"))  # fmt: skip
    return of_bytes(b"".join(content for *_, content in code))


def kept_facts() -> list[dict[str, Any]] | None:
    """What each loss needs and declares; None where the file does not fit the plugins any more, or other packages have
    some."""
    kept = json.loads((files("prefopt.losses") / FACTS).read_text(encoding="utf-8"))
    names = {loss["name"] for loss in kept["losses"]}
    return list(kept["losses"]) if kept["source"] == source() and names == {*MENU, *choices()["loss"]} else None


def print_menu(losses: Sequence[Mapping[str, Any]], *, as_json: bool) -> int:
    """Print a row for each loss, or a JSON list."""
    if as_json:
        print_json(losses, indent=2)
        return 0
    columns = ("name", "data", "ranking", "needs", "hyper-parameters", "paper", "audit", "source")
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for loss in losses:
        flags = [key for key, value in loss["needs"].items() if value is True] + loss["needs"]["vocab"]
        settings = [f"{key}={'?' if value is None else value}" for key, value in loss["hyperparameters"].items()]
        paper = loss["paper"].removeprefix("https://")
        table.add_row(
            loss["name"], loss["needs"]["data"], loss["ranking"], " ".join(flags), " ".join(settings), paper,
            loss["audit"], loss["source"],
        )  # fmt: skip
    console = Console()
    (console if console.is_terminal else Console(width=360)).print(table)  # a pipe has no width to fit into
    return 0
