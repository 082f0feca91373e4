"""Puts the counts of reading data into words: what was understood, what was used, and what was not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from prefopt.data.record import Record
from prefopt.data.tokenize import TokenResult
from prefopt.data.views import ViewResult, pair_counts

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
    """The lines that `data check`, `train` and reports print about what became of the data."""
    most = counts.get("max_records")
    stopped = [f"data.max_records: reading stopped after {most} records"] if most else []
    lines = [
        *file_lines(counts), *flow_lines(counts), *stopped, *column_lines(counts), *verdict_lines(counts),
        *annotator_lines(counts),
    ]  # fmt: skip
    held_out = {name.removeprefix("eval_"): count for name, count in counts.items() if name.startswith("eval_")}
    return [*lines, *(f"held-out {line}" for line in account(held_out))] if held_out else lines


def annotator_lines(counts: Mapping[str, int]) -> list[str]:
    """What was merged of the verdicts of several annotators on the same pairs; none where nothing was."""
    if not counts.get("annotators/pairs"):
        return []
    found = {name: counts[f"annotators/{name}"] for name in ("verdicts", "pairs", "people", "disagreed", "ties")}
    by = f" by {found['people']} annotators" if found["people"] else ""
    again = f", {counts['annotators/repeated']} repeated ones left out" if counts["annotators/repeated"] else ""
    return [f"annotators: {found['verdicts']} verdicts{by} on {found['pairs']} pairs (disagreed: {found['disagreed']}, "
            f"ties: {found['ties']}){again}; data.annotators=separate keeps each row a pair"]  # fmt: skip


def stations(read: Mapping[str, int], shaped: ViewResult, tokenized: TokenResult | None = None) -> dict[str, int]:
    """The counts of the stations that records pass, with the records that reach each, and those rejected there."""
    counts = dict(read) | {"records_read": read["records"]}
    for name, result in (("shaped", shaped), ("tokenized", tokenized)):
        if result is None:
            continue
        for key, count in result.counts.items():
            counts[key] = counts.get(key, 0) + count if key.startswith("rejected/") else count
        counts |= {f"records_{name}": len(result.records), f"rejected_{name}": len(result.rejections)}
    return counts


def flow_lines(counts: Mapping[str, int]) -> list[str]:
    """What is left at each station: rows, records, records as the loss takes them, and in tokens."""
    if "records_read" not in counts:
        return []
    stops = [_stop(counts["rows"], "rows", counts["rows"] - counts["rows_used"], "rejected")]
    stops.append(_stop(counts["records_read"], "records", counts.get("left_out_by_weight", 0), "left out by weight",
                       counts.get("copied_by_weight", 0), "copies by weight"))  # fmt: skip
    if counts["records_shaped"] != counts["records_read"] or counts["rejected_shaped"]:
        stops.append(_stop(counts["records_shaped"], "converted", counts["rejected_shaped"], "rejected",
                           counts.get("pairs_tied", 0), "pairs in lists tied",
                           counts.get("completions_unused", 0), "completions in no pair"))  # fmt: skip
    if "records_tokenized" in counts:
        stops.append(_stop(counts["records_tokenized"], "in tokens", counts["rejected_tokenized"], "rejected"))
    return [f"flow: {' → '.join(stops)}"]


def _stop(count: int, what: str, *more: int | str) -> str:
    notes = [f"{number} {words}" for number, words in zip(more[::2], more[1::2], strict=True) if number]
    return f"{count} {what} ({', '.join(notes)})" if notes else f"{count} {what}"


def pairing_line(records: Iterable[Record]) -> str:
    """How many pairs each value of `data.pairs_from` makes of lists."""
    return "as pairs: " + "; ".join(
        f"data.pairs_from={pairing} "
        + _stop(found["pairs"], "pairs", found["pairs_tied"], "tied", found["no_preference"], "lists without one")
        for pairing, found in pair_counts(records).items()
    )


def column_lines(counts: Mapping[str, int]) -> list[str]:
    """The columns and keys of turns that were not read, with the number of rows that have them."""
    unread = {name.removeprefix("unread/"): count for name, count in counts.items() if name.startswith("unread/")}
    words = ", ".join(f"{name.strip() or repr(name)} ({count} rows)" for name, count in unread.items())
    return [f"not read: {words}"] if unread else []


def file_lines(counts: Mapping[str, int]) -> list[str]:
    """The files that were not read, with the reason, and those that were read together; none for one file."""
    unread = [name.removeprefix("unread_files/") for name in counts if name.startswith("unread_files/")]
    notes = [f"not read: {'; '.join(unread)}"] if unread else []
    notes += [f"read together: {name.removeprefix('read_files/')}" for name in counts if name.startswith("read_files/")]
    return ["; ".join([f"files: {counts.get('files', 0)} read", *notes])] if notes else []
