"""Writes the entries of docs/errata.md from `prefopt.losses._errata`, and the table of split batches.

python -m benchmarks.errata [--check]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any

from benchmarks.page_parts import filled, results, write
from prefopt.losses._errata import CONVENTIONS, MISTAKES, VERSION, Erratum
from prefopt.losses.registry import load, loss_class
from prefopt.testing import evaluate, example
from prefopt.testing.claim_checks import arithmetic

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "errata.md"
SPLIT = ROOT / "benchmarks" / "results" / "batch_split.json"


def ours(entry: Erratum) -> float:
    """What the loss here gives for the first record of the example."""
    usual = example(loss_class(entry.loss))
    kinds = {name: type(getattr(usual, name)) for name in entry.settings}
    given = {n: kinds[n](value) if issubclass(kinds[n], Enum) else value for n, value in entry.settings.items()}
    return evaluate(load(entry.loss, **given), **entry.numbers)[0]


def theirs(entry: Erratum) -> float:
    """What the place gives for it."""
    value = arithmetic(entry.theirs, None)
    assert value is not None, entry.theirs
    return value


def entries(errata: Iterable[Erratum]) -> str:
    """A section each; its heading is the entry's name, so that it can be linked to."""
    found = []
    for entry in errata:
        settings = "".join(f", {name} = {value}" for name, value in entry.settings.items())
        numbers = "; ".join(f"{name} {value}" for name, value in entry.numbers.items())
        found.append(
            f"### {entry.name}\n\n"
            f"`{entry.loss}`. Place: {entry.place}. Checked on {entry.date}.\n\n"
            f"- There: {entry.says.replace('*', chr(92) + '*')}\n"
            f"- Derivation: {entry.derivation}\n"
            f"- Effect: {entry.effect}\n"
            f"- Number: **{theirs(entry):.4f}** there (`{entry.theirs}`), **{ours(entry):.4f}** here, on {numbers}"
            f"{settings}\n"
        )
    return "\n".join(found)


def split_table(measured: dict[str, Any]) -> str:
    """How far loss and gradient of one step move with the number of micro-batches."""
    rows = [
        "| trainer | loss, 2 parts | loss, 4 parts | gradient, 2 parts | gradient, 4 parts |",
        "|---|---:|---:|---:|---:|",
    ]
    ours = {f"prefopt, `{name}`": moved for name, moved in measured["prefopt"].items()}
    for name, moved in {**measured["trainers"], **ours}.items():
        cells = [f"{100 * moved[kind][parts]:.2f} %" for kind in ("loss", "gradient") for parts in ("2", "4")]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", f"{measured['versions']}; {measured['date']}."]) + "\n"


def page() -> str:
    """The page with its generated parts put in."""
    parts = {
        "version": f"Version {VERSION}, {max(entry.date for entry in (*MISTAKES, *CONVENTIONS))}.\n",
        "mistakes": entries(MISTAKES),
        "conventions": entries(CONVENTIONS),
        "split": split_table(results(SPLIT, "python benchmarks/batch_split.py")),
    }
    return filled(PAGE, parts)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.errata", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only check that the page is that of the data")
    write(PAGE, page(), check=parser.parse_args().check, command="python -m benchmarks.errata")


if __name__ == "__main__":
    main()
