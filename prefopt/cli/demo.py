"""`prefopt demo`: base, SFT and preference methods in a small world of exactly known reward; a table and a page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from prefopt.cli.arguments import Parser, as_typed, at_least
from prefopt.common.escaping_console import Console

NEXT = (
    "next:",
    "  prefopt train loss=simpo                           one run on this world, with a report",
    "  prefopt data check FILE                            look at preference data of your own",
    "  prefopt train loss=dpo model=MODEL data=FILE       tune your model: a folder or hub id, and your file",
)


def main(argv: list[str]) -> int:
    """Run the demo; writes `report.html` and `results.json` into the output folder."""
    parser = Parser(prog="prefopt demo", description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/demo"), help="default: %(default)s")
    parser.add_argument("--seed", type=at_least(0), default=0,
                        help="seeds the world, record order and samples (default: %(default)s)")  # fmt: skip
    args = parser.parse_args(argv)
    run(args.output_dir, seed=args.seed)
    return 0


def run(output_dir: Path, *, seed: int = 0, size: Any = None, world: Any = None) -> list[Any]:
    """Train and measure all models, print the table and write the page.

    Args:
        output_dir: the folder of `report.html` and `results.json`.
        seed: seeds the world, the order of records and the samples.
        size: how much work to do, a `DemoSize`.
        world: another `ReviewWorld` than the one of the seed.

    Returns:
        The rows of the table (`prefopt.compare.demo.DemoRow`).
    """
    from prefopt.common.quiet import quiet
    from prefopt.compare.demo import METHODS, Demo, one_thread
    from prefopt.report.demo_page import demo_table, write_demo

    console = Console()
    console.print(f"[bold]prefopt demo[/bold]: {len(METHODS) + 1} methods, including SFT, on one set of preferences "
                  "whose true reward is known")  # fmt: skip
    quiet()
    with one_thread(), _progress_bars(console) as progress:
        demo = Demo(progress, seed=seed, size=size, world=world)
        rows, facts = demo.rows(), demo.facts()
    write_demo(output_dir, rows, facts)
    console.print(demo_table(rows))
    console.print(f"{facts.total_seconds:.0f} seconds in all; open {output_dir / 'report.html'} in a browser")
    for line in NEXT:
        console.print(line.replace("prefopt", as_typed(), 1), highlight=False, markup=False, soft_wrap=True)
    return rows


@contextmanager
def _progress_bars(console: Console) -> Iterator[Any]:
    """Give a function that shows a bar for one task; where no bar can move, a line when it is done."""
    if not (console.is_terminal or console.is_jupyter):
        yield partial(_line, console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:

        @contextmanager
        def bar(title: str, steps: int | None) -> Iterator[Callable[[], None]]:
            task = bars.add_task(title, total=steps)
            yield lambda: bars.advance(task)
            bars.update(task, total=steps or 1, completed=steps or 1)

        yield bar


@contextmanager
def _line(console: Console, title: str, steps: int | None) -> Iterator[Callable[[], None]]:
    start = time.perf_counter()
    yield lambda: None
    console.print(f"{title}: {time.perf_counter() - start:.0f} s", highlight=False)
