"""The reference store's files: their names, their order of writing, what stays open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest

from prefopt.common import files
from prefopt.engine.reference.store import ReferenceStore, entry_key


def test_a_store_of_many_parts_keeps_no_file_open(tmp_path: Path) -> None:
    """Each file of each part was kept open: a million pairs have thousands, and a process may have a thousand."""
    store = ReferenceStore(tmp_path, "0" * 32)
    for i in range(20):
        store.add({entry_key(np.array([i]), np.array([1])): (np.array([-1.0], np.float32), None)})
    before = psutil.Process().num_fds()
    again = ReferenceStore(tmp_path, "0" * 32)
    assert len(again) == 20
    assert psutil.Process().num_fds() == before


def test_where_the_prompt_ends_is_part_of_the_name() -> None:
    ids = np.arange(8, dtype=np.int32)
    assert entry_key(ids[:3], ids[3:]) != entry_key(ids[:4], ids[4:])
    assert entry_key(ids[:3].astype(np.int64), ids[3:]) == entry_key(ids[:3], ids[3:])


def test_a_part_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files and their folder before the rename; behind it the folders that hold the new names."""
    events: list[str] = []
    flush, rename = files.flush, Path.rename

    def flushed(path: Path) -> None:
        assert path.is_dir() or path.stat().st_size > 0
        events.append("tmp" if path.name.startswith("tmp-") else path.name)
        flush(path)

    def renamed(path: Path, target: Path) -> Path:
        events.append(f"-> {target.name.split('-')[0]}")
        return rename(path, target)

    monkeypatch.setattr(files, "flush", flushed)
    monkeypatch.setattr(Path, "rename", renamed)
    store = ReferenceStore(tmp_path / "root", "0" * 32)
    store.add({entry_key(np.array([1]), np.array([1])): (np.array([-1.0], np.float32), np.array([1.0], np.float32))})
    at = events.index("-> part")
    assert set(events[:at]) >= {"keys.npy", "offsets.npy", "token.npy", "entropy.npy", "digest", "tmp"}
    assert events.index("digest") < events.index("tmp")
    assert events[at + 1 :] == ["0" * 32, "root"]
