"""Puts the counts of reading data into words: what was understood, what was used, and what was not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

SHOWN_CODES = 8
LEAST_VERDICTS = 100  # below, one side wins more often by chance
MEANINGS = {"first": "first better", "second": "second better", "tie": "a tie"}


def verdict_lines(counts: Mapping[str, int]) -> list[str]:
    """How the verdicts of judges were understood, in one line; none where the data has no verdicts."""
    found = {name.removeprefix("verdict/"): count for name, count in counts.items() if name.startswith("verdict/")}
    if not found:
        return []
    sides: Counter[str] = Counter()
    codes = []
    for name, count in sorted(found.items(), key=lambda item: (-item[1], item[0])):
        code, side = name.rsplit("/", 1)
        sides[side] += count
        codes.append(f"{code} is {MEANINGS.get(side, side)}: {count}")
    more = f"; {len(codes) - SHOWN_CODES} more codes" if len(codes) > SHOWN_CODES else ""
    if "desirable" in sides or "undesirable" in sides:
        summary = f"labels: desirable {sides['desirable']}, undesirable {sides['undesirable']}"
    else:
        summary = f"verdicts: first better {sides['first']}, second better {sides['second']}, tie {sides['tie']}"
    return [f"{summary} ({'; '.join(codes[:SHOWN_CODES])}{more})"]


def winner_side(counts: Mapping[str, int]) -> tuple[float, str] | None:
    """(how often the side that wins more often wins, in words); None for fewer than 100 verdicts."""
    sides: Counter[str] = Counter()
    for name, count in counts.items():
        if name.startswith("verdict/"):
            sides[name.rpartition("/")[2]] += count
    decided = sides["first"] + sides["second"]
    if decided < LEAST_VERDICTS:
        return None
    side = max("first", "second", key=lambda side: sides[side])
    return sides[side] / decided, f"the {side} answer wins {sides[side]} of {decided}"


def account(counts: Mapping[str, int]) -> list[str]:
    """The lines that `data check`, `train` and reports print about the reading of data."""
    most = counts.get("max_records")
    stopped = [f"data.max_records: reading stopped after {most} records"] if most else []
    return [*file_lines(counts), *stopped, *column_lines(counts), *verdict_lines(counts)]


def column_lines(counts: Mapping[str, int]) -> list[str]:
    """The columns and keys of turns that were not read, with the number of rows that have them."""
    unread = {name.removeprefix("unread/"): count for name, count in counts.items() if name.startswith("unread/")}
    return [f"not read: {', '.join(f'{name} ({count} rows)' for name, count in unread.items())}"] if unread else []


def file_lines(counts: Mapping[str, int]) -> list[str]:
    """The files that were not read, with the reason; none where every file was."""
    unread = [name.removeprefix("unread_files/") for name in counts if name.startswith("unread_files/")]
    return [f"files: {counts.get('files', 0)} read; not read: {'; '.join(unread)}"] if unread else []
