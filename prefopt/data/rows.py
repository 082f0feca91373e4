"""Reads the rows of a file, a folder or a hub set, each as a dict, or as a rejection if it is not one."""

from __future__ import annotations

import codecs
import csv
import io
import json
import lzma
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet

from prefopt.common.digest import of_file, of_json
from prefopt.data.data_config import Source
from prefopt.data.folders import WHOLE, choose_split, list_folder
from prefopt.data.formats import COMPRESSIONS, FORMATS, is_data
from prefopt.data.record import Rejection
from prefopt.errors import UserError, first_line, no_such_file, of_machine

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row | Rejection]]  # ("file:row", the row or its rejection)

ROWS = 64  # converted to Python objects at a time
# A file that unpacks to more is taken for a decompression bomb: text shrinks to a fiftieth at best.
MOST_EXPANSION, SLACK_BYTES, SLACK_ROWS = 100, 256 * 2**20, 100_000
ROW_COLUMN = re.compile(
    r"prompt|query|question|instruction|input|messages|conversations?|chosen|rejected|label|winner|"
    r"(completion|response|answer|output)s?([ _-]?[ab0-9])?"
)
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Opened:
    """The rows of a source, and a key that changes with its content.

    Attributes:
        counts: of files, complete when the rows have been read.
    """

    key: str
    rows: Rows
    counts: dict[str, int] = field(default_factory=dict)


def open_source(source: Source, *, streaming: bool = False) -> Opened:
    """Open a source.

    Raises:
        UserError: no such file, an unknown format, an unreachable hub set; while rows are read: a
            file too broken to read on.
    """
    path = Path(source.path)
    try:
        path.exists()
    except OSError as error:  # such as a name that is too long
        raise UserError(f"no such file or folder: {source.path[:200]} ({error.strerror})") from error
    if path.is_file():
        if source.split:
            raise UserError(
                f"{path} has no splits; set data.split=null (and hold out with data.eval_path or eval_records)"
            )
        if source.subset not in (None, WHOLE):
            raise UserError(f"{path} has no subsets; set data.subset=null")
        counts = {"files": 1}
        return Opened(_content_key([(path, path.name)]), _file_rows(path, path.name, counts), counts)
    if path.is_dir():
        found = list_folder(path, source)
        key = of_json([_content_key(found.files), found.counts])
        rows = chain.from_iterable(_file_rows(file, name, found.counts) for file, name in found.files)
        return Opened(key, rows, found.counts)
    return _open_hub(source, streaming=streaming)


def _content_key(files: list[tuple[Path, str]]) -> str:
    return of_json([[name, of_file(file)] for file, name in files])


class Beside(str):
    """The name of a key beside the rows of a JSON file, which is not read."""


