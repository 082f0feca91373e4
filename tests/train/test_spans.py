"""Training with given tokens in completions: the same in every layout and split, after a resume and in a replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.data.token_table import TokenTable
from prefopt.data.tokens import num_trained
from prefopt.losses.registry import load
from prefopt.plugin import Data
from prefopt.train import BatchConfig, replay
from prefopt.train.checkpoints import checkpoints
from tests.engine.tiny import with_spans
from tests.train import tiny

KINDS = {"sft": Data.DEMONSTRATIONS, "dpo": Data.PAIRS, "kto": Data.UNPAIRED, "plackett_luce": Data.LISTS,
         "tdpo2": Data.PAIRS, "ld_dpo": Data.PAIRS}  # fmt: skip


def spans(kind: Data, n: int = 8) -> Any:
    return TokenTable.from_records(with_spans(tiny.records(kind, n)))


@pytest.mark.parametrize("name", KINDS)
def test_losses_and_weights_depend_neither_on_layout_nor_split(name: str, tmp_path: Path) -> None:
    data, runs = spans(KINDS[name]), []
    for layout, max_tokens in (("tree", 4096), ("tree", 40), ("padded", 80)):
        batch = BatchConfig(records=8, max_tokens=max_tokens, layout=layout)
        runs.append(tiny.run(load(name), data, tmp_path / f"{layout}-{max_tokens}", batch=batch))
    for other in runs[1:]:
        np.testing.assert_allclose(other.losses, runs[0].losses, rtol=1e-6)
        assert tiny.apart(other.weights, runs[0].weights) < 1e-5


def test_lengths_count_trained_tokens(tmp_path: Path) -> None:
    data = spans(Data.PAIRS)
    (first, *_) = tiny.run(load("dpo"), data, tmp_path, max_steps=1).logs
    assert first["lengths/chosen"] == pytest.approx(np.mean([num_trained(r.completions[0]) for r in data]))


def test_a_resume_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    data = spans(Data.PAIRS)
    options: dict[str, Any] = {"batch": BatchConfig(records=4), "max_steps": 3, "save_strategy": "steps",
                               "save_steps": 1}  # fmt: skip
    whole = tiny.run(load("dpo"), data, tmp_path, **options)
    first = next(path for path in checkpoints(tmp_path) if path.name == "checkpoint-1")
    resumed = tiny.run(load("dpo"), data, tmp_path, **options, resume=first)
    assert resumed.losses[-2:] == whole.losses[-2:]
    assert tiny.apart(resumed.weights, whole.weights) == 0.0


def test_a_kept_batch_has_its_spans(tmp_path: Path) -> None:
    made = tiny.make(load("dpo"), spans(Data.PAIRS), tmp_path / "run", max_steps=1)
    (share,) = made.shares("train")
    (tmp_path / "kept").mkdir()
    replay.save(tmp_path / "kept", replay.Kept(1, "", share.work, made.step.state, made.layout.layout, None))
    kept = replay.load(tmp_path / "kept")
    for one, other in zip(share.work, kept.works, strict=True):
        for a, b in zip(one.branches, other.branches, strict=True):
            np.testing.assert_array_equal(a.completion, b.completion)
    rows = list(replay.rows(kept.policy(tiny.model()), load("dpo"), kept))
    assert rows
