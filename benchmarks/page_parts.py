"""Puts generated parts into a page, each between its markers: `<!-- NAME: begin -->` and `<!-- NAME: end -->`."""

from __future__ import annotations

from collections.abc import Mapping


def filled(text: str, parts: Mapping[str, str]) -> str:
    """A page with these parts; ValueError where it has no place, or several, for one."""
    for name, part in parts.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"the page needs one {begin.strip()} and one {end}")
        before, _, rest = text.partition(begin)
        text = before + begin + part + end + rest.partition(end)[2]
    return text