def _file_rows(path: Path, name: str, counts: dict[str, int]) -> Rows:
    """The rows of a file; what else it holds, and that it holds none, is counted."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    suffix = (path.with_suffix("") if compression else path).suffix.lower()
    if suffix not in FORMATS:
        raise UserError(
            f"{path}: unknown format {path.suffix or '(no extension)'!r}; "
            f"known are {', '.join(FORMATS)}, each also with {', '.join(COMPRESSIONS)}"
        )
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty: it has no rows to train on")
    i = 0
    try:
        with _opened(path, compression) as stream:
            body = io.BufferedReader(Unpacked(stream, path.stat().st_size), 2**20) if compression else stream
            for row in READERS[suffix](body):
                where = f"{name.encode('utf-8', 'backslashreplace').decode()}:{i}"
                if isinstance(row, Beside):
                    counts[f"unread_files/a key beside the rows of {name}: {row}"] = 1
                    continue
                yield where, row if isinstance(row, dict) else Rejection(source=where, reason="not_a_row", detail=row)
                i += 1
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} cannot be read: {_undecoded(error)}; convert it, such as by `iconv -f WINDOWS-1252 -t UTF-8`"
        ) from error
    except Exception as error:  # pyarrow passes on the exceptions of several libraries
        if of_machine(error):
            raise
        raise UserError(
            f"{path} cannot be read: {first_line(error)[:200]}; check that it is complete and has the right extension"
        ) from error
    if not i:
        counts[f"unread_files/no rows: {name}"] = 1


def _undecoded(error: UnicodeDecodeError) -> str:
    return f"it is not {error.encoding.upper()} (byte 0x{error.object[error.start]:02x} at {error.start})"


def _opened(path: Path, compression: str | None) -> Any:
    return lzma.open(path) if compression == "xz" else pa.input_stream(str(path), compression=compression)


def _lines(stream: Any) -> Iterator[dict[str, Any] | str]:
    """Rows of JSON lines, or of a JSON list with the wrong extension; a line that is not an object is a rejection."""
    buffered = io.BufferedReader(stream)
    if buffered.peek(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
        whole = buffered.read()
        try:
            rows = _loads(whole)
        except (ValueError, RecursionError):
            buffered = io.BufferedReader(io.BytesIO(whole))
        else:
            yield from map(_row, rows)
            return
    lines: Iterable[str | bytes] = _wide(buffered) or buffered
    for raw in lines:
        line = raw.strip() if isinstance(raw, str) else raw.removeprefix(codecs.BOM_UTF8).strip()
        if not line:
            continue
        try:
            row = _loads(line if isinstance(line, str) else line.decode())
        except UnicodeDecodeError as error:
            yield f"not JSON: {_undecoded(error)}"
        except (ValueError, RecursionError) as error:
            yield f"not JSON: {first_line(error)[:200]}"
        else:
            yield _row(row)


def _wide(buffered: io.BufferedReader) -> io.TextIOWrapper | None:
    """The text of a file in UTF-16, by its mark; None for any other."""
    wide = buffered.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return io.TextIOWrapper(buffered, encoding="utf-16", newline="") if wide else None


def _row(value: Any) -> dict[str, Any] | str:
    if isinstance(value, dict):
        return value
    return f"a row must be an object of named columns, not {type(value).__name__}"


def _loads(text: str | bytes) -> Any:
    """The value of a JSON text; ValueError for an object in which a key occurs twice."""
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice in an object")
    return found


def _json(stream: Any) -> Iterator[dict[str, Any] | str]:
    """Rows of a JSON list, or of an object with one list in it; also of JSON lines with the wrong extension."""
    raw = stream.read()
    try:
        value = _loads(raw)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError:
        lines = [line for line in raw.split(b"\n", 64) if line.strip()]
        if len(lines) > 1 and lines[0].strip().startswith(b"{") and lines[0].strip().endswith(b"}"):
            yield from _lines(io.BytesIO(raw))
            return
        raise
    rows, beside = _unwrap(value) if isinstance(value, dict) else (value, [])
    if not isinstance(rows, list):
        raise ValueError(f"the file holds one {type(value).__name__}, not a list of rows")
    yield from map(_row, rows)
    yield from map(Beside, beside)


def _unwrap(value: Row) -> tuple[list[Any], list[str]]:
    """The rows of a JSON object: its one list of objects, its columns as rows, or itself as the only row.

    The second value has the names of what stands beside a list of rows.
    """
    lists = [v for v in value.values() if isinstance(v, list)]
    if any(isinstance(v[0], dict) and {"role", "from"} & v[0].keys() for v in lists if v):
        return [value], []  # lists of messages, not of rows
    is_row = len(value) > 1 and any(map(ROW_COLUMN.fullmatch, map(str.lower, value)))
    if len(lists) == 1 and lists[0] and isinstance(lists[0][0], dict) and not is_row:
        return lists[0], [name for name, held in value.items() if held is not lists[0]]
    if lists and len(lists) == len(value) and len({len(v) for v in lists}) == 1:
        return [dict(zip(value, cells, strict=True)) for cells in zip(*lists, strict=True)], []
    return [value], []


def _csv(stream: Any, delimiter: str = ",") -> Iterator[dict[str, Any] | str]:
    csv.field_size_limit(sys.maxsize)
    buffered = io.BufferedReader(stream)
    text = _wide(buffered) or io.TextIOWrapper(buffered, encoding="utf-8-sig", newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        header = _names(next(reader, []))
        for cells in reader:
            if len(cells) == len(header):
                yield dict(zip(header, cells, strict=True))
            elif cells:
                yield f"{len(cells)} cells under a header of {len(header)} columns; is a quote or a comma missing?"
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None


def _names(columns: list[str]) -> list[str]:
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise ValueError(f"the column {twice[0]!r} occurs twice")
    return columns


def _tsv(stream: Any) -> Iterator[dict[str, Any] | str]:
    return _csv(stream, delimiter="\t")


def _parquet(stream: Any) -> Iterator[dict[str, Any]]:
    body = stream if stream.seekable() else pa.BufferReader(stream.read())
    yield from _table(pyarrow.parquet.ParquetFile(body).iter_batches(batch_size=ROWS), body.size())


def _arrow(stream: Any) -> Iterator[dict[str, Any]]:
    """An Arrow file in either of its two formats."""
    body = stream if stream.seekable() else pa.BufferReader(stream.read())
    if body.read(6) == b"ARROW1":
        file = pa.ipc.open_file(body)
        batches: Any = (file.get_batch(i) for i in range(file.num_record_batches))
    else:
        body.seek(0)
        batches = pa.ipc.open_stream(body)
    yield from _table(batches, body.size())


def _table(batches: Iterable[pa.RecordBatch], stored: int) -> Iterator[dict[str, Any]]:
    """Rows of Arrow batches, a few at a time, because each repetition of a dictionary's value becomes a copy.

    Raises:
        ValueError: invalid buffers; far more rows or bytes than a file of `stored` bytes can hold.
    """
    limit = Limit(stored)
    for batch in batches:
        called = _has_arguments(batch.schema)
        _names(batch.schema.names)
        batch.validate(full=True)
        limit.count_rows(batch.num_rows)
        for start in range(0, batch.num_rows, ROWS):
            rows = batch.slice(start, ROWS).to_pylist()
            limit.count(sum(len(value) for row in rows for value in row.values() if isinstance(value, str | bytes)))
            yield from (map(_given_arguments, rows) if called else rows)


def _has_arguments(schema: pa.Schema) -> bool:
    """Whether rows hold arguments of tool calls as structures, which have the parameters of all functions."""
    return any("arguments: struct<" in str(kind) for kind in schema.types)


def _given_arguments(value: Any, inside: bool = False) -> Any:
    """A row without the nulls that Arrow puts in place of the parameters that a call does not give."""
    if isinstance(value, dict):
        return {
            name: _given_arguments(held, inside or name == "arguments")
            for name, held in value.items()
            if not inside or held is not None
        }
    return [_given_arguments(held, inside) for held in value] if isinstance(value, list) else value


class Limit:
    """Stops a decompression bomb before memory or disk are full."""

    def __init__(self, stored: int) -> None:
        self.bytes = SLACK_BYTES + MOST_EXPANSION * stored
        self.rows = SLACK_ROWS + 8 * stored  # a row takes at least one bit

    def count(self, unpacked: int) -> None:
        """Count unpacked bytes."""
        self.bytes -= unpacked
        if self.bytes < 0:
            raise ValueError(
                f"it unpacks to more than {MOST_EXPANSION} times its size; unpack it yourself if you trust it"
            )

    def count_rows(self, rows: int) -> None:
        """Count rows."""
        self.rows -= rows
        if self.rows < 0:
            raise ValueError("it declares more rows than fit into it")


class Unpacked(io.RawIOBase):
    """A compressed stream that may unpack up to a limit."""

    def __init__(self, stream: Any, stored: int) -> None:
        self.stream, self.limit = stream, Limit(stored)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self.stream.read(len(buffer))
        self.limit.count(len(content))
        buffer[: len(content)] = content
        return len(content)


READERS: dict[str, Any] = {
    ".jsonl": _lines, ".ndjson": _lines, ".jsonlines": _lines, ".json": _json, ".csv": _csv, ".tsv": _tsv,
    ".parquet": _parquet, ".arrow": _arrow, ".feather": _arrow,
}  # fmt: skip


def _open_hub(source: Source, *, streaming: bool) -> Opened:
    if not HUB_NAME.fullmatch(source.path) or is_data(Path(source.path)):
        raise no_such_file(source.path)
    import datasets
    from huggingface_hub import HfApi

    try:
        names = datasets.get_dataset_split_names(source.path, source.subset)
        loaded = datasets.load_dataset(
            source.path, source.subset, split=choose_split(names, source), streaming=streaming
        )
        files = [] if streaming else [Path(file["filename"]) for file in loaded.cache_files]
        key = of_json([of_file(file) for file in files]) if files else str(HfApi().dataset_info(source.path).sha)
    except UserError:
        raise
    except Exception as error:  # `datasets` passes on the exceptions of several libraries
        if of_machine(error):
            raise
        raise UserError(
            f"{source.path} is not a local file or folder, and could not be loaded from the hub "
            f"({type(error).__name__}: {first_line(error)[:200]}); check the name and the network, or download the set "
            "and give its path"
        ) from error
    loaded = _with_raw_images(loaded, datasets.Image)
    features = getattr(loaded, "features", None)
    called = features is not None and _has_arguments(features.arrow_schema)
    rows = (_given_arguments(dict(row)) if called else dict(row) for row in loaded)
    return Opened(key, ((f"{source.path}:{i}", row) for i, row in enumerate(rows)))


def _with_raw_images(loaded: Any, image: Any) -> Any:
    """A hub set whose features of the class `image` stay the bytes that they are, for the reader to check."""

    def raw(feature: Any) -> Any:
        if isinstance(feature, image):
            return image(decode=False)
        if hasattr(feature, "feature"):  # a list
            return type(feature)(raw(feature.feature))
        return feature

    for name, feature in (getattr(loaded, "features", None) or {}).items():
        if (kept := raw(feature)) != feature:
            loaded = loaded.cast_column(name, kept)
    return loaded
