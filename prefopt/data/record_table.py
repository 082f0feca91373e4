"""Keeps records on disk in a memory-mapped Arrow file, with the rejections and counts of their making."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefopt.common.cache import cache_dir, cached_folder
from prefopt.common.digest import of_bytes, of_json
from prefopt.data.images.image_files import ImageFile, State
from prefopt.data.record import Record, Rejection, Text, is_tie
from prefopt.errors import UserError, first_line, of_machine
from prefopt.plugin import Data

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("kind", pa.string()),
        ("prompt", pa.large_string()),  # a JSON string, or a JSON list of messages
        ("completions", pa.list_(pa.large_string())),  # the same, each
        ("desirable", pa.bool_()),
        ("scores", pa.list_(pa.float64())),
        ("weight", pa.float64()),
        ("ended", pa.list_(pa.bool_())),  # null: all
        ("arguments", pa.large_string()),  # a JSON object; null for none
        ("margin", pa.float64()),
        ("probability", pa.float64()),
        ("source", pa.string()),
    ]
)
RECORDS = "records.arrow"
BATCH_ROWS = 512  # of one Arrow batch: small enough to hold in memory, whatever the texts


class RecordTable(Sequence[Record]):
    """Records of an Arrow table, decoded on access.

    Attributes:
        folder: their folder, named by a digest of the content; None for records in memory.
        repeats: row -> the number of earlier rows with the same content.
    """

    def __init__(self, table: pa.Table, *, repeats: dict[int, int], folder: Path | None = None) -> None:
        self.table, self.folder = table, folder
        self.repeats = repeats

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        return decode(self.table.slice(index, 1).to_pylist()[0], self.repeats.get(index, 0))

    def __iter__(self) -> Iterator[Record]:
        row = 0
        for batch in self.table.to_batches():
            for values in batch.to_pylist():
                yield decode(values, self.repeats.get(row, 0))
                row += 1

    def kinds(self) -> set[Data]:
        """The kinds that occur."""
        return {Data(kind) for kind in pc.unique(self.table.column("kind")).to_pylist()}

    def ties(self) -> bool:
        """Whether any pair is a tie."""
        judged = self.table.select(["scores", "margin", "probability"])
        return any(is_tie(**row) for batch in judged.to_batches() for row in batch.to_pylist())


def decode(row: dict[str, Any], repeat: int) -> Record:
    """The record of a row of the table with the content of `repeat` earlier rows."""
    return Record(
        id=f"{row['id']}-{repeat + 1}" if repeat else row["id"],
        kind=Data(row["kind"]),
        prompt=_text(row["prompt"]),
        completions=tuple(_text(text) for text in row["completions"]),
        desirable=row["desirable"],
        scores=None if row["scores"] is None else tuple(row["scores"]),
        weight=row["weight"],
        ended=None if row["ended"] is None else tuple(row["ended"]),
        arguments={} if row["arguments"] is None else json.loads(row["arguments"]),
        margin=row["margin"],
        probability=row["probability"],
        source=row["source"],
    )


@dataclass
class Log:
    """The rejections and counts of making records, and the images that were looked for."""

    rejections: list[Rejection] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    schema: str = ""
    images: dict[str, ImageFile] = field(default_factory=dict)
    image_states: dict[str, State] = field(default_factory=dict)

    def reject(self, rejection: Rejection) -> None:
        """List and count one rejection."""
        self.rejections.append(rejection)
        self.counts[f"rejected/{rejection.reason}"] += 1


def stored(name: str, key: str, make: Callable[[Log], Iterable[Record]], folder: str | None) -> tuple[RecordTable, Log]:
    """The records that `make(log)` yields, or yielded when the cache was filled."""

    def write(target: Path) -> None:
        log = Log()
        digests, repeats = _write(make(log), target / RECORDS)
        log.counts["records"] = len(digests)
        meta = {"rejections": [asdict(r) for r in log.rejections], "counts": dict(log.counts), "schema": log.schema,
                "repeats": repeats, "images": {name: asdict(file) for name, file in log.images.items()},
                "image_states": log.image_states}  # fmt: skip
        (target / "meta.json").write_text(json.dumps(meta))

    place = cached_folder(data_cache(folder) / f"{name}-{of_json([code_key(), key])}", write)
    with reading(place):
        meta = json.loads((place / "meta.json").read_text(encoding="utf-8"))
        log = Log(
            [Rejection(**r) for r in meta["rejections"]], Counter(meta["counts"]), str(meta["schema"]),
            {name: ImageFile(**file) for name, file in meta["images"].items()}, meta["image_states"],
        )  # fmt: skip
        repeats = {int(row): int(count) for row, count in meta["repeats"].items()}
        table = RecordTable(open_arrow(place / RECORDS, SCHEMA), repeats=repeats, folder=place)
    return table, log


@contextmanager
def reading(place: Path) -> Iterator[None]:
    """Turn any error of reading a folder of the cache into one that names it.

    Raises:
        UserError: the folder was truncated or altered.
    """
    try:
        yield
    except Exception as error:  # pyarrow passes on the exceptions of several libraries
        if of_machine(error):
            raise
        raise UserError(f"the prepared data in {place} cannot be read ({first_line(error)[:200]}): delete that folder "
                        "to make it again") from error  # fmt: skip


def open_arrow(path: Path, schema: pa.Schema) -> pa.Table:
    """An Arrow stream file of this schema, memory-mapped.

    Raises:
        ValueError: another schema, or buffers that are too short for it.
    """
    table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    if not table.schema.equals(schema):
        raise ValueError("it has other columns")
    table.validate()
    return table


def data_cache(folder: str | None) -> Path:
    """The folder of prepared data."""
    return Path(folder) if folder else cache_dir() / "data"


@cache
def code_key() -> str:
    """The digest of this package's code: a cache must not outlive the code that filled it."""
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    return of_bytes(b"".join(path.read_bytes() for path in sources))


def encode(text: Text) -> str:
    """A text or its turns as JSON."""
    return json.dumps(text, ensure_ascii=False)


def _text(text: str) -> Text:
    value = json.loads(text)
    return value if isinstance(value, str) else tuple(value)


def _write(records: Iterable[Record], path: Path) -> tuple[Any, dict[int, int]]:
    """Write the records; return digests of their ids, and which rows repeat earlier ones how often."""
    digests = [np.empty(0, np.uint64)]
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
        for batch in _batches(records):
            writer.write_batch(batch)
            names = batch.column("id").to_pylist()
            digests.append(np.array([int(of_bytes(name.encode(), size=8), 16) for name in names], np.uint64))
    ids = np.concatenate(digests)
    order = np.argsort(ids, kind="stable")
    same = np.flatnonzero(ids[order][1:] == ids[order][:-1]) + 1
    repeats: dict[int, int] = {}
    for position in same:
        repeats[int(order[position])] = repeats.get(int(order[position - 1]), 0) + 1
    return ids, repeats


def _batches(records: Iterable[Record]) -> Iterator[pa.RecordBatch]:
    rows: list[dict[str, Any]] = []
    for record in records:
        rows.append(
            {
                "id": record.id,
                "kind": record.kind.value,
                "prompt": encode(record.prompt),
                "completions": [encode(text) for text in record.completions],
                "desirable": record.desirable,
                "scores": record.scores,
                "weight": record.weight,
                "ended": record.ended,
                "arguments": json.dumps(record.arguments, ensure_ascii=False) if record.arguments else None,
                "margin": record.margin,
                "probability": record.probability,
                "source": record.source,
            }
        )
        if len(rows) == BATCH_ROWS:
            yield pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
            rows = []
    if rows:
        yield pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
