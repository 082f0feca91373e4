"""Judges the losses of every installed library by the conformance vectors, for docs/vectors.md.

    python -m benchmarks.referee [--check]

Writes benchmarks/results/referee.json, which keeps what is known of libraries that are not installed here, and the
tables: the rulings, and how far a loss moves when the same batch is split into micro-batches.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefopt.losses.registry import loss_class
from prefopt.testing.kit import example
from prefopt.testing.peers import PEERS, load_peer
from prefopt.testing.referee import Way, cases_of, judge_all
from prefopt.testing.vectors import VERSION, numbers, vectors

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "referee.json"
PAGE = ROOT / "docs" / "vectors.md"
TABLES = ("referee", "split")  # between the markers of the page
PARTS = (2, 4)  # micro-batches
COUNTED = {"dft"}  # TRL's SFTTrainer divides by the tokens of all micro-batches, which the trainer counts for it
SEED = 14  # of the batch that is split: one on which every coupled loss moves


def measure(results: dict[str, Any]) -> dict[str, Any]:
    """Judge each library that is installed."""
    for name, (_, package) in PEERS.items():
        if find_spec(package) is None:
            continue
        peer = load_peer(name)
        rulings = judge_all(peer.PEER, vectors)
        results[name] = {
            "version": peer.version(),
            "vectors": VERSION,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "losses": {n: dataclasses.asdict(r) for n, r in rulings.items() if r.verdict != "absent"},
            "split": {
                n: moved for n, r in rulings.items() if r.verdict != "absent" and (moved := split(peer.PEER[n][0], n))
            },
        }
    return results


def split(way: Way, name: str) -> dict[str, float]:
    """How far the loss or the gradients of a batch move, each relative to its largest, when it comes in micro-batches.

    Parts that the peer cannot take, such as labels of one kind alone, are left out.
    """
    case = cases_of(vectors(name))[0]
    drawn = numbers(example(loss_class(name)), seed=SEED)
    batch = {key: value.requires_grad_(key in case.gradients) for key, value in drawn.items()}
    found: dict[str, float] = {}

    def step(parts: int) -> tuple[Tensor, Tensor]:
        """The mean loss of the parts, as accumulation gives it, and all gradients."""
        share, total = len(case.loss) // parts, torch.zeros((), dtype=torch.float64)
        for start in range(0, len(case.loss), share):
            inputs = {key: value[start : start + share] for key, value in batch.items()}
            total = total + way.call(dataclasses.replace(case, inputs=inputs)).mean() / parts
        leaves = [batch[key] for key in case.gradients]
        slopes = zip(torch.autograd.grad(total, leaves), leaves, strict=True)
        # Beside sums, 0 is past the end of a completion.
        inside = [slope * (leaf != 0) if leaf.ndim > 1 else slope for slope, leaf in slopes]
        return total.detach(), torch.cat([slope.flatten() for slope in inside])

    whole = step(1)
    for parts in PARTS:
        with contextlib.suppress(Exception):  # anything may come out of another library
            pairs = zip(step(parts), whole, strict=True)
            change = max(float((ours - all_).abs().max() / all_.abs().max()) for ours, all_ in pairs)
            if math.isfinite(change):
                found[str(parts)] = change
    return found


def rulings_table(results: dict[str, Any]) -> str:
    """The matrix of libraries and losses as Markdown."""
    return _matrix(results, "losses", lambda r: ": ".join(word for word in (r["verdict"], r["convention"]) if word))


def split_table(results: dict[str, Any]) -> str:
    """How far each loss moves in 2 and in 4 micro-batches, where it moves at all."""
    moving = {
        name: peer | {"split": {n: moved for n, moved in peer["split"].items() if max(moved.values()) > 1e-6}}
        for name, peer in results.items()
    }
    return _matrix(
        moving, "split", lambda moved: ", ".join(f"{100 * moved[p]:.1f} %" for p in map(str, PARTS) if p in moved)
    )


def _matrix(results: dict[str, Any], key: str, cell: Callable[[Any], str]) -> str:
    peers = list(results.values())
    columns = " | ".join(f"{peer['version']} ({peer['date']})" for peer in peers)
    rows = [f"| loss | {columns} |", "|---" * (len(peers) + 1) + "|"]
    for name in sorted({name for peer in peers for name in peer[key]}):
        rows.append(f"| `{name}` | {' | '.join(cell(p[key][name]) if name in p[key] else '–' for p in peers)} |")
    return "\n".join(rows) + "\n"


def page(results: dict[str, Any]) -> str:
    """The documentation page with the tables put in."""
    text = PAGE.read_text()
    for name, table in zip(TABLES, (rulings_table(results), split_table(results)), strict=True):
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        before, _, rest = text.partition(begin)
        text = before + begin + table + end + rest.partition(end)[2]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.referee", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only check that the table is that of the results")
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if parser.parse_args().check:
        assert page(results) == PAGE.read_text(), "run `python -m benchmarks.referee`"
        return
    results = measure(results)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
