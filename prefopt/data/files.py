"""Rows of a file, a folder or a hub set, one dict at a time, with the rows that are not rows counted."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet

from prefopt.data.config import Source
from prefopt.data.record import Rejection
from prefopt.errors import UserError

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row | Rejection]]  # ("file:row", the row, or why it is none)

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2"}
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Opened:
    """A source that is there: its rows, and a key that changes when its content does."""

    key: str
    rows: Rows


def open_source(source: Source, *, streaming: bool = False) -> Opened:
    """Find a source.

    Raises:
        UserError: no such file, an unknown format, a hub set out of reach; and while its rows are read, a file that
            is broken in a way that leaves no rows to go on with.
    """
    path = Path(source.path)
    if source.split and path.exists() and not (path / "dataset_dict.json").is_file():
        raise UserError(f"{path} has no splits; set data.split=null (and hold out with data.eval_path or eval_records)")
    if path.is_file():
        return Opened(_content_key(path), _file_rows(path, path.name))
    if path.is_dir():
        return Opened(_content_key(path), _folder_rows(path, source))
    return _open_hub(source, streaming=streaming)


def _content_key(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in _local_files(path):
        with file.open("rb") as stream:
            digest.update(f"{file.relative_to(path)}\0".encode())
            digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()


def _local_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))


def _file_rows(path: Path, name: str) -> Rows:
    compression = COMPRESSIONS.get(path.suffix.lower())
    suffix = (path.with_suffix("") if compression else path).suffix.lower()
    if suffix not in READERS:
        raise UserError(
            f"{path}: unknown format {path.suffix or '(no extension)'!r}; "
            f"known are {', '.join(READERS)}, each also with {', '.join(COMPRESSIONS)}"
        )
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty: there is nothing to train on")
    try:
        with pa.input_stream(str(path), compression=compression) as stream:
            for i, row in enumerate(READERS[suffix](stream)):
                where = f"{name}:{i}"
                if isinstance(row, dict):
                    yield where, row
                else:
                    yield where, Rejection(source=where, reason="not_a_row", detail=row)
    except (OSError, EOFError, pa.ArrowException, UnicodeError, csv.Error, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {_first_line(error)}; is it complete, and is it what its name says?"
        ) from error


def _lines(stream: Any) -> Iterator[dict[str, Any] | str]:
    """JSON lines. A line that is not an object is a rejection, not the end of the file."""
    buffered = io.BufferedReader(stream)
    wide = buffered.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    for raw in io.TextIOWrapper(buffered, encoding="utf-16", newline="\n") if wide else buffered:
        line = raw.strip() if isinstance(raw, str) else raw.removeprefix(codecs.BOM_UTF8).strip()
        if not line:
            continue
        try:
            row = json.loads(line if isinstance(line, str) else line.decode())
        except (ValueError, RecursionError) as error:
            yield f"not JSON: {_first_line(error)}"
            continue
        yield row if isinstance(row, dict) else f"a row must be an object of named columns, not {type(row).__name__}"


def _json(stream: Any) -> Iterator[dict[str, Any] | str]:
    """One JSON list of objects, or an object with one list in it; JSON lines by a wrong name too."""
    raw = stream.read()
    try:
        value = json.loads(raw)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError:
        lines = [line for line in raw.split(b"\n", 64) if line.strip()]
        if len(lines) > 1 and lines[0].strip().startswith(b"{") and lines[0].strip().endswith(b"}"):
            return _lines(io.BytesIO(raw))
        raise
    if isinstance(value, dict):
        value = _unwrap(value)
    if not isinstance(value, list):
        raise ValueError(f"the file holds one {type(value).__name__}, not a list of rows")
    return (
        row if isinstance(row, dict) else f"a row must be an object of named columns, not {type(row).__name__}"
        for row in value
    )


def _unwrap(value: Row) -> list[Any]:
    """The rows of a JSON object: its one list of objects, its columns as rows, or itself as the only row."""
    lists = [v for v in value.values() if isinstance(v, list)]
    if any(isinstance(v[0], dict) and {"role", "from"} & v[0].keys() for v in lists if v):
        return [value]  # lists of messages, not of rows
    if len(lists) == 1 and lists[0] and isinstance(lists[0][0], dict):
        return lists[0]
    if lists and len(lists) == len(value) and len({len(v) for v in lists}) == 1:
        return [dict(zip(value, cells, strict=True)) for cells in zip(*lists, strict=True)]
    return [value]


def _csv(stream: Any, delimiter: str = ",") -> Iterator[dict[str, Any] | str]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), delimiter=delimiter, strict=True)
    header = next(reader, [])
    if len(set(header)) != len(header):
        raise ValueError(f"a column name occurs twice in the header {header}")
    for cells in reader:
        if not cells:
            continue
        if len(cells) == len(header):
            yield dict(zip(header, cells, strict=True))
        else:
            yield f"{len(cells)} cells under a header of {len(header)} columns; is a quote or a comma missing?"


def _tsv(stream: Any) -> Iterator[dict[str, Any] | str]:
    return _csv(stream, delimiter="\t")


def _parquet(stream: Any) -> Iterator[dict[str, Any]]:
    file = pyarrow.parquet.ParquetFile(stream if stream.seekable() else pa.BufferReader(stream.read()))
    for batch in file.iter_batches(batch_size=1024):
        yield from batch.to_pylist()


def _arrow(stream: Any) -> Iterator[dict[str, Any]]:
    """An Arrow file in either of its two formats."""
    magic = stream.read(6)
    body = pa.BufferReader(magic + stream.read()) if not stream.seekable() else stream
    body.seek(0)
    if magic == b"ARROW1":
        file = pa.ipc.open_file(body)
        batches: Any = (file.get_batch(i) for i in range(file.num_record_batches))
    else:
        batches = pa.ipc.open_stream(body)
    for batch in batches:
        yield from batch.to_pylist()


READERS: dict[str, Any] = {
    ".jsonl": _lines, ".ndjson": _lines, ".json": _json, ".csv": _csv, ".tsv": _tsv,
    ".parquet": _parquet, ".arrow": _arrow, ".feather": _arrow,
}  # fmt: skip


def _folder_rows(folder: Path, source: Source) -> Rows:
    """The data files of a folder in the order of their names, or a set saved by `datasets`."""
    if (folder / "dataset_dict.json").is_file():
        folder = folder / _choose_split(json.loads((folder / "dataset_dict.json").read_text())["splits"], source)
    files = [p for p in _local_files(folder) if _is_data(p)]
    if (folder / "state.json").is_file():
        listed = json.loads((folder / "state.json").read_text())["_data_files"]
        files = [folder / entry["filename"] for entry in listed]
    if not files:
        raise UserError(f"{folder} holds no data file ({', '.join(READERS)})")
    return chain.from_iterable(_file_rows(path, str(path.relative_to(folder))) for path in files)


def _is_data(path: Path) -> bool:
    inner = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    return inner.suffix.lower() in READERS and path.name not in ("dataset_info.json", "state.json")


def _choose_split(names: list[str], source: Source) -> str:
    split = source.split or ("train" if "train" in names else names[0] if len(names) == 1 else None)
    if split not in names:
        raise UserError(f"{source.path} has the splits {names}; choose one with data.split=NAME")
    return split


def _open_hub(source: Source, *, streaming: bool) -> Opened:
    if not HUB_NAME.fullmatch(source.path) or _is_data(Path(source.path)):
        raise UserError(f"no such file or folder: {source.path}")
    import datasets

    try:
        names = datasets.get_dataset_split_names(source.path, source.subset)
        loaded = datasets.load_dataset(
            source.path, source.subset, split=_choose_split(names, source), streaming=streaming
        )
        if streaming:
            from huggingface_hub import HfApi

            key = f"{HfApi().dataset_info(source.path).sha}"
        else:
            key = loaded._fingerprint
    except UserError:
        raise
    except Exception as error:  # `datasets` lets the exceptions of half a dozen libraries through
        raise UserError(
            f"{source.path} is neither a file nor a folder here, and could not be had from the hub "
            f"({type(error).__name__}: {_first_line(error)}); check the name and the network, or download the set and "
            "give its path"
        ) from error
    return Opened(key, ((f"{source.path}:{i}", dict(row)) for i, row in enumerate(loaded)))


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
