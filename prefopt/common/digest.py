"""Digests of JSON values, files and token records: the names of what is kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple


class FileState(NamedTuple):
    """A file as it was when it was looked at: its digest is computed again only when the size or the time changes."""

    name: str  # moves with its folder
    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, file: Path, top: Path | None = None) -> FileState:
        """The present state of a file, named by its path from `top` on."""
        about = file.stat()
        name = str(file.relative_to(top)) if top is not None else file.name
        return cls(name, str(file), about.st_size, about.st_mtime_ns)


def of_json(value: Any, *, size: int = 12) -> str:
    """The digest of a JSON value in `size` bytes of hexadecimal digits; what is not JSON counts as its text."""
    return of_bytes(json.dumps(value, sort_keys=True, default=str).encode(), size=size)


def of_bytes(content: bytes, *, size: int = 12) -> str:
    """The digest of some bytes."""
    return hashlib.blake2b(content, digest_size=size).hexdigest()


def of_file(path: Path, *, size: int = 64) -> str:
    """The digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=size)).hexdigest()


def of_files(files: Iterable[FileState]) -> str:
    """The digest of several files' names and contents."""
    return _of_files(tuple(files))


@lru_cache(maxsize=64)
def _of_files(files: tuple[FileState, ...]) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for file in files:
        digest.update(f"{file.name}\0{file.size}\0".encode())
        with open(file.path, "rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def of_records(*tables: Any) -> str:
    """The digest of all that training and evaluation read of token records: ids, tokens, labels, weights, ..."""
    digest = hashlib.blake2b(digest_size=12)
    for table in tables:
        for record in table if table is not None else ():
            facts = [record.id, record.kind.value, record.desirable, record.scores, record.weight]
            judged = {"margin": record.margin, "probability": record.probability}
            facts += [[name, value] for name, value in judged.items() if value is not None]
            digest.update(json.dumps(facts).encode())
            for ids in (record.prompt, *record.completions):
                digest.update(len(ids).to_bytes(4, "little") + ids.astype("<i4").tobytes())
    return digest.hexdigest()


def source_files(modules: Iterable[str]) -> Iterator[FileState]:
    """The files of modules that are imported; none for those typed into an interpreter."""
    for name in dict.fromkeys(modules):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None and os.path.isfile(file):
            yield FileState.of(Path(file))
