"""Judges the losses of every installed library by the conformance vectors, for docs/vectors.md.

    python -m benchmarks.referee [--check]

Writes benchmarks/results/referee.json, which keeps the rulings on libraries that are not installed here, and the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prefopt.testing.peers import PEERS, load_peer
from prefopt.testing.referee import judge_all
from prefopt.testing.vectors import VERSION, vectors

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "referee.json"
PAGE = ROOT / "docs" / "vectors.md"
BEGIN, END = "<!-- referee: begin -->\n", "<!-- referee: end -->"


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
        }
    return results


def table(results: dict[str, Any]) -> str:
    """The matrix of libraries and losses as Markdown."""
    peers = list(results.values())
    rows = [
        "| loss | " + " | ".join(f"{p['version']} ({p['date']})" for p in peers) + " |",
        "|---" * (len(peers) + 1) + "|",
    ]
    for name in sorted({name for peer in peers for name in peer["losses"]}):
        rows.append(f"| `{name}` | " + " | ".join(_cell(peer["losses"].get(name)) for peer in peers) + " |")
    return "\n".join(rows) + "\n"


def _cell(ruling: dict[str, Any] | None) -> str:
    if ruling is None:
        return "–"
    return ": ".join(word for word in (ruling["verdict"], ruling["convention"]) if word)


def page(results: dict[str, Any]) -> str:
    """The documentation page with the table put in."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return before + BEGIN + table(results) + END + rest.partition(END)[2]


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
