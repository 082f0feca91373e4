"""Changing only the loss changes only the loss: what two methods are fed, and what they start from."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from prefopt.data.token_table import TokenTable
from prefopt.engine.packing import Lengths
from prefopt.errors import UserError
from prefopt.losses.registry import load
from prefopt.plugin import Data
from prefopt.train import BatchConfig, Feed
from prefopt.train.sources.feed import partners
from tests.train import tiny

WHOLE_PAIRS = ("dpo", "ipo", "ipo_sum", "orpo", "simpo")


class Start(TrainerCallback):
    """The weights and settings that a run starts from."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.weights = {n: (w.dtype, w.detach().numpy().tobytes()) for n, w in model.named_parameters()}
        self.settings = {n: v for n, v in args.to_dict().items() if "dir" not in n}


def _epochs(name: str, data: Any, folder: Path, count: int = 2) -> tuple[list[Any], Start]:
    """Every forward of some epochs: (record ids, all bytes of the row), by step; and the start of a run."""
    start = Start()
    config = BatchConfig(records=8, max_tokens=80)
    kept = tiny.run(load(name), data, folder, batch=config, max_steps=1, callbacks=[start])
    steps = []
    for batch in kept.trainer.shares("train", range(count * len(kept.trainer.sources["train"]))):
        rows = [[t.numpy().tobytes() for t in vars(w.batch.row).values() if torch.is_tensor(t)] for w in batch.work]
        steps.append(([[f.id for f in w.facts] for w in batch.work], rows))
    return steps, start


@pytest.mark.parametrize("name", [name for name in WHOLE_PAIRS if name != "dpo"])
def test_methods_on_pairs_are_fed_the_same_bytes(name: str, tmp_path: Path) -> None:
    data = TokenTable.from_records(tiny.records(Data.PAIRS, 20))
    steps, start = _epochs(name, data, tmp_path)
    dpo_steps, dpo_start = _epochs("dpo", data, tmp_path)
    assert steps == dpo_steps
    assert start.weights == dpo_start.weights
    assert start.settings == dpo_start.settings


@pytest.mark.parametrize("name", ["sft", "kto"])
def test_methods_that_score_other_completions_get_the_same_records_in_the_same_order(name: str, tmp_path: Path) -> None:
    data = tiny.records(Data.PAIRS, 20)
    steps, start = _epochs(name, data, tmp_path)
    dpo_steps, dpo_start = _epochs("dpo", data, tmp_path)
    by_step = [sorted(i for ids in micro for i in ids) for micro, _ in steps]
    assert by_step == [sorted(i for ids in micro for i in ids) for micro, _ in dpo_steps]
    assert start.weights == dpo_start.weights
    feed, pairs = Feed(data, load(name).needs, whole=False, seed=0), Feed(data, load("dpo").needs, whole=False, seed=0)
    for fed, pair in zip(feed, pairs, strict=True):
        own = fed.completions[: feed.own(fed)]
        assert (fed.id, fed.weight, fed.prompt.tobytes()) == (pair.id, pair.weight, pair.prompt.tobytes())
        assert [c.tobytes() for c in own] == [c.tobytes() for c in pair.completions[: len(own)]]


def test_every_epoch_has_every_record_once_and_its_own_order(tmp_path: Path) -> None:
    data = tiny.records(Data.PAIRS, 20)
    steps, _ = _epochs("dpo", data, tmp_path)
    orders = [[i for ids, _ in steps[e : e + 3] for micro in ids for i in micro] for e in (0, 3)]
    assert all(Counter(order) == Counter(r.id for r in data) for order in orders)
    assert orders[0] != orders[1]


def test_kto_on_pairs_gets_both_sides_of_a_pair_together(tmp_path: Path) -> None:
    trainer = tiny.make(load("kto"), tiny.records(Data.PAIRS, 32), tmp_path)
    for batch in trainer.shares("train"):
        (work,) = batch.work
        with torch.no_grad():
            examples = trainer.step.outcome(work.facts, trainer.step.score(work)).examples
        desirable: Any = examples.logps.desirable  # type: ignore[union-attr]
        assert desirable.tolist() == [True, False] * 16
        assert examples.record.tolist() == [place for place in range(16) for _ in range(2)]


