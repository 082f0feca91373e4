"""A hostile store of reference log-probs: parts that were altered with care, their digests too."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.cli import main
from prefopt.engine.reference import store as stores
from prefopt.engine.reference.store import ReferenceStore, entry_key
from tests.fuzz.hostile import altered, altered_json, as_json, attempt, cases, words

NAME = "0" * 32


def key(i: int) -> bytes:
    return entry_key(np.array([i]), np.array([2, 3]))


@pytest.fixture
def part(tmp_path: Path) -> Path:
    made = ReferenceStore(tmp_path, NAME, {"model": "m"})
    made.add({key(i): (np.full(2, -1.0, np.float32), np.full(2, 0.5, np.float32)) for i in range(4)})
    return next(made.folder.glob("part-*"))


def npy(array: Any) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=True)
    return sink.getvalue()


ARRAYS = st.sampled_from([
    np.zeros((4, 16)), np.zeros(4, np.uint8), np.array(1), np.array([], np.int64), np.array([0, -1, 9, 2, 8]),
    np.array([0, 2, 4, 6, 2**62]), np.array(["a"]), np.array([1j] * 8), np.array([None] * 8), np.zeros((0, 16), "u1"),
    np.zeros(8, ">f4"), np.zeros(8, "M8[s]"), np.array([(1, 2)], [("a", "i4"), ("b", "i4")]),
]).map(npy)  # fmt: skip


def look(root: Path) -> None:
    """What training and `prefopt reference` do with a store."""
    found = ReferenceStore(root, NAME)
    for i in range(5):
        entry = found.get(key(i), entropy=True)
        assert entry is None or float(entry[0].sum()) <= len(entry[0]) * 1e38 or True
    assert found.facts()["entries"] == len(found)
    assert found.num_tokens >= 0
    list(stores.stores(root))
    stores.leftovers(root)
    found.check()


@pytest.mark.parametrize("name", ["keys.npy", "offsets.npy", "token.npy", "entropy.npy", "digest"])
def test_stores(name: str, part: Path) -> None:
    path = part / name
    original, digest = path.read_bytes(), (part / "digest").read_text()

    @cases(0.04)
    @given(st.one_of(altered(original), ARRAYS), st.booleans())
    def check(content: bytes, forged: bool) -> None:
        path.unlink()
        path.write_bytes(content)
        if forged and name != "digest":
            (part / "digest").write_text(stores._digest(part))
        attempt(lambda: look(part.parents[1]))
        (part / "digest").write_text(digest)

    check()


def test_facts_about_stores(part: Path, capsys: pytest.CaptureFixture[str]) -> None:
    @cases(0.005)
    @given(st.one_of(altered(b'{"model": "m"}'), altered_json({"model": "m"}, words).map(as_json)))
    def check(content: bytes) -> None:
        (part.parent / "about.json").write_bytes(content)
        assert attempt(lambda: main(["reference", "list", "--folder", str(part.parents[1])])) == 0
        assert not set(capsys.readouterr().out) & {"\x1b", "\x00", "\x9b"}

    check()


def test_arrays_of_another_kind(part: Path) -> None:
    """Offsets without an end raised IndexError when the store was opened."""
    (part / "offsets.npy").unlink()
    (part / "offsets.npy").write_bytes(npy(np.array([], np.int64)))
    (part / "digest").write_text(stores._digest(part))
    found = ReferenceStore(part.parents[1], NAME)
    assert [broken.name for broken in found.broken] == [part.name]
    assert len(found) == 0
    assert json.loads((part.parent / "about.json").read_text()) == {"model": "m"}
