"""Every loss of the menu, end to end: its step 0, its needs, a step of training, an evaluation."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prefopt.losses import load_class
from prefopt.plugin import Data, value_at_reference
from prefopt.testing import example
from prefopt.train.examples import BatchLoss
from tests.losses.names import OFFLINE, REWARD_MODELS
from tests.train import test_reward_models, tiny

DESIGN = {"loss", "logps/chosen", "logps_mean/chosen", "lengths/chosen"}


def loss_of(name: str) -> Any:
    loss = example(load_class(name))
    return replace(loss, vocab_size=tiny.VOCAB) if hasattr(loss, "vocab_size") else loss


def data_of(loss: Any) -> list[Any]:
    data = tiny.records(loss.needs.data, 8)
    if loss.needs.data is Data.LISTS:  # three completions each: some lists have a gold one
        data = [r for r in tiny.records(Data.LISTS, 40) if len(r.completions) == 3][:8]
    return data


@pytest.mark.parametrize("name", OFFLINE)
def test_first_loss_is_the_plugins_value_and_a_step_moves_the_weights(name: str, tmp_path: Path) -> None:
    loss = loss_of(name)
    data = data_of(loss)
    kept = tiny.make(loss, data, tmp_path, eval=data, max_steps=2, weight_decay=0.0)
    (batch,) = kept.shares("train")
    with torch.no_grad():
        outcome = kept.step.outcome(batch.work[0].facts, kept.step.score(batch.work[0]))
    expected = value_at_reference(loss, outcome.examples.logps)
    before = kept.evaluate()
    kept.train()
    logs = [entry for entry in kept.state.log_history if "learning_rate" in entry]
    if expected is not None:
        value = torch.as_tensor(expected, dtype=torch.float64).mean().item()
        assert logs[0]["loss"] == pytest.approx(value, rel=1e-4, abs=1e-5)
        assert before["eval_loss"] == pytest.approx(value, rel=1e-4, abs=1e-5)
    else:
        assert not loss.needs.reference
    assert tiny.apart(dict(kept.model.named_parameters()), dict(tiny.model().named_parameters())) > 1e-3
    after = kept.evaluate()
    assert after.keys() == before.keys()
    assert all(math.isfinite(value) for value in after.values())
    assert {f"eval_{figure}" for figure in DESIGN} <= after.keys()
    assert logs[0].keys() >= DESIGN | {"grad_norm", "learning_rate", "tokens_per_second"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OFFLINE, *REWARD_MODELS])
def test_a_weight_multiplies_the_term_of_its_record_and_nothing_else(name: str, tmp_path: Path) -> None:
    """Nothing is normalised, and no statistic over the batch sees the weights."""
    loss = loss_of(name)
    data = data_of(loss)
    made = test_reward_models.reward_model() if loss.needs.reward_model else None
    trainer = tiny.make(loss, data, tmp_path, made)
    (batch,) = trainer.shares("train")
    (work,) = batch.work
    with torch.no_grad():
        logps = trainer.step.score(work)
        logps = replace(logps, sum=logps.sum + torch.linspace(-0.5, 0.7, len(logps.sum)))
        plain = trainer.step.outcome(work.facts, logps)
        weights = [0.0, 0.5, 2.0, 1.0, 3.0, 0.25, 1.0, 0.0]
        outcome = trainer.step.outcome([replace(f, weight=weights[i]) for i, f in enumerate(work.facts)], logps)
    torch.testing.assert_close(outcome.output.loss, plain.weighted, rtol=0, atol=0)
    torch.testing.assert_close(
        outcome.weighted, plain.weighted * torch.tensor(weights)[outcome.examples.record], rtol=1e-12, atol=0
    )


def _moved(name: str, tmp_path: Path, how: str) -> bool:
    """Whether the loss of a batch on the real way changes where one thing that it is handed does."""
    loss = loss_of(name)
    trainer = tiny.make(loss, data_of(loss), tmp_path)
    (batch,) = trainer.shares("train")
    (work,) = batch.work
    with torch.no_grad():
        logps = trainer.step.score(work)
        facts: Any = work.facts
        noise = torch.linspace(-0.5, 0.7, len(logps.sum))
        # a step away from the reference, where no loss is logps
        logps = replace(logps, sum=logps.sum + noise)
        first = _value(trainer, facts, logps)
        if how == "reference":
            table = logps.ref_sum if logps.ref_sum is not None else torch.zeros_like(logps.sum)
            token = logps.ref_token
            if token is not None:
                token = token + 0.1 * torch.sin(torch.arange(token.numel()).view_as(token)) * logps.mask
            logps = replace(logps, ref_sum=table + 0.3 * torch.sin(torch.arange(len(noise))), ref_token=token)
        elif how == "lengths":
            assert logps.token is None, "lengths of per-token data cannot be moved apart from the tokens"
            logps = replace(logps, num_tokens=logps.num_tokens + torch.arange(len(noise)) % 3 + 1)
        else:
            step = -1 if loss.needs.data is Data.LISTS else 1  # another order, or another gap
            facts = [replace(f, scores=tuple(2 * s for s in f.scores[::step])) for f in facts]
        return not torch.allclose(_value(trainer, facts, logps), first, rtol=1e-7, atol=1e-12)


def _value(trainer: Any, facts: Any, logps: Any) -> torch.Tensor:
    outcome: BatchLoss = trainer.step.outcome(facts, logps)
    return outcome.output.loss


@pytest.mark.parametrize("name", [*tiny.CORE, "odpo", "rebel", "plackett_luce", "pro", "cpo", "bco"])
@pytest.mark.parametrize("how", ["reference", "lengths", "scores"])
def test_a_declared_need_is_a_used_need(name: str, how: str, tmp_path: Path) -> None:
    needs = loss_of(name).needs
    if how == "scores" and needs.data not in (Data.PAIRS, Data.LISTS):
        assert not needs.scores
        return
    assert _moved(name, tmp_path, how) == getattr(needs, how)
