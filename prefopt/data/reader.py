"""Reads the sources of a configuration into records, and counts the rows that it rejects."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from prefopt.common.digest import of_json
from prefopt.data.annotators import Annotators
from prefopt.data.data_config import DataConfig, Source
from prefopt.data.images.image_files import FILES, ImageShelf, changed, state_of
from prefopt.data.images.image_places import COLUMNS, with_images, with_marks, without_images
from prefopt.data.make import with_facts
from prefopt.data.record import Record, Rejection, RowError
from prefopt.data.record_table import Log, RecordTable, data_cache, stored
from prefopt.data.row_facts import common_fact, row_arguments, row_ended
from prefopt.data.rows import Opened, Row, Rows, open_source
from prefopt.data.schemas import named, recognise, rename
from prefopt.data.schemas.base import ENDED_DEFAULT, MEMBERS, PLACES, Made, Schema, fact
from prefopt.data.schemas.verdicts import check_codes, decode
from prefopt.data.string_forms import parsed
from prefopt.data.unread import Watched, unread, unread_of_members, without
from prefopt.errors import UserError

SAMPLE_ROWS = 64  # from which the schema is recognised


@dataclass(frozen=True, kw_only=True)
class ReadResult:
    """The records, and the rows that became none.

    Attributes:
        records: in the order of the rows, read from disk on access; pairs of several annotators come last.
        rejections: one for each rejected row.
        schema: the name of the schema (several joined by "+" for a mixture).
        counts: `rows` (the sum of `rows_used` and of the `rows` of the rejections); `records` (`records_made`, less
            `left_out_by_weight`, with `copied_by_weight`); `unread/COLUMN`, and `rejected/REASON` for each reason.
    """

    records: Sequence[Record]
    rejections: list[Rejection]
    schema: str
    counts: dict[str, int]


def read(config: DataConfig) -> ReadResult:
    """Read the records of `config.path`, or of the mixture.

    Raises:
        UserError: no such file, an unknown format or schema, missing columns, or no usable row.
    """
    config.check()
    sources = config.sources()
    opened = [open_source(source, streaming=config.streaming) for source in sources]
    content = [[one.key, dataclasses.asdict(source)] for source, one in zip(sources, opened, strict=True)]
    records, log = _kept(config, sources, opened, content)
    if changed(log.image_states):  # the data file is as it was, and images beside it are not
        opened = [open_source(source, streaming=config.streaming) for source in sources]
        now = {path: state_of(path) for path in log.image_states}
        records, log = _kept(config, sources, opened, [content, now])
    FILES.update(log.images)
    if not records:
        raise UserError(f"{_names(sources)}: none of the {log.counts['rows']} rows is usable; {_worst(log)}")
    return ReadResult(records=records, rejections=log.rejections, schema=log.schema, counts=dict(log.counts))


def _kept(config: DataConfig, sources: list[Source], opened: list[Opened], content: Any) -> tuple[RecordTable, Log]:
    """The records of the sources, from the cache where they are there."""

    def make(log: Log) -> Iterator[Record]:
        store = data_cache(config.cache_dir) / "images"
        found = chain.from_iterable(
            _records(s, one, config, log, store) for s, one in zip(sources, opened, strict=True)
        )
        for i, record in enumerate(islice(found, config.max_records), 1):
            yield record
            if i == config.max_records:
                log.counts["max_records"] = i
        for one in opened:
            log.counts.update(one.counts)
        check_codes(log.counts)

    return stored("records", of_json([content, config.max_records, config.annotators]), make, config.cache_dir)


def _records(source: Source, opened: Opened, config: DataConfig, log: Log, store: Path) -> Iterator[Record]:
    sample = list(islice(opened.rows, SAMPLE_ROWS))
    good = [_changed(row, source) for _, row in sample if not isinstance(row, Rejection)]
    if not good:
        for _, row in sample:
            log.counts["rows"] += 1
            if isinstance(row, Rejection):
                log.reject(row)
        raise UserError(f"{source.path} has no readable rows; {_worst(log)}")
    _check_fields(good, source)
    schema = recognise(good, source.path) if source.schema == "auto" else named(source.schema)
    log.schema = "+".join(filter(None, [log.schema, schema.name]))
    rows = _readable(chain(sample, opened.rows), source, log)
    judged, shelf = Annotators(config.annotators), ImageShelf(image_roots(source), store, log.images, log.image_states)
    for where, row in rows if schema.gather is None else schema.gather(rows):
        facts: Counter[str] = Counter()
        beside = None if schema.gather else shelf.beside(where)
        made = _made(schema, {**row, ENDED_DEFAULT: source.ended}, judged, facts, beside)
        if _enough(made, row, judged, log, config.max_records if source.weight >= 1 else None):
            break
        log.counts.update(facts)
        _account(made, where, len(row.get(PLACES, [where])), log)
        for record in made:
            if isinstance(record, Record) and not judged.take(record := dataclasses.replace(record, source=where), row):
                yield from _copies(record, source.weight, log)
    for record in judged.merged(log):
        yield from _copies(record, source.weight, log)


def _enough(made: list[Made], row: Row, judged: Annotators, log: Log, most: int | None) -> bool:
    """Whether reading ends before this row: `most` records exist, each pending pair counted as one, and the row has no
    further vote on a pending pair.

    Without pending pairs the caller limits the number of records.
    """
    records = [one for one in made if isinstance(one, Record)]
    if most is None or not len(judged) or not records:
        return False
    given = log.counts["records_made"] - log.counts["left_out_by_weight"] + log.counts["copied_by_weight"]
    return given + len(judged) >= most and not any(judged.holds(record, row) for record in records)


def image_roots(source: Source) -> list[Path]:
    """The folders that the paths of a source's images start from."""
    path = Path(source.path)
    return [path if path.is_dir() else path.parent]


