"""The reference store: right numbers, hits and misses exactly where they must be, safe against kills and bad disks."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from prefopt.data.tokens import TokenRecord
from prefopt.engine.reference import table as references
from prefopt.engine.reference.fingerprint import fingerprint
from prefopt.engine.reference.store import ReferenceStore, entry_key, leftovers, remove, stores
from prefopt.engine.reference.table import ReferenceTable, reference_table
from prefopt.errors import PrefoptError, UserError
from prefopt.plugin import Data
from tests.engine import tiny

DATA = tiny.records([(5, (4, 7)), (3, (2, 1)), (9, (6, 3)), (1, (1, 5)), (6, (2, 2))])
COMPLETIONS = 10


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.model("llama")


def table(model: Any, data: Sequence[TokenRecord], root: Path, **options: Any) -> ReferenceTable:
    """As a new process would: the store opened afresh."""
    return reference_table(model, data, ReferenceStore(root, fingerprint(model)), **options)


def counts(found: ReferenceTable) -> tuple[int, int]:
    return found.hits, found.misses


def part_of(root: Path, model: Any) -> Path:
    (part,) = (root / fingerprint(model)).glob("part-*")
    return part


# ---- numbers


def test_tokens_sums_and_entropies(model: Any, tmp_path: Path) -> None:
    found = table(model, DATA, tmp_path, entropy=True)
    truth = tiny.plain(model, DATA)
    assert found.offsets.tolist() == [0, 2, 4, 6, 8, 10]
    np.testing.assert_allclose(found.sum, [t.sum() for record in truth for t in record], atol=1e-5)
    for i, record in enumerate(truth):
        for got, want, entropy in zip(found.token(i), record, found.entropy(i), strict=True):
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, want, atol=1e-5)
            assert len(entropy) == len(want)
            assert (entropy > 0).all()
            assert (entropy < np.log(tiny.VOCAB)).all()
    with pytest.raises(ValueError, match="without entropies"):
        table(model, DATA, tmp_path).entropy(0)


def test_what_is_read_is_memory_mapped(model: Any, tmp_path: Path) -> None:
    found = table(model, DATA, tmp_path)
    owner: Any = found.token(0)[0]
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    assert isinstance(owner.base, pa.Buffer)
    assert str(part_of(tmp_path, model)) in Path("/proc/self/maps").read_text()


# ---- what hits, and what misses


def test_any_view_of_the_same_texts_hits(model: Any, tmp_path: Path) -> None:
    """Other seeds, orders, batch sizes, methods; pairs as single completions, as lists, with weights and scores."""
    first = table(model, DATA, tmp_path)
    assert counts(first) == (0, COMPLETIONS)
    again = table(model, DATA[::-1], tmp_path)
    assert counts(again) == (COMPLETIONS, 0)
    np.testing.assert_array_equal(again.sum.reshape(-1, 2)[::-1], first.sum.reshape(-1, 2))
    single = [
        TokenRecord(
            id=f"{r.id}{k}", kind=Data.UNPAIRED, prompt=r.prompt, completions=(c,), desirable=k == 0, weight=2.0
        )
        for r in DATA
        for k, c in enumerate(r.completions)
    ]
    assert counts(table(model, single, tmp_path)) == (COMPLETIONS, 0)
    extra = tiny.ids(np.random.default_rng(1), 4)
    longer = [
        TokenRecord(
            id=r.id, kind=Data.LISTS, prompt=r.prompt, completions=(*r.completions[::-1], extra), scores=(1, 2, 3)
        )
        for r in DATA
    ]
    grown = table(model, longer, tmp_path)
    assert counts(grown) == (COMPLETIONS, len(DATA))
    np.testing.assert_array_equal(grown.sum.reshape(-1, 3)[:, [1, 0]], first.sum.reshape(-1, 2))


@pytest.mark.parametrize("name", ["llama", "bloom"])
@pytest.mark.parametrize("entropy", [False, True])
def test_the_bits_do_not_depend_on_the_order_of_the_records(name: str, entropy: bool, tmp_path: Path) -> None:
    model = tiny.model(name)
    whole = table(model, DATA, tmp_path / "a")
    other = table(model, DATA[::-1], tmp_path / "b", entropy=entropy)
    np.testing.assert_array_equal(other.sum.reshape(-1, 2)[::-1].ravel(), whole.sum)


def test_only_batches_that_are_read_are_computed_and_have_the_bits_of_a_whole_pass(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references, "BATCH_TOKENS", 16)
    whole = table(model, DATA, tmp_path / "whole")
    store, calls = ReferenceStore(tmp_path / "part", fingerprint(model)), []
    read = np.array([3])
    found = reference_table(model, DATA, store, read=read, progress=lambda done, total: calls.append((done, total)))
    assert counts(found) == (0, 2)
    assert 2 <= len(store) < COMPLETIONS
    assert sum(done for done, _ in calls) == calls[-1][1] < len(DATA)
    pairs = found.sum.reshape(-1, 2), whole.sum.reshape(-1, 2)
    np.testing.assert_array_equal(pairs[0][read], pairs[1][read])
    assert np.isnan(np.delete(pairs[0], read, 0)).all()
    np.testing.assert_array_equal(table(model, DATA, tmp_path / "part").sum, whole.sum)


def test_a_repeated_text_is_computed_once(model: Any, tmp_path: Path) -> None:
    twice = [DATA[0], TokenRecord(id="again", kind=Data.PAIRS, prompt=DATA[0].prompt, completions=DATA[0].completions)]
    found = table(model, twice, tmp_path)
    assert found.misses == 2
    assert found.sum[:2].tolist() == found.sum[2:].tolist()
    assert len(ReferenceStore(tmp_path, fingerprint(model))) == 2


def test_entropies_are_added_to_entries_without(model: Any, tmp_path: Path) -> None:
    table(model, DATA, tmp_path)
    assert counts(table(model, DATA, tmp_path, entropy=True)) == (0, COMPLETIONS)
    assert counts(table(model, DATA, tmp_path, entropy=True)) == (COMPLETIONS, 0)
    assert counts(table(model, DATA, tmp_path)) == (COMPLETIONS, 0)


def test_another_max_length_never_hits_stale(model: Any, tmp_path: Path) -> None:
    """Cut texts are other texts. The cut prompt of record 0 is a new one; the second completion of record 1 has one
    token and is not cut."""
    table(model, DATA, tmp_path)
    cut = [
        TokenRecord(id=r.id, kind=r.kind, prompt=r.prompt[-4:], completions=tuple(c[:3] for c in r.completions))
        for r in DATA
    ]
    found = table(model, cut, tmp_path)
    np.testing.assert_allclose(found.sum, [t.sum() for r in tiny.plain(model, cut) for t in r], atol=1e-5)
    same = sum(
        entry_key(a.prompt, x) == entry_key(b.prompt, y)
        for a, b in zip(DATA, cut, strict=True)
        for x, y in zip(a.completions, b.completions, strict=True)
    )
    assert 0 < same < COMPLETIONS
    assert counts(found) == (same, COMPLETIONS - same)


def test_every_method_and_setting_reads_one_store(tmp_path: Path) -> None:
    """The first run fills the store; another loss, beta, output folder, seed, batch and learning rate find it all."""
    from prefopt.losses.registry import load
    from prefopt.train import BatchConfig, build

    def misses(name: str, out: str, seed: int = 0, batch: int = 2, rate: float = 1e-6, **settings: Any) -> int:
        built = build(
            tiny.model("llama"),
            load(name, **settings),
            DATA,
            eval=DATA[:2],
            output_dir=tmp_path / out,
            store=tmp_path / "store",
            batch=BatchConfig(records=batch, max_tokens=64),
            seed=seed,
            learning_rate=rate,
            use_cpu=True,
        )
        return sum(t.misses for t in built.tables.values() if t is not None)

    assert misses("dpo", "a") == COMPLETIONS
    assert misses("dpo", "b", beta=0.3) == 0
    assert misses("ipo", "c", seed=4, batch=4, rate=1e-4) == 0
    assert misses("simpo", "d") == 0
    assert len(list(stores(tmp_path / "store"))) == 1


# ---- kills, processes, disks


def _build_until_killed(root: Path) -> None:
    """Dies in the middle of its second part, as kill -9 would have it."""
    torch.set_num_threads(1)
    real, calls = np.save, []

    def save(path: Path, array: Any) -> None:
        calls.append(path)
        if len(calls) == 5:  # the second part's second array
            os.kill(os.getpid(), signal.SIGKILL)
        real(path, array)

    np.save = save
    table(tiny.model("llama"), DATA, root)


def test_a_killed_build_goes_on_where_it_was(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "PART_TOKENS", 1)
    monkeypatch.setattr(references, "BATCH_TOKENS", 16)
    job = multiprocessing.get_context("fork").Process(target=_build_until_killed, args=(tmp_path,))
    job.start()
    job.join(120)
    assert job.exitcode == -signal.SIGKILL
    folder = tmp_path / fingerprint(model)
    (dead,) = folder.glob("tmp-*")
    elsewhere = shutil.copytree(dead, folder / f"{dead.name.partition('@')[0]}@elsewhere")
    (part,) = folder.glob("part-*")
    kept = len(np.load(part / "keys.npy"))
    assert counts(table(model, DATA, tmp_path)) == (kept, COMPLETIONS - kept)
    found = table(model, DATA, tmp_path)
    assert counts(found) == (COMPLETIONS, 0)
    np.testing.assert_allclose(found.sum, [t.sum() for r in tiny.plain(model, DATA) for t in r], atol=1e-5)
    assert not dead.exists()
    # on another machine a young leftover may be somebody's work; an old one is pruned
    assert leftovers(tmp_path) == []
    os.utime(elsewhere, (time.time() - 7200,) * 2)
    assert leftovers(tmp_path) == [elsewhere]
    assert remove(leftovers(tmp_path)) > 0
    assert not elsewhere.exists()


def _build(root: Path, start: Any, results: Any, process: tuple[int, int]) -> None:
    torch.set_num_threads(1)
    own = tiny.model("llama")
    store = ReferenceStore(root, fingerprint(own))
    start.wait()
    barrier = start.wait if process[1] > 1 else lambda: None
    found = reference_table(own, DATA, store, process=process, barrier=barrier)
    results.put((found.sum.tolist(), counts(found)))


@pytest.mark.parametrize("together", [False, True], ids=["unaware of each other", "one job"])
def test_two_processes_at_once(model: Any, tmp_path: Path, together: bool) -> None:
    context = multiprocessing.get_context("fork")  # spawned ones would import for ten seconds
    start, results = context.Barrier(2), context.Queue()
    jobs = [
        context.Process(target=_build, args=(tmp_path, start, results, (r, 2) if together else (0, 1)))
        for r in range(2)
    ]
    for job in jobs:
        job.start()
    got = [results.get(timeout=120) for _ in jobs]
    for job in jobs:
        job.join(60)
        assert job.exitcode == 0
    truth = [t.sum() for r in tiny.plain(model, DATA) for t in r]
    for sums, _ in got:
        np.testing.assert_allclose(sums, truth, atol=1e-5)
    store = ReferenceStore(tmp_path, fingerprint(model))
    assert len(store) == COMPLETIONS
    if together:  # they shared the work: no text was scored twice
        assert sum(len(p.keys) for p in store._parts) == COMPLETIONS
    assert not list(store.folder.glob("tmp-*"))
    assert counts(table(model, DATA, tmp_path)) == (COMPLETIONS, 0)


@pytest.mark.parametrize("file", ["keys", "offsets", "token", "digest", "digest cut", "digest empty", "digest zeros"])
def test_a_part_cut_short_is_computed_again(
    model: Any, tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    table(model, DATA, tmp_path)
    part = part_of(tmp_path, model)
    if file == "digest":
        (part / "digest").unlink()
    elif file.startswith("digest"):  # as a power cut may leave it
        written = (part / "digest").read_text()
        (part / "digest").write_text({"cut": written[:-1], "empty": "", "zeros": "\0" * 32}[file.split()[1]])
    else:
        with (part / f"{file}.npy").open("r+b") as content:
            content.truncate(130)
    with caplog.at_level(logging.WARNING):
        found = table(model, DATA, tmp_path)
    assert counts(found) == (0, COMPLETIONS)
    assert "part of the reference store is broken" in caplog.text
    assert part.name in caplog.text
    assert leftovers(tmp_path) == [part]
    remove(leftovers(tmp_path))
    assert counts(table(model, DATA, tmp_path)) == (COMPLETIONS, 0)


def test_a_part_that_was_altered_is_an_error(model: Any, tmp_path: Path) -> None:
    table(model, DATA, tmp_path)
    part = part_of(tmp_path, model)
    values = np.load(part / "token.npy")
    values[7] += 1e-3
    np.save(part / "token.npy", values)
    with pytest.raises(UserError, match=rf"{part.name} is not what was written.*prefopt reference prune") as error:
        table(model, DATA, tmp_path)
    assert fingerprint(model) in str(error.value)


def test_entries_that_the_model_does_not_give_are_an_error(model: Any, tmp_path: Path) -> None:
    """Whole and unaltered, but of another model: found by computing a few again."""
    other = tiny.model("llama", seed=3)
    table(other, DATA, tmp_path)
    (tmp_path / fingerprint(other)).rename(tmp_path / fingerprint(model))
    with pytest.raises(UserError, match=r"disagrees with the model by .* record r"):
        table(model, DATA, tmp_path)


def test_entries_of_another_length_than_their_text_are_an_error(model: Any, tmp_path: Path) -> None:
    record = DATA[0]
    store = ReferenceStore(tmp_path, fingerprint(model))
    store.add({entry_key(record.prompt, record.completions[1]): (np.zeros(3, np.float32), None)})
    with pytest.raises(UserError, match=rf"3 tokens for a text of record {record.id} with 7; .*reference prune"):
        table(model, DATA, tmp_path)


@pytest.mark.parametrize("what", ["log-prob", "entropy"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_what_is_not_finite_is_refused_and_not_kept(
    what: str, value: float, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was stored, and said at reuse to be a store that somebody changed."""
    real = references.score

    def spoilt(*given: Any, **options: Any) -> Any:
        found = real(*given, **options)
        for record, scored in zip(given[1], found, strict=True):
            if record.id == "r2":
                (scored.token if what == "log-prob" else scored.entropy)[1][2] = value
        return found

    monkeypatch.setattr(references, "score", spoilt)
    says = rf"{what} is {value} on 1 of 3 tokens of completion 2 of record r2, and is not stored; check the reference's"
    with pytest.raises(UserError, match=says):
        table(model, DATA, tmp_path, entropy=True)
    assert len(ReferenceStore(tmp_path, fingerprint(model))) == 0
    monkeypatch.undo()
    assert counts(table(model, DATA, tmp_path, entropy=True)) == (0, COMPLETIONS)