def test_a_pair_is_a_list_of_two(tmp_path: Path) -> None:
    """Plackett-Luce on lists of two is DPO, whether the data says pair or list."""
    data = tiny.records(Data.PAIRS, 32, weights=True)
    lists = [replace(r, kind=Data.LISTS) for r in data]
    dpo = tiny.run(load("dpo"), data, tmp_path, eval=data)
    for same in (data, lists):
        kept = tiny.run(load("plackett_luce"), same, tmp_path, eval=same)
        assert kept.losses == pytest.approx(dpo.losses, rel=1e-6)
        assert tiny.apart(kept.weights, dpo.weights) < 1e-6
        names = ("loss", "rewards/chosen", "rewards/accuracies", "logps/rejected", "ratios/chosen", "margins/logps")
        ours, theirs = kept.trainer.evaluate(), dpo.trainer.evaluate()
        assert {n: ours[f"eval_{n}"] for n in names} == pytest.approx({n: theirs[f"eval_{n}"] for n in names}, abs=1e-6)


def test_a_partner_has_another_prompt_and_is_drawn_by_the_seed() -> None:
    keys = np.array([0, 0, 2, 2, 2, 5, 6, 0])
    first = partners(keys, seed=0)
    assert (partners(keys, seed=0) == first).all()
    assert all((keys[partners(keys, seed=s)] != keys).all() for s in range(50))
    assert any((partners(keys, seed=s) != first).any() for s in range(1, 5))
    with pytest.raises(UserError, match="one prompt"):
        partners(np.zeros(3, np.int64), seed=0)


@pytest.mark.parametrize("name", ["dpo", "sft", "kto", "plackett_luce"])
@pytest.mark.parametrize("rows", ["all", "shuffled", "some"])
def test_lengths_from_columns_are_those_of_the_records(name: str, rows: str) -> None:
    data = tiny.records(Data.LISTS if name == "plackett_luce" else Data.PAIRS, 30)
    table = TokenTable.from_records(data)
    positions = {"all": np.arange(30), "shuffled": np.random.default_rng(0).permutation(30), "some": np.arange(3, 20)}
    feed = Feed(table.select(positions[rows]), load(name).needs, whole=False, seed=0)
    found, wanted = feed.lengths(), Lengths.of(feed, share_prompts=True)
    for column in ("prompt", "completions", "offsets", "prompt_key", "ids"):
        assert list(getattr(found, column)) == list(getattr(wanted, column)), column


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("dpo", tiny.records(Data.UNPAIRED, 4), "defined on pairs, the records are unpaired"),
        ("dpo", tiny.records(Data.LISTS, 4), "defined on pairs, the records are lists"),
        ("kto", tiny.records(Data.LISTS, 4), "defined on unpaired, the records are lists"),
        ("plackett_luce", tiny.records(Data.DEMONSTRATIONS, 4), "defined on lists, the records are demonstrations"),
        ("sft", tiny.records(Data.UNPAIRED, 4), "defined on demonstrations, the records are unpaired"),
        ("sft", [*tiny.records(Data.PAIRS, 2), *tiny.records(Data.DEMONSTRATIONS, 2)], "several shapes"),
        ("dpo", [], "no records"),
        ("kto", [replace(tiny.records(Data.UNPAIRED, 1)[0], desirable=None)], "has no label"),
        ("dpo", [replace(r, completions=r.completions[:1]) for r in tiny.records(Data.PAIRS, 1)], "1 completions"),
        ("plackett_luce", [replace(r, scores=None) for r in tiny.records(Data.LISTS, 1)], "one score for each"),
        ("csft", tiny.records(Data.PAIRS, 4), "control text"),
    ],
)
def test_records_that_do_not_fit_the_loss_are_refused(name: str, data: list[Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Feed(data, load(name).needs, whole=False, seed=0)


def test_a_loss_that_needs_scores_names_the_record_without(tmp_path: Path) -> None:
    data = [replace(r, scores=None) for r in tiny.records(Data.PAIRS, 4)]
    with pytest.raises(UserError, match=r"record pairs-\d has no scores"):
        tiny.run(load("odpo"), data, tmp_path)
