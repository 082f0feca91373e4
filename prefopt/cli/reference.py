"""`prefopt reference build|list|verify|prune`: manages the stored log-probs of reference models."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from prefopt.cli.arguments import Parser, at_least
from prefopt.common.escaping_console import Console, Table
from prefopt.common.json_output import print_json
from prefopt.common.redact import printable
from prefopt.errors import ThresholdError, UserError

EXAMPLE = "prefopt reference build model.path=MODEL data=auto data.path=FILE"


def main(argv: list[str]) -> int:
    """Run one of the four commands.

    Raises:
        UserError: a store that does not exist, or a combination of options that makes no sense.
        ThresholdError: `verify` found altered parts.
    """
    args = _parser().parse_args(argv)
    if args.command == "build":
        return _build(args.overrides)
    if args.command == "verify" and not args.all and args.name is None:
        raise UserError("which store? give a name from `prefopt reference list`, or --all")
    if args.command == "prune" and (args.name is not None) + args.all + (args.older_than is not None) > 1:
        raise UserError("give only one of a name, --all and --older-than")
    from prefopt.engine.reference.store import store_root, stores

    folders = [store_root(args.folder, figures=figures) for figures in (False, True)]
    tidies = args.command == "prune" and not args.all and args.name is None and args.older_than is None
    found = (
        [] if tidies else [store for folder in folders for store in stores(folder)]
    )  # opening a store reads every byte
    if args.command == "list":
        return _list(folders, found, as_json=args.json)
    if args.name is not None and not args.all:
        found = _chosen(folders[0], found, args.name)
    return _verify(found) if args.command == "verify" else _prune(folders, found, args)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="prefopt reference", description="Manage the stored log-probs of reference models.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="score data under a reference, as `prefopt train` would", epilog=EXAMPLE)
    build.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for `prefopt train`")
    listing = commands.add_parser("list", help="list the stores")
    listing.add_argument("--json", action="store_true", help="print one JSON array")
    verify = commands.add_parser("verify", help="read every byte and compare it with its digest")
    verify.add_argument("name", nargs="?", help="a store, or the beginning of its name")
    verify.add_argument("--all", action="store_true", help="all stores")
    prune = commands.add_parser("prune", help="delete stores without asking; always deletes what killed processes left")
    prune.add_argument("name", nargs="?", help="a store, or the beginning of its name")
    prune.add_argument("--all", action="store_true", help="all stores")
    prune.add_argument(
        "--older-than", type=at_least(0, float), metavar="DAYS", help="stores that were not used for so many days"
    )
    for command in (listing, verify, prune):
        command.add_argument("--folder", type=Path, help="the folder of the stores (default: in prefopt's cache)")
    return parser


def _build(overrides: list[str]) -> int:
    from prefopt.common.quiet import quiet
    from prefopt.config.compose import compose
    from prefopt.engine.reference.store import store_root
    from prefopt.models.load import load_model, load_tokenizer
    from prefopt.runs.resolve import prepared_data, resolved
    from prefopt.train import build

    quiet(keep_data_bars=True)
    config = resolved(compose(overrides))
    prepared = prepared_data(config, load_tokenizer(config.model))
    root = store_root(config.reference_folder)
    columns = (TextColumn("reference log-probs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as unused, Progress(*columns, transient=True) as bar:
        task = bar.add_task("", total=len(prepared.train) + len(prepared.eval or ()))
        built = build(
            load_model(config.model),
            config.loss,
            prepared.train,
            output_dir=unused,
            eval=prepared.eval,
            batch=config.batch,
            seed=config.seed,
            reference=load_model(config.model, config.model.reference) if config.model.reference else None,
            store=root,
            progress=lambda done, total: bar.advance(task, done),
            **config.trainer | {"max_steps": -1, "num_train_epochs": 1.0},  # of all records
        )
    tables = [t for t in built.tables.values() if t is not None]
    hits, misses = sum(t.hits for t in tables), sum(t.misses for t in tables)
    seconds = time.perf_counter() - start
    Console().print(f"{hits + misses} completions: {hits} found, {misses} computed; {seconds:.1f} s; in {root}")
    return 0


def _list(roots: list[Path], found: list[Any], *, as_json: bool) -> int:
    facts = [store.facts() for store in found]
    if as_json:
        print_json(facts, indent=1)
        return 0
    for root in roots:
        own = [f for f in facts if f["folder"] == str(root)]
        if own or root == roots[0]:
            Console().print(_table(f"reference log-probs in {root}", own))
    return 0


def _table(title: str, facts: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("name", no_wrap=True, min_width=12)
    table.add_column("model", no_wrap=True, overflow="ellipsis", max_width=12)
    for column in ("texts", "tokens", "size", "unused", "damaged"):
        table.add_column(column, justify="right", no_wrap=True)
    for f in facts:
        model = escape(printable("/".join(Path(str(f["about"].get("model", ""))).parts[-2:])))
        damaged = f["broken_parts"] + f["altered_parts"]
        numbers = (f"{f['entries']:,}", f"{f['tokens']:,}", _size(f["bytes"]), f"{f['unused_days']:.0f} d")
        table.add_row(f["name"][:12], model, *numbers, str(damaged or ""))
    return table


def _verify(found: list[Any]) -> int:
    altered = []
    for store in found:
        state = f"{len(store.altered)} altered parts" if store.altered else "intact"
        broken = f", {len(store.broken)} incomplete parts (computed again when needed)" if store.broken else ""
        print(f"{store.folder.name}: {len(store):,} completions, {state}{broken}")
        altered += [str(part) for part in store.altered]
    if altered:
        raise ThresholdError(f"altered since they were written: {', '.join(altered)}; delete the stores with `prefopt "
                             "reference prune NAME`")  # fmt: skip
    return 0


def _prune(roots: list[Path], found: list[Any], args: argparse.Namespace) -> int:
    from prefopt.engine.reference.store import leftovers, remove

    if args.older_than is not None:
        found = [store for store in found if store.facts()["unused_days"] >= args.older_than]
    freed = 0
    for store in found:
        size = remove([store.folder])
        print(f"{store.folder.name}: {len(store):,} completions, {_size(size)} freed")
        freed += size
    if left := [folder for root in roots for folder in leftovers(root)]:
        size = remove(left)
        print(f"{len(left)} leftovers of killed processes: {_size(size)} freed")
        freed += size
    print(f"{_size(freed)} freed in all")
    return 0


def _chosen(root: Path, found: list[Any], name: str) -> list[Any]:
    """The store whose name begins with `name`; two where its reference was scored for figures, too."""
    chosen = [store for store in found if store.folder.name.startswith(name)]
    if len({store.folder.name for store in chosen}) != 1:
        kept = ", ".join(store.folder.name[:12] for store in chosen or found) or "nothing"
        which = "is the beginning of several stores" if chosen else "is not a store"
        raise UserError(f"{name!r} {which} in {root}: {kept}")
    return chosen


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
