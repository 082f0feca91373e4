"""Prints how well the code keeps to its plan: `python -m tests.house`; `--list FIGURE` names the places it counts.

`tests/test_house.py` holds each figure to its bound.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from prefopt.train import train
from tests.source import House


@cache
def calls_to_the_loss() -> list[str]:
    """The calls from `train()` to the loss in a real run, those inside transformers and accelerate included."""
    from prefopt.losses.dpo import DPO
    from prefopt.plugin import Data, LossOutput
    from tests.train import tiny

    stacks: list[list[str]] = []

    class WatchedDPO(DPO):
        def __call__(self, *logps: Any) -> LossOutput:
            stacks.append(_calls_since_train())
            return super().__call__(*logps)

    with tempfile.TemporaryDirectory() as folder:
        train(tiny.model(), WatchedDPO(), tiny.records(Data.PAIRS, 4), output_dir=folder, max_steps=1)
    return max(stacks, key=len)


def _calls_since_train() -> list[str]:
    found: list[str] = []
    frame = sys._getframe(2)
    while frame.f_back is not None:
        if frame.f_code is inspect.unwrap(train).__code__:
            break
        path, name = Path(frame.f_code.co_filename), frame.f_code.co_name
        if {"prefopt", "transformers", "accelerate"} & set(path.parts):
            found.append(f"{'/'.join(path.parts[-3:])} {name}")
        frame = frame.f_back
    return found[::-1]


@dataclass(frozen=True)
class Figure:
    """One line of the table: what is counted, its value before the house was built, and the goal."""

    title: str
    before: int | None
    goal: int
    places: Callable[[House], list[str]] | None = None
    count: Callable[[House], int] | None = None

    def value(self, house: House) -> int:
        return self.count(house) if self.count else len(self.places(house)) if self.places else 0


def files_of(calls: list[str]) -> list[str]:
    return sorted({call.partition(" ")[0] for call in calls})


FIGURES = {
    "lines": Figure("lines in `prefopt/`", 31_756, 29_250, count=lambda h: h.line_count),
    "loose": Figure("modules at the root, besides `__init__`", 23, 2, House.loose_modules),
    "circles": Figure("import circles, lazy imports counted", 4, 0, lambda h: [" ".join(c) for c in h.circles()]),
    "from_below": Figure("imports from a layer below", None, 0, House.imports_from_below),
    "lazy": Figure("imports inside functions", 395, 100, House.lazy_imports),
    "light_lazy": Figure("... that load no heavy library", 17, 0, House.light_lazy_imports),
    "own_lazy": Figure("... of our own modules, outside `cli/`", 99, 0, House.own_lazy_imports),
    "overrides": Figure("overrides of private methods of libraries", 14, 0, House.private_overrides),
    "private": Figure("reads of private attributes of libraries", 47, 0, House.private_reads),
    "calls": Figure("calls from `train()` to the loss", 10, 5, lambda _: calls_to_the_loss()),
    "call_files": Figure("... over files", 6, 3, lambda _: files_of(calls_to_the_loss())),
    "long_functions": Figure("functions over 50 lines", 14, 3, House.long_functions),
    "wide_functions": Figure("functions over 8 parameters", 5, 0, House.wide_functions),
    "long_files": Figure("files over 400 lines, tests included", 2, 0, House.long_files),
    "classes": Figure("classes of one name", 15, 0, House.shared_class_names),
    "modules": Figure("modules of one name, besides verbs of `cli/`", 10, 0, House.shared_module_names),
    "new_loss": Figure("files named by a new loss", 8, 3, lambda h: h.files_naming("amapo")),
}


def table(house: House) -> str:
    rows = [f"| {f.title} | {f.before or '–'} | {f.value(house)} | {f.goal} |" for f in FIGURES.values()]
    return "\n".join(["| figure | before | now | goal |", "|---|---:|---:|---:|", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.house", description="Measures the shape of the code.")
    parser.add_argument(
        "--list", choices=[name for name, f in FIGURES.items() if f.places], help="the places of one figure"
    )
    chosen = parser.parse_args().list
    house = House()
    if chosen is None:
        print(table(house))
    else:
        print(*(FIGURES[chosen].places or (lambda _: []))(house), sep="\n")


if __name__ == "__main__":
    main()
