"""Puts generated parts into a page, each between its markers: `<!-- NAME: begin -->` and `<!-- NAME: end -->`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def filled(page: Path, parts: Mapping[str, str]) -> str:
    """The text of a page with these parts; ValueError where it has no place, or several, for one."""
    text = page.read_text()
    for name, part in parts.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{page.name} needs one {begin.strip()} and one {end}")
        before, _, rest = text.partition(begin)
        text = before + begin + part + end + rest.partition(end)[2]
    return text


def results(file: Path, command: str) -> Any:
    """The content of a result file; exit with the command that measures it where it is missing."""
    if not file.exists():
        sys.exit(f"{file.name} is missing: `{command}` measures it")
    return json.loads(file.read_text())


def write(page: Path, text: str, *, check: bool, command: str) -> None:
    """Write a page; to `check`, exit with the command that writes it where it is another."""
    if not check:
        page.write_text(text)
    elif page.read_text() != text:
        sys.exit(f"{page.name} is out of date: run `{command}`")
