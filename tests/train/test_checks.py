"""Runs that must not go on, or not begin."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefopt.engine.policy import Policy
from prefopt.engine.reference.table import ReferenceTable
from prefopt.errors import TrainingError, UserError
from prefopt.losses.dpo import DPO
from prefopt.losses.registry import load
from prefopt.plugin import Data, LossOutput
from prefopt.train import BatchConfig, PreferenceTrainer
from prefopt.train.settings import RunReference
from prefopt.train.sources.offline import Offline
from tests.train import tiny

PAIRS = tiny.records(Data.PAIRS, 16)


def _with_reference(trainer: PreferenceTrainer, table: ReferenceTable, live: Any = None) -> PreferenceTrainer:
    """The same run, told that this reference is the policy."""
    policy = None if live is None else Policy(live, trainer.layout)
    reference = RunReference(tables={"train": table}, policy=policy, is_start=True)
    return _again(trainer, table, reference)


def _again(trainer: PreferenceTrainer, table: ReferenceTable | None, reference: RunReference) -> PreferenceTrainer:
    """A trainer of the same parts but for the reference."""
    feed, records = trainer.sources["train"].feed, trainer.sources["train"].records
    source = Offline(feed, records=records, seed=0, reference=table)
    return PreferenceTrainer(trainer.policy, trainer.loss, trainer.args, {"train": source}, trainer.batcher, reference)


def _table(trainer: PreferenceTrainer) -> ReferenceTable:
    return trainer.tables["train"]


@pytest.mark.parametrize("name", ["dpo", "kto", "ipo", "aot"])
def test_another_model_claimed_as_the_reference_stops_the_run(name: str, tmp_path: Path) -> None:
    right = tiny.make(load(name), PAIRS, tmp_path)
    wrong = tiny.make(load(name), PAIRS, tmp_path, tiny.model(seed=1))
    trainer = _with_reference(right, _table(wrong))
    with pytest.raises(TrainingError, match=r"not the model that training starts from: on record pairs-\d+ the policy"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert tiny.apart(dict(trainer.model.named_parameters()), dict(tiny.model().named_parameters())) == 0.0


def test_a_reference_off_by_a_bit_on_one_completion_stops_the_run(tmp_path: Path) -> None:
    right = tiny.make(load("dpo"), PAIRS, tmp_path)
    sums = _table(right).sum.copy()
    sums[7] += 0.01  # nats; the rejected side of the fourth record
    with pytest.raises(TrainingError, match="on record pairs-3"):
        _with_reference(right, replace(_table(right), sum=sums)).train()


def test_another_live_reference_stops_the_run(tmp_path: Path) -> None:
    """The stored log-probs are right, the model whose whole vocabulary is read is not: the loss alone tells."""
    right = tiny.make(load("tdpo1", beta=1.0), PAIRS, tmp_path)
    live = tiny.model(seed=1)
    with pytest.raises(TrainingError, match=r"first batch's loss is .* this loss is 0\.69315"):
        _with_reference(right, _table(right), live).train()


def test_dropout_that_was_turned_on_again_stops_the_run(tmp_path: Path) -> None:
    trainer = tiny.make(load("dpo"), PAIRS, tmp_path, tiny.model())
    trainer.model.model.layers[0].self_attn.attention_dropout = 0.5
    with pytest.raises(TrainingError, match="dropout"):
        trainer.train()


def test_a_reference_given_as_another_model_is_taken_as_it_is(tmp_path: Path) -> None:
    kept = tiny.run(load("dpo"), PAIRS, tmp_path, reference=tiny.model(seed=1), max_steps=1)
    assert abs(kept.losses[0] - 0.6931) > 0.01


@dataclass(frozen=True, kw_only=True)
class Broken(DPO):
    """NaN on the record whose key is `key`."""

    key: int = 0

    def __call__(self, logps: Any, /) -> LossOutput:
        output = super().__call__(logps)
        return replace(output, loss=torch.where(logps.ids == self.key, torch.nan, output.loss))


def test_a_nan_names_its_record_and_reaches_no_weight(tmp_path: Path) -> None:
    data = tiny.records(Data.PAIRS, 48)
    trainer = tiny.make(Broken(key=data[11].stable_int), data, tmp_path, batch=BatchConfig(records=16), max_steps=3)
    with pytest.raises(TrainingError, match=r"step \d: the loss is nan on 1 of 16 examples \(records pairs-11\)"):
        trainer.train()
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())


def test_a_record_over_the_budget_is_named_before_training(tmp_path: Path) -> None:
    longer = replace(PAIRS[5], prompt=np.arange(3, 60, dtype=np.int32))
    data = [*PAIRS[:5], longer, *PAIRS[6:]]
    size = 57 + sum(len(c) - 1 for c in longer.completions)
    for name in ("simpo", "dpo"):
        with pytest.raises(UserError, match=f"record 'pairs-5' has {size} tokens, more than batch.max_tokens=50"):
            tiny.make(load(name), data, tmp_path, batch=BatchConfig(records=8, max_tokens=50))
    assert not (tmp_path / "reference").exists(), "refused before the reference is computed"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps"),
        ({"per_device_train_batch_size": 2}, "is not an option here"),
        ({"lerning_rate": 1e-3}, "did you mean 'learning_rate'"),
        ({"optim": "no_such_optimizer"}, "no_such_optimizer"),
        ({"batch": BatchConfig(records=0)}, "batch.records=0 must be at least 1"),
        ({"batch": BatchConfig(layout="flat")}, "not one of auto, tree, padded"),
    ],
)
def test_options_that_would_be_ignored_or_misread_are_refused(options: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        tiny.make(load("simpo"), PAIRS, tmp_path, **options)


def test_accumulation_is_refused_by_the_trainer_itself(tmp_path: Path) -> None:
    made = tiny.make(load("simpo"), PAIRS, tmp_path)
    made.args.gradient_accumulation_steps = 2
    with pytest.raises(UserError, match=r"batch\.records is the size of a step"):
        _again(made, None, RunReference())


@pytest.mark.parametrize(("name", "says"), [("dpo", "needs a reference"), ("tdpo2", "live reference")])
def test_a_missing_reference_is_refused(name: str, says: str, tmp_path: Path) -> None:
    made = tiny.make(load(name), PAIRS, tmp_path)
    tables = {} if name == "dpo" else made.tables
    with pytest.raises(UserError, match=says):
        _again(made, tables.get("train"), RunReference(tables=tables))


def test_evaluation_without_held_out_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no held-out records"):
        tiny.make(load("simpo"), PAIRS, tmp_path).evaluate()
    with pytest.raises(UserError, match="eval_strategy needs held-out records"):
        tiny.make(load("simpo"), PAIRS, tmp_path, eval_strategy="steps", eval_steps=1)
