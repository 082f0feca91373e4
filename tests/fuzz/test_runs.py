"""Hostile runs: checkpoints, kept batches, run folders, configurations.

The suite takes a few cases of each; `PREFOPT_FUZZ=100000 pytest tests/fuzz` takes so many in all.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.common.redact import printable
from prefopt.config.compose import compose
from prefopt.errors import UserError
from prefopt.losses.registry import load
from prefopt.plugin import Data
from prefopt.runs.rerun import config_of
from prefopt.runs.resume import checkpoint_to_resume
from prefopt.runs.run_folder import RunFolder
from prefopt.train import BatchConfig, replay
from prefopt.train.callbacks import MetricsFile
from prefopt.train.checksums import CHECKSUMS, checksums, files_of, write_checksums, wrong_with
from tests.fuzz.hostile import altered, altered_file, altered_json, attempt, cases, plain, words
from tests.train import tiny


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint, and one that broke."""
    root = tmp_path_factory.mktemp("fuzz")
    data = tiny.records(Data.PAIRS, 8)
    options = {
        "batch": BatchConfig(records=4),
        "max_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "lr_scheduler_type": "constant",
    }  # so that the forged ones may go on for longer
    made = tiny.run(load("dpo"), data, root, **options).trainer
    (share,) = made.shares("train", range(1))
    (root / "kept").mkdir()
    replay.save(root / "kept", replay.Kept(1, "", share.work, None, made.layout.layout, None))
    (root / "config.yaml").write_text("")
    return root


@pytest.fixture
def copy(run_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_folder, tmp_path / "run", symlinks=True))


@pytest.mark.parametrize("name", [CHECKSUMS, "run.json", "model.safetensors", "optimizer.pt", "figures.json"])
def test_checkpoints(name: str, copy: Path) -> None:
    """Altered files are found out, always; with an intact list the checkpoint is never taken."""
    checkpoint = copy / "checkpoint-1"
    original = (checkpoint / name).read_bytes()
    listed = json.loads((checkpoint / CHECKSUMS).read_text())

    @cases(0.08)
    @given(altered(original), altered_json(listed))
    def check(content: bytes, listing: Any) -> None:
        if name == CHECKSUMS:
            (checkpoint / name).write_text(json.dumps(listing))
            wrong = attempt(lambda: wrong_with(checkpoint))
            assert wrong is None or printable(wrong)
            (checkpoint / name).write_bytes(content)
        else:
            (checkpoint / name).write_bytes(content)
            assert (attempt(lambda: wrong_with(checkpoint)) is None) == (content == original)
        before = sorted(copy.parent.rglob("*"))
        if wrong_with(checkpoint) is not None:
            attempt(lambda: checkpoint_to_resume(copy, str(checkpoint), lambda line: None))
        assert sorted(copy.parent.rglob("*")) == before

    check()


@pytest.mark.parametrize("name", ["run.json", "trainer_state.json", "optimizer.pt", "rng_state.pth", "figures.json"])
def test_checkpoints_with_forged_checksums(name: str, copy: Path) -> None:
    """Loading one that somebody altered with care ends in an error of ours, or in a run: nothing in it is executed."""
    checkpoint = copy / "checkpoint-1"
    original = (checkpoint / name).read_bytes()
    data = tiny.records(Data.PAIRS, 8)
    options: dict[str, Any] = {
        "batch": BatchConfig(records=4),
        "max_steps": 2,
        "store": copy / "reference",
        "lr_scheduler_type": "constant",
    }

    @cases(0.0005)
    @given(altered_file(original))
    def check(content: bytes) -> None:
        (checkpoint / name).write_bytes(content)
        write_checksums(checkpoint, checksums(checkpoint, files_of(checkpoint)), resumable=True)
        attempt(lambda: tiny.run(load("dpo"), data, copy, resume=checkpoint, **options))

    check()


def test_kept_batches(copy: Path) -> None:
    folder = copy / "kept"
    facts, tensors = ((folder / name).read_bytes() for name in (replay.FACTS, replay.TENSORS))

    @cases(0.2)
    @given(altered_file(facts))
    def check_facts(content: bytes) -> None:
        (folder / replay.TENSORS).write_bytes(tensors)
        (folder / replay.FACTS).write_bytes(content)
        attempt(lambda: replay.load(folder))

    @cases(0.1)
    @given(altered(tensors))
    def check_tensors(content: bytes) -> None:
        (folder / replay.FACTS).write_bytes(facts)
        (folder / replay.TENSORS).write_bytes(content)
        attempt(lambda: replay.load(folder))

    check_facts()
    check_tensors()


def test_run_folders(copy: Path, tmp_path: Path) -> None:
    """config.yaml as somebody else may have written it, for `prefopt rerun`, `eval` and `report`."""
    good = compose([]).plain()
    (copy / "manifest.json").write_text(json.dumps({"folder": str(tmp_path)}))

    @cases(0.01)
    @given(st.one_of(altered_json(good).map(json.dumps), words, altered(json.dumps(good).encode())))
    def check(content: Any) -> None:
        text = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
        (copy / "config.yaml").write_bytes(text)
        for reader in (lambda: config_of(copy, tmp_path / "new"), lambda: RunFolder(copy).start,
                       lambda: RunFolder(copy).overrides(), lambda: RunFolder(copy).run_config()):  # fmt: skip
            attempt(reader)

    check()
    assert not (tmp_path / "new").exists()


def test_metrics_files(copy: Path) -> None:
    """Cut short by a kill or filled by somebody: what can be read is kept, the rest is not in the way."""
    path = copy / "metrics.jsonl"
    lines = b"".join(json.dumps({"step": n, "loss": 0.5, "learning_rate": 0.1}).encode() + b"\n" for n in range(4))
    state: Any = SimpleNamespace(is_world_process_zero=True, global_step=2)

    @cases(0.2)
    @given(st.one_of(altered(lines), st.lists(plain, max_size=4).map(lambda v: "\n".join(map(json.dumps, v)).encode())))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        attempt(lambda: RunFolder(copy).lines("metrics.jsonl"))
        attempt(lambda: MetricsFile(path).on_train_begin(None, state, None))
        assert all(json.loads(line)["step"] <= 2 for line in path.read_text().splitlines())

    check()


@pytest.mark.parametrize("verb", ["train"])
def test_overrides(verb: str) -> None:
    """Any words on the command line: a configuration, or one line that refuses them."""
    keys = st.sampled_from(["loss", "loss.beta", "model.path", "data.path", "trainer.max_steps", "seed", "resume", "+x",
                            "~loss", "sentinels.kl", "batch.records", "data.fields", "experiment",
                            "stages.sft.seed"])  # fmt: skip
    values = st.one_of(
        words, plain.map(json.dumps), st.sampled_from(["dpo", "{_target_: os.system}", "[1,", "'", "a,b"])
    )

    @cases(0.004)
    @given(st.lists(st.tuples(keys, values).map("=".join), min_size=1, max_size=3))
    def check(overrides: list[str]) -> None:
        attempt(lambda: compose(overrides))

    check()


def test_a_configuration_whose_aliases_grow_is_refused(copy: Path) -> None:
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (copy / "config.yaml").write_text("\n".join(["a0: &a0 [x]", *levels]))
    with pytest.raises(UserError, match=r"config\.yaml is not .*: its aliases stand for more than"):
        _ = RunFolder(copy).config
