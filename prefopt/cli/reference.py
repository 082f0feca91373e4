"""`prefopt reference build|list|verify|prune`: the store of reference log-probs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from prefopt.errors import ThresholdError, UserError

if TYPE_CHECKING:
    from prefopt.engine.reference.store import ReferenceStore

EXAMPLE = "prefopt reference build model.path=MODEL data=auto data.path=FILE"


def main(argv: list[str]) -> int:
    """Run one of the four."""
    parser = argparse.ArgumentParser(prog="prefopt reference", description="The store of reference log-probs.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    build = verbs.add_parser("build", help="score data under a reference, as `prefopt train` would", epilog=EXAMPLE)
    build.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="the same as for `prefopt train`")
    listing = verbs.add_parser("list", help="what is kept")
    listing.add_argument("--json", action="store_true", help="as JSON, one array")
    verify = verbs.add_parser("verify", help="read everything again and compare it with its digest")
    verify.add_argument("name", nargs="?", help="a store, or the beginning of its name")
    verify.add_argument("--all", action="store_true")
    prune = verbs.add_parser("prune", help="delete stores, at once; leftovers of killed processes go in any case")
    prune.add_argument("name", nargs="?", help="a store, or the beginning of its name")
    prune.add_argument("--all", action="store_true")
    prune.add_argument("--older-than", type=float, metavar="DAYS", help="stores that were not used for so long")
    for command in (listing, verify, prune):
        command.add_argument("--folder", type=Path, help="of the stores; default: in prefopt's cache")
    args = parser.parse_args(argv)
    if args.verb == "build":
        return _build(args.overrides)
    if args.folder is None:
        from prefopt.common.cache import cache_dir

        args.folder = cache_dir() / "reference"
    if args.verb == "list":
        return _list(args.folder, as_json=args.json)
    if args.verb == "verify":
        if not args.all and args.name is None:
            raise UserError("say which store to verify: a name of `prefopt reference list`, or --all")
        return _verify(_chosen(args.folder, None if args.all else args.name))
    if (args.name is not None) + args.all + (args.older_than is not None) > 1:
        raise UserError("give one of a name, --all and --older-than")
    return _prune(args.folder, args.name, args.all, args.older_than)


def _build(overrides: list[str]) -> int:
    import tempfile
    import time

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from transformers.utils import logging

    from prefopt.common.cache import cache_dir
    from prefopt.config.compose import compose
    from prefopt.models.load import load_model, load_tokenizer
    from prefopt.runs.resolve import prepared_data, resolved
    from prefopt.train import build

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    config = resolved(compose(overrides))
    prepared = prepared_data(config, load_tokenizer(config.model))
    root = Path(config.reference_folder) if config.reference_folder else cache_dir() / "reference"
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
            progress=lambda count: bar.advance(task, count),
            **config.trainer,
        )
    tables = [t for t in built.tables.values() if t is not None]
    hits, misses = sum(t.hits for t in tables), sum(t.misses for t in tables)
    seconds = time.perf_counter() - start
    Console().print(f"{hits + misses} completions: {hits} were there, {misses} computed; {seconds:.1f} s; in {root}")
    return 0


def _list(root: Path, *, as_json: bool) -> int:
    from prefopt.engine.reference.store import stores

    facts = [store.facts() for store in stores(root)]
    if as_json:
        print(json.dumps(facts, indent=1))
        return 0
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from prefopt.common.redact import printable

    table = Table(title=f"reference log-probs in {root}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("name", no_wrap=True, min_width=12)
    table.add_column("model", no_wrap=True, overflow="ellipsis", max_width=12)
    for column in ("texts", "tokens", "size", "unused", "damaged"):
        table.add_column(column, justify="right", no_wrap=True)
    for f in facts:
        model = escape(printable("/".join(Path(str(f["about"].get("model", ""))).parts[-2:])))
        damaged = f["broken_parts"] + f["altered_parts"]
        numbers = (f"{f['entries']:,}", f"{f['tokens']:,}", _size(f["bytes"]), f"{f['unused_days']:.0f} d")
        table.add_row(f["name"][:12], model, *numbers, str(damaged or ""))
    Console().print(table)
    return 0


def _verify(chosen: list[ReferenceStore]) -> int:
    altered = []
    for store in chosen:  # opening a store reads every byte
        state = f"{len(store.altered)} altered parts" if store.altered else "whole"
        cut = f", {len(store.broken)} parts cut short (computed again when needed)" if store.broken else ""
        print(f"{store.folder.name}: {len(store):,} completions, {state}{cut}")
        altered += [str(part) for part in store.altered]
    if altered:
        raise ThresholdError(f"not what was written there: {', '.join(altered)}; delete the stores with `prefopt "
                             "reference prune NAME`")  # fmt: skip
    return 0


def _prune(root: Path, name: str | None, everything: bool, older_than: float | None) -> int:
    from prefopt.engine.reference.store import leftovers, remove

    chosen = _chosen(root, name) if name is not None or everything or older_than is not None else []
    if older_than is not None:
        chosen = [store for store in chosen if store.facts()["unused_days"] >= older_than]
    freed = 0
    for store in chosen:
        bytes_freed = remove([store.folder])
        print(f"{store.folder.name}: {len(store):,} completions, {_size(bytes_freed)} freed")
        freed += bytes_freed
    dead = leftovers(root)
    if dead:
        bytes_freed = remove(dead)
        print(f"{len(dead)} leftovers of killed processes: {_size(bytes_freed)} freed")
        freed += bytes_freed
    print(f"{_size(freed)} freed in all")
    return 0


def _chosen(root: Path, name: str | None) -> list[ReferenceStore]:
    """All stores, or the one whose name begins with `name`."""
    from prefopt.engine.reference.store import stores

    if name is None:
        return list(stores(root))
    found = [store for store in stores(root) if store.folder.name.startswith(name)]
    if len(found) != 1:
        kept = ", ".join(store.folder.name[:12] for store in found or stores(root)) or "nothing"
        which = "is the beginning of several" if found else "is none of the"
        raise UserError(f"{name!r} {which} stores in {root}: {kept}")
    return found


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
