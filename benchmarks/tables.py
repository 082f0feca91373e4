"""Write the tables of `benchmarks/README.md`, README and `docs/dpo_or_rlhf.md` from the result files, between their
markers, and the pictures of the suites to `docs/img`.

python benchmarks/tables.py            # rewrite pages and pictures: `make results`
python benchmarks/tables.py --check    # exit 1 if they do not match the result files
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cost_tables
import gpu_tables
import ladder_tables
import real_tables
import real_world_tables
import rlhf_tables
import verdicts
import world_tables

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "benchmarks" / "README.md", ROOT / "README.md", ROOT / "docs" / "dpo_or_rlhf.md")
RESULTS = Path(__file__).with_name("results")
PICTURES = ROOT / "docs" / "img"


SECTIONS: dict[str, Callable[[Any], str]] = {
    **cost_tables.TABLES,
    **gpu_tables.TABLES,
    **ladder_tables.TABLES,
    **real_tables.TABLES,
    **real_world_tables.TABLES,
    **rlhf_tables.TABLES,
    **verdicts.TABLES,
    **world_tables.TABLES,
}


PICTURES_OF: dict[str, Callable[[Any], str]] = {
    **ladder_tables.PICTURES,
    **real_world_tables.PICTURES,
    **rlhf_tables.PICTURES,
    **world_tables.PICTURES,
}


def rewritten(text: str) -> str:
    """A page with the tables of every result file that exists and that the page has a place for."""
    for name, section in SECTIONS.items():
        file = RESULTS / f"{name.split('/')[0]}.json"  # the rest names one of several tables of a file
        if not file.exists() or f"<!-- {name}: " not in text:
            continue
        table = section(json.loads(file.read_text()))
        pattern = re.compile(f"(<!-- {name}: .*? -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        text, found = pattern.subn(lambda m, table=table: f"{m[1]}\n{table}\n\n{m[2]}", text)  # type: ignore[misc]
        if found != 1:
            sys.exit(f"the page has {found} places for the table {name!r}, expected one")
    return text


def pictures() -> dict[Path, str]:
    """The content of every picture whose result file exists."""
    found = {}
    for name, draw in PICTURES_OF.items():
        file = RESULTS / f"{name}.json"
        if file.exists():
            found[PICTURES / f"{name}.svg"] = draw(json.loads(file.read_text()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the tables are not up to date")
    args = parser.parse_args()
    for file, new in ({page: rewritten(page.read_text()) for page in PAGES} | pictures()).items():
        old = file.read_text() if file.exists() else ""
        if args.check and new != old:
            sys.exit(f"{file.name} is out of date: run `make results`")
        if new != old:
            file.write_text(new)


if __name__ == "__main__":
    main()
