"""The first step of every loss with a reference: the same whatever the packing and the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from prefopt.losses.registry import load
from prefopt.plugin import Data
from prefopt.train import BatchConfig
from tests.losses.names import OFFLINE
from tests.train import tiny
from tests.train.test_every_loss import data_of, loss_of

# How far apart two correct first gradients may be, relative to their size, by the precision of the weights.
CLOSE = {torch.float32: 1e-3, torch.bfloat16: 0.25}


def _first(name: str, folder: Path, policy: torch.nn.Module, **batch: Any) -> tuple[float, torch.Tensor]:
    """Loss and gradient of the first step, with a store of its own; the policy stays as it was."""
    loss = loss_of(name)
    policy.zero_grad()
    trainer = tiny.make(loss, data_of(loss), folder, policy, batch=BatchConfig(records=16, **batch))
    (share,) = trainer.shares("train")
    value = trainer.step(share, 1)
    return float(value), torch.cat([p.grad.float().flatten() for p in policy.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in OFFLINE),
        *(pytest.param(name, torch.bfloat16, marks=pytest.mark.slow) for name in OFFLINE),
    ],
)
def test_the_first_step_is_the_same_in_every_split_and_layout(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """A relu or a sort at policy = reference is decided by the loss, not by the rounding of two forwards."""
    policy = tiny.model(dtype=dtype)
    one, gradient = _first(name, tmp_path / "a", policy, max_tokens=70, layout="padded")
    other, same = _first(name, tmp_path / "b", policy, max_tokens=800)
    assert one == pytest.approx(other, rel=1e-5 if dtype is torch.float32 else 1e-2)
    assert float((gradient - same).norm()) <= CLOSE[dtype] * float(gradient.norm())


def test_the_evaluation_before_training_has_exact_ties(tmp_path: Path) -> None:
    data = [r for r in tiny.records(Data.LISTS, 40) if len(r.completions) == 3][:8]
    values = [
        tiny.make(load("li_po"), data, tmp_path / str(tokens), tiny.model(dtype=torch.float32), eval=data,
                  batch=BatchConfig(records=8, max_tokens=tokens)).evaluate()["eval_loss"]
        for tokens in (60, 800)
    ]  # fmt: skip
    assert values[0] == pytest.approx(values[1], rel=1e-6)


class _Ties(TrainerCallback):
    """Whether policy and reference were held to be equal at each step, by number."""

    def __init__(self) -> None:
        self.run: dict[str, Any] = {}
        self.equal: dict[int, bool] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.equal[state.global_step + 1] = self.run["trainer"].step.at_reference


@pytest.mark.parametrize(("warmup", "equal"), [(0, [True, False, False]), (2, [True, True, False])])
def test_ties_last_until_an_update_changes_the_policy(warmup: int, equal: list[bool], tmp_path: Path) -> None:
    """The first step of a warm-up has a learning rate of 0, and a run that is resumed after it knows that."""
    data = tiny.records(Data.PAIRS, 16)
    found = {}
    for resume in (None, tmp_path / "checkpoint-1"):
        ties = _Ties()
        trainer = tiny.make(load("dpop"), data, tmp_path, tiny.model(dtype=torch.float32), callbacks=[ties],
                            batch=BatchConfig(records=8), warmup_steps=warmup, max_steps=3, save_strategy="steps",
                            save_steps=1)  # fmt: skip
        ties.run["trainer"] = trainer
        trainer.train(resume)
        assert ties.equal == dict(enumerate(equal[0 if resume is None else 1 :], 1 if resume is None else 2))
        found[resume] = [entry["loss"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert len(set(map(tuple, found.values()))) == 1


def test_a_reference_that_is_named_and_is_the_start_counts_as_the_start(tmp_path: Path) -> None:
    data = tiny.records(Data.PAIRS, 16)
    named = tiny.make(load("dpop"), data, tmp_path, reference=tiny.model())
    assert named.step.at_reference
    assert not tiny.make(load("dpop"), data, tmp_path, reference=tiny.model(seed=1)).step.at_reference
