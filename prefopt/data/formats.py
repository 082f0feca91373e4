"""The formats of data files, by the ends of their names."""

from __future__ import annotations

from pathlib import Path

FORMATS = (".jsonl", ".ndjson", ".jsonlines", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".xz": "xz"}


def is_data(path: Path) -> bool:
    """Whether the name is that of a data file."""
    inner = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    return inner.suffix.lower() in FORMATS