def test_a_reference_with_nan_weights_is_refused_whether_the_store_has_entries_or_not(tmp_path: Path) -> None:
    broken = tiny.model("llama")
    store = ReferenceStore(tmp_path, "0" * 32)
    reference_table(broken, DATA[:4], store)  # the gates judge a model once
    broken.lm_head.weight.data.fill_(torch.nan)
    for data in (DATA[4:], DATA[:4]):
        with pytest.raises(UserError, match=r"log-prob is nan on \d of \d tokens of completion \d of record r\d"):
            reference_table(broken, data, store)
    assert len(store) == 8


def test_neither_build_nor_reuse_moves_the_callers_random_state(model: Any, tmp_path: Path) -> None:
    random.seed(5)
    before = random.getstate()
    assert counts(table(model, DATA, tmp_path)) == (0, COMPLETIONS)
    assert random.getstate() == before
    assert counts(table(model, DATA, tmp_path)) == (COMPLETIONS, 0)
    assert random.getstate() == before


def test_a_full_disk_is_said_so(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(PrefoptError, match=r"No space left.*reference_folder") as error:
        table(model, DATA, tmp_path)
    assert error.value.exit_code == 1
    assert not list((tmp_path / fingerprint(model)).glob("*-*"))


def test_stores_are_told_from_other_folders(model: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not delete")
    store = ReferenceStore(tmp_path, fingerprint(model), {"model": "tiny"})
    reference_table(model, DATA, store)
    (only,) = stores(tmp_path)
    facts = only.facts()
    assert facts["name"] == fingerprint(model)
    assert facts["entries"] == COMPLETIONS
    assert facts["tokens"] == sum(len(c) for r in DATA for c in r.completions)
    assert facts["about"] == {"model": "tiny"}
    assert facts["bytes"] == sum(f.stat().st_size for f in only.folder.rglob("*") if f.is_file())
    json.dumps(facts)
    shutil.rmtree(only.folder)
    assert list(stores(tmp_path)) == []