def _account(made: list[Made], where: str, rows: int, log: Log) -> None:
    """Count the rows that became records, and list what did not; each row is in exactly one of the two."""
    errors = [error for error in made if isinstance(error, RowError)]
    rest = rows - sum(error.rows or 0 for error in errors)
    log.counts["rows"] += rows
    if len(errors) < len(made):
        log.counts["rows_used"] += rest
        rest = 0
    for error in errors:
        if error.code:
            log.counts[f"unknown_code/{error.code}"] += 1
        covered = error.rows or 0
        if error.rows is None:
            covered, rest = rest, 0
        log.reject(Rejection(source=error.place or where, reason=error.reason, detail=error.detail, rows=covered))


def _made(
    schema: Schema, row: Row, judged: Annotators, counts: Counter[str], shelf: ImageShelf | None = None
) -> list[Made]:
    """What a row makes; `counts` gets its verdicts and what was not read of it."""
    names: Counter[str] = Counter()
    refused: dict[int, RowError] = {}
    try:
        original, unplaced = row, ""
        if shelf is not None:
            row, unplaced = with_marks(row, shelf)
        watched = Watched(row)
        watched.read.add(ENDED_DEFAULT)
        made = schema.read(watched)
        if row is not original:
            made = [with_images(one, unplaced) if isinstance(one, Record) else one for one in made]
        made = _with_facts(made, watched, watched[MEMBERS] if schema.gather else [watched])
        judged.note(made, watched)
        if schema.gather is None:
            names.update(unread(watched))
        else:
            names, refused = unread_of_members(watched)
        if schema.verdict is not None:
            found = schema.verdict(row)
            counts[f"verdict/{found.code}/{found.side}"] += 1
    except RowError as error:
        return [error]
    except RecursionError:
        return [RowError("too_deep", "its values are nested too deeply")]
    except UnicodeError:
        return [RowError("bad_unicode", "a text has a lone surrogate; fix the file's encoding")]
    if refused:  # read again without them
        rest = {key: [one for i, one in enumerate(row[key]) if i not in refused] for key in (MEMBERS, PLACES)}
        return [*refused.values(), *(_made(schema, row | rest, judged, counts) if rest[MEMBERS] else [])]
    counts.update({f"unread/{name}": count for name, count in names.items()})
    return made


def _with_facts(made: list[Made], row: Row, rows: list[Row]) -> list[Made]:
    """The records of these rows with the facts that no schema reads: weight, template arguments, open completions.

    Of rows that make one record together the schema reads which completions are open.
    """
    weight = common_fact("weight", map(_weight, rows))
    arguments = common_fact("template arguments", map(row_arguments, rows))
    own = row_ended(row) if rows[0] is row else None
    return [
        one if isinstance(one, RowError) else _with(one, weight, arguments or {}, own, row[ENDED_DEFAULT])
        for one in made
    ]


def _with(
    record: Record, weight: float | None, arguments: dict[str, Any], own: bool | tuple[bool, ...] | None, default: bool
) -> Record:
    """A record with facts of its row. Whether completions end their turns the row says, else its schema, else
    `default`."""
    record = record if weight is None else dataclasses.replace(record, weight=weight)
    said = record.ended if own is None else own
    said = default if said is None else said
    ended = (said,) * len(record.completions) if isinstance(said, bool) else said
    return with_facts(record, arguments, ended)


def _weight(row: Row) -> float | None:
    weight = fact(row, "weight")
    if weight is not None and weight < 0:
        raise RowError("bad_weight", f"the weight must be at least 0, not {weight:g}")
    return weight


def _changed(row: Row, source: Source) -> Row:
    """The row as the settings of its source change it."""
    renamed: Row = parsed(rename(parsed(row), source.fields))
    if not set(COLUMNS).isdisjoint(source.ignore):
        renamed = without_images(renamed)
    renamed = without(renamed, source.ignore)
    return decode(renamed, source.verdicts) if source.verdicts else renamed


def _readable(rows: Rows, source: Source, log: Log) -> Iterator[tuple[str, Row]]:
    for where, row in rows:
        if isinstance(row, Rejection):
            log.counts["rows"] += 1
            log.reject(row)
        else:
            yield where, _changed(row, source)


def _copies(record: Record, weight: float, log: Log) -> Iterator[Record]:
    """Repeat a record by its source's weight; its id decides about the fraction, so every run draws the same."""
    times, fraction = divmod(weight, 1.0)
    times += int(record.id, 16) / 2**64 < fraction
    log.counts["records_made"] += 1
    if not times:
        log.counts["left_out_by_weight"] += 1
    for i in range(int(times)):
        if i:
            log.counts["copied_by_weight"] += 1
        yield record


def _check_fields(sample: list[Row], source: Source) -> None:
    for name, column in source.fields.items():
        if all(row.get(name) is None for row in sample):
            there = sorted({key for row in sample for key in row} - set(source.fields))
            raise UserError(
                f"data.fields maps {name!r} to {column!r}, which is not in {source.path}; its columns are {there}"
            )


def _names(sources: list[Source]) -> str:
    return ", ".join(source.path for source in sources)


def _worst(log: Log | Any) -> str:
    """The most frequent rejection with its first example, for an error message."""
    if not log.rejections:
        return "it is empty"
    first = max(log.rejections, key=lambda r: log.counts[f"rejected/{r.reason}"])
    return f"most are {first.reason}: {first.source}: {first.detail}"
