"""Keeps per-token log-probs of a reference on disk, in parts that are whole or absent.

    <root>/<fingerprint>/about.json      facts for people
                         part-<random>/  keys.npy     (E, 16) uint8, a hash of prompt and completion
                                         offsets.npy  (E + 1,) int64, entry e is token[offsets[e] : offsets[e + 1]]
                                         token.npy    (T,) float32, nats
                                         entropy.npy  (T,) float32, if it was asked for
                                         digest       of the four, 32 hexadecimal digits, written last
                         tmp-<random>/   a part that was being written when its process died

A part is written into `tmp-`, flushed and renamed: any number of processes may add to one store, and a power cut leaves
whole parts. Arrays are memory-mapped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefopt.common.cache import cache_dir, whole_disk
from prefopt.common.files import new_folder, remove_leftovers, write_text
from prefopt.errors import UserError

logger = logging.getLogger(__name__)

Array = NDArray[Any]
Key = bytes  # 16 bytes
Entry = tuple[Array, Array | None]  # per-token log-probs, and entropies where there are any

ARRAYS = ("keys", "offsets", "token", "entropy")
NAME = re.compile(r"[0-9a-f]{32}")
COMPUTED = b"packed"  # how entries are computed: a change of it changes their bits, so old ones must not be found
DIGEST = re.compile(r"[0-9a-f]{32}")
# Nobody still writes a `tmp-` folder of this age: a part is written in seconds.
LEFTOVER_SECONDS = 3600.0


def store_root(folder: str | Path | None = None, *, figures: bool = False) -> Path:
    """Return the folder of all stores.

    Args:
        folder: the one that was asked for; by default it is in prefopt's cache.
        figures: return the folder beside it, of log-probs that only figures need: so that what a loss with a reference
            pays for it does not depend on the others.
    """
    root = Path(folder) if folder else cache_dir() / "reference"
    return root.with_name(f"{root.name}_figures") if figures else root


def entry_key(prompt: Array, completion: Array) -> Key:
    """The name of an entry: a hash of its token ids."""
    digest = hashlib.blake2b(len(prompt).to_bytes(8, "little"), digest_size=16, person=COMPUTED)
    digest.update(prompt.astype(np.int32).tobytes())
    digest.update(completion.astype(np.int32).tobytes())
    return digest.digest()


@dataclass(frozen=True, eq=False)
class Part:
    """The arrays of a part, memory-mapped."""

    keys: Array
    offsets: Array
    token: Array
    entropy: Array | None

    @classmethod
    def open(cls, folder: Path) -> Part:
        """Read a part; raises OSError, ValueError or EOFError if files are missing, cut short or inconsistent."""
        arrays: dict[str, Array | None] = {"entropy": None}
        for name in ARRAYS:
            file = folder / f"{name}.npy"
            if name != "entropy" or file.exists():
                arrays[name] = _mapped(file)
        part = cls(**arrays)  # type: ignore[arg-type]
        part.check()
        return part

    def check(self) -> None:
        """Raise ValueError if the arrays are not those of a part."""
        kinds = [(self.keys, np.uint8, 2), (self.offsets, np.int64, 1), (self.token, np.float32, 1)]
        kinds += [(self.entropy, np.float32, 1)] if self.entropy is not None else []
        if any(array.dtype != dtype or array.ndim != ndim for array, dtype, ndim in kinds):
            raise ValueError("its arrays have other types")
        starts, ends = self.offsets[:-1], self.offsets[1:]
        whole = len(self.offsets) > 0 and self.offsets[0] == 0 and self.offsets[-1] == len(self.token)
        if not whole or (starts > ends).any() or self.keys.shape != (len(starts), 16):
            raise ValueError("its arrays are inconsistent")
        if self.entropy is not None and len(self.entropy) != len(self.token):
            raise ValueError("its arrays are inconsistent")

    def entry(self, index: int) -> Entry:
        a, b = int(self.offsets[index]), int(self.offsets[index + 1])
        return self.token[a:b], self.entropy[a:b] if self.entropy is not None else None


class ReferenceStore:
    """The entries of one reference, in one folder.

    Args:
        root: folder that holds the stores of all references.
        name: the reference's fingerprint.
        about: facts for people, kept beside the entries.

    Attributes:
        broken: parts that are cut short; their entries count as absent, and are computed again.
        altered: parts that changed since they were written; nothing is read from them, and `check` raises.
    """

    def __init__(self, root: Path, name: str, about: dict[str, Any] | None = None) -> None:
        self.folder = root / name
        self.about = about or {}
        self.broken: list[Path] = []
        self.altered: list[Path] = []
        self._parts: list[Part] = []
        self._index: dict[Key, tuple[int, int]] = {}  # key -> part, entry
        self._seen: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Read the parts that have been added since the last time."""
        for folder in sorted(self.folder.glob("part-*")):
            if folder.name in self._seen:
                continue
            self._seen.add(folder.name)
            try:
                part, written = Part.open(folder), (folder / "digest").read_text()
                if not DIGEST.fullmatch(written):
                    raise ValueError("its digest is cut short")
            except Exception as error:  # numpy has several for a damaged header
                logger.warning("a part of the reference store is broken, and its entries are computed again: %s (%s); "
                               "`prefopt reference prune` removes it", folder, error)  # fmt: skip
                self.broken.append(folder)
                continue
            if _digest(folder) != written:
                self.altered.append(folder)
                continue
            self._parts.append(part)
            for entry, key in enumerate(part.keys):
                old = self._index.get(key.tobytes())
                if old is None or (part.entropy is not None and self._parts[old[0]].entropy is None):
                    self._index[key.tobytes()] = (len(self._parts) - 1, entry)

    def check(self) -> None:
        """Raise UserError if a part has changed since it was written."""
        if self.altered:
            raise UserError(
                f"{self.altered[0]} is not what was written there: the disk is failing, or someone changed it; "
                f"delete the store with `prefopt reference prune {self.folder.name}`"
            )

    def __len__(self) -> int:
        return len(self._index)

    @property
    def num_tokens(self) -> int:
        return sum(len(part.token) for part in self._parts)

    @property
    def size_bytes(self) -> int:
        return size_of(self.folder)

    def get(self, key: Key, entropy: bool = False) -> Entry | None:
        """Per-token log-probs (and entropies) of an entry, or None if the store lacks them."""
        if key not in self._index:
            return None
        part, index = self._index[key]
        entry = self._parts[part].entry(index)
        return None if entropy and entry[1] is None else entry

    def add(self, entries: dict[Key, Entry]) -> None:
        """Write entries as one part, whole or not at all.

        Raises:
            PrefoptError: the disk is full.
            OSError: the folder cannot be written.
        """
        if not entries:
            return
        tokens = [token for token, _ in entries.values()]
        entropies = [entropy for _, entropy in entries.values() if entropy is not None]
        with whole_disk(self.folder, "reference_folder or PREFOPT_CACHE"):
            remove_leftovers(self.folder)
            with new_folder(self.folder / f"part-{uuid.uuid4().hex[:16]}") as part:
                np.save(part / "keys.npy", np.frombuffer(b"".join(entries), np.uint8).reshape(-1, 16))
                np.save(part / "offsets.npy", np.cumsum([0, *map(len, tokens)], dtype=np.int64))
                np.save(part / "token.npy", np.concatenate(tokens).astype(np.float32))
                if len(entropies) == len(tokens):
                    np.save(part / "entropy.npy", np.concatenate(entropies).astype(np.float32))
                (part / "digest").write_text(_digest(part))
                if not (self.folder / "about.json").exists():
                    write_text(self.folder / "about.json", json.dumps(self.about, indent=1, default=str))
        self.refresh()

    def touch(self) -> None:
        """Mark the store as used now."""
        if self.folder.is_dir():
            os.utime(self.folder)

    def facts(self) -> dict[str, Any]:
        """What `prefopt reference list` prints."""
        try:
            about = json.loads((self.folder / "about.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            about = {}
        return {
            "name": self.folder.name,
            "folder": str(self.folder.parent),
            "entries": len(self),
            "tokens": self.num_tokens,
            "bytes": self.size_bytes,
            "unused_days": round((time.time() - self.folder.stat().st_mtime) / 86400, 2),
            "broken_parts": len(self.broken),
            "altered_parts": len(self.altered),
            "about": about if isinstance(about, dict) else {},
        }


def stores(root: Path) -> Iterator[ReferenceStore]:
    """The stores under `root`; ignores other folders."""
    for folder in sorted(root.glob("*")):
        if folder.is_dir() and NAME.fullmatch(folder.name):
            yield ReferenceStore(root, folder.name)


def remove(folders: Iterable[Path]) -> int:
    """Delete folders; returns the number of bytes freed."""
    freed = 0
    for folder in folders:
        freed += size_of(folder)
        shutil.rmtree(folder)
    return freed


def leftovers(root: Path) -> list[Path]:
    """What killed processes and bad disks left in the stores: old `tmp-` folders, and parts that are cut short."""
    found = []
    for store in stores(root):
        old = time.time() - LEFTOVER_SECONDS
        found += [tmp for tmp in sorted(store.folder.glob("tmp-*")) if tmp.stat().st_mtime < old]
        found += store.broken
    return found


def size_of(folder: Path) -> int:
    """The size of a folder's files in bytes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _mapped(path: Path) -> Array:
    """The array in a file, memory-mapped; unlike numpy's own map this keeps no file open, and a store has thousands."""
    with path.open("rb") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("its arrays have another version")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
    if fortran or dtype.hasobject:
        raise ValueError("its arrays have other types")
    if not math.prod(shape):
        return np.empty(shape, dtype)
    with pa.memory_map(str(path)) as mapped:
        return np.frombuffer(mapped.read_buffer(), dtype, math.prod(shape), start).reshape(shape)


def _digest(folder: Path) -> str:
    """The digest of a part's arrays, each after its name and size."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ARRAYS:
        file = folder / f"{name}.npy"
        if file.exists():
            digest.update(f"{name}:{file.stat().st_size}:".encode())
            with file.open("rb") as content:
                while block := content.read(2**20):
                    digest.update(block)
    return digest.hexdigest()
