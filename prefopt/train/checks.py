"""What stops a run: numbers that are not finite, or a first batch that is provably wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prefopt.engine.gates import TOLERANCE
from prefopt.errors import TrainingError, UserError
from prefopt.plugin import BESIDE_REFERENCE, Logps, Loss, LossOutput, value_at_reference
from prefopt.train.examples import BatchLoss, Facts
from prefopt.train.replay import side

# Largest relative or absolute difference of a first batch's loss from the value that the plugin declares.
SLACK = {torch.float64: 0.01, torch.float32: 0.01}
SLACK_IN_HALF = 0.1


class NotFinite(TrainingError):
    """A loss or a gradient that is not finite."""


def check_output(output: Any, examples: int, name: str) -> None:
    """Stop where a loss gives something else than one value per example: shapes that broadcast would train in silence.

    Args:
        output: what the loss gave.
        examples: B, how many it was called on.
        name: of the loss.

    Raises:
        UserError: naming the field.
    """
    if not isinstance(output, LossOutput):
        raise UserError(f"{name} must return a LossOutput, not {type(output).__name__}")
    rewards = {n: getattr(output, n) for n in ("chosen_reward", "rejected_reward", "reward")}
    fields = {"loss": output.loss, **{n: value for n, value in rewards.items() if value is not None}}
    for field, value in (fields | dict(output.metrics)).items():
        if not isinstance(field, str):
            raise UserError(f"{name} must name its metrics with texts, not {field!r:.40}")
        if not isinstance(value, Tensor) or value.is_complex():
            raise UserError(f"{name} must return a tensor of real numbers as {field!r}, not {_kind(value)}")
        shape = tuple(value.shape)
        fits = (
            shape == (examples,) if field == "loss" else shape[:1] == (examples,) or (field not in fields and not shape)
        )
        if not fits:
            raise UserError(
                f"{name} returned {field!r} with the shape {shape}, not ({examples},): one value per example"
            )
    if torch.is_grad_enabled() and not output.loss.requires_grad:
        raise UserError(f"{name} returned a loss without gradient: nothing could be learnt from it")
    for field, value in (output.state or {}).items():
        if not isinstance(value, Tensor):
            raise UserError(f"{name} must keep tensors as its state, and {field!r} is {_kind(value)}")


def _kind(value: Any) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def check_finite(outcome: BatchLoss, step: int) -> None:
    """Stop before such a loss reaches the weights.

    Raises:
        NotFinite: naming the records, and the sides whose log-probs are not finite either.
    """
    loss = outcome.output.loss.detach()
    bad = (~torch.isfinite(loss)).nonzero().flatten().tolist()
    if bad:
        ids = sorted({outcome.facts[int(outcome.examples.record[b])].id for b in bad})
        sides = _sides_not_finite(outcome)
        raise NotFinite(
            f"step {step}: the loss is {loss[bad[0]].item()} on {len(bad)} of {len(loss)} examples "
            f"(records {', '.join(ids[:5])}); "
            + (f"not finite is the log-prob of {', '.join(sides[:5])}" if sides else "the log-probs are finite")
            + "; lower trainer.learning_rate, or look at these records"
        )


def _sides_not_finite(outcome: BatchLoss) -> list[str]:
    names = [f"{f.id} {side(f, k)}" for f in outcome.facts for k in range(f.completions)]
    bad = (~torch.isfinite(outcome.logps.sum.detach())).nonzero().flatten().tolist()
    return [names[c] for c in bad]


def check_gradient(norm: float, model: nn.Module, step: int) -> None:
    """Stop before such a gradient reaches the weights.

    Raises:
        NotFinite: naming the first weights with such a gradient.
    """
    if not math.isfinite(norm):
        bad = [n for n, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
        where = f"in {len(bad)} tensors, first in {bad[0]}" if bad else "taken together"
        raise NotFinite(f"step {step}: the loss is finite, but its gradient is {norm} {where}; lower "
                        "trainer.learning_rate")  # fmt: skip


def check_drawn(facts: Sequence[Facts], logps: Logps, precision: torch.dtype) -> Tensor:
    """The sampler and the scorer are the same model: a text's log-prob is the one that it was drawn with.

    Args:
        facts, logps: of records that the policy has just written; an opponent's texts are passed over.
        precision: that the log-probs were computed in.

    Returns:
        () the largest deviation of a text's importance ratio from 1.

    Raises:
        TrainingError: they are not, with the text that is furthest off.
    """
    drawn = [total for f in facts if f.drawn is not None for total in f.drawn.sums]
    own = [not o for f in facts if f.drawn is not None for o in f.drawn.opponent or (False,) * f.completions]
    off = (logps.sum.detach() - torch.tensor(drawn).to(logps.sum)).abs() * torch.tensor(own).to(logps.sum)
    excess = off / (TOLERANCE.get(precision, 0.25) * logps.num_tokens.sqrt())
    worst = int(excess.argmax())
    if not excess[worst] <= 1:
        ids = [f"{f.id} {side(f, k)}" for f in facts for k in range(f.completions)]
        raise TrainingError(
            f"the sampler is not the model that is trained: the text {ids[worst]} was drawn with a log-prob of "
            f"{drawn[worst]:.6g} nats, and has {logps.sum[worst].item():.6g}. Does the policy have dropout, or a "
            "temperature of its own?"
        )
    return torch.expm1(off.max())


def check_first_batch(outcome: BatchLoss, loss: Loss, precision: torch.dtype) -> None:
    """Before anything has been learnt, policy and reference are the same model: so are their log-probs, and the loss is
    the value that its plugin declares for that case.

    Args:
        outcome: of records of the first batch.
        loss: the plugin.
        precision: that the log-probs were computed in.

    Raises:
        TrainingError: they are not, with the record that is furthest off, or the two values of the loss.
    """
    logps = outcome.logps
    if logps.ref_sum is not None:
        excess = (logps.sum.detach() - logps.ref_sum).abs() / _allowed(logps, precision)
        worst = int(excess.argmax())
        if not excess[worst] <= 1:
            ids = [f.id for f in outcome.facts for _ in range(f.completions)]
            raise TrainingError(
                f"the reference is not the model that training starts from: on record {ids[worst]} the policy's "
                f"log-prob is {logps.sum[worst].item():.6g} and the reference's {logps.ref_sum[worst].item():.6g} "
                f"nats. {_REMEDY}"
            )
    expected = value_at_reference(loss, outcome.examples.logps)
    if expected is None:
        return
    want = torch.as_tensor(expected, dtype=torch.float64).mean().item()
    got = outcome.output.loss.detach().double().mean().item()
    slack = SLACK.get(precision, SLACK_IN_HALF)
    if not math.isclose(got, want, rel_tol=slack, abs_tol=slack):
        raise TrainingError(
            f"the first batch's loss is {got:.5g}, but where policy and reference are equal this loss is {want:.5g}. "
            f"{_REMEDY}"
        )


def at_reference(logps: Logps, precision: torch.dtype) -> Logps:
    """Log-probs of a policy that still is its reference: what differs by no more than rounding is equal.

    Losses with a kink at policy = reference (a relu, a sort) would otherwise take their first gradients from the
    rounding of two forwards. Values become the reference's, whatever the packing; gradients stay the policy's.
    """
    changed = {}
    if logps.ref_sum is not None:
        same = (logps.sum.detach() - logps.ref_sum).abs() <= _allowed(logps, precision)
        changed["sum"] = _equal(logps.sum, logps.ref_sum, same)
        if logps.token is not None and logps.ref_token is not None:
            changed["token"] = _equal(logps.token, logps.ref_token, same[:, None])
    for name in (statistic.value for statistic in BESIDE_REFERENCE):
        value = getattr(logps, name)
        if value is not None:
            changed[name] = _equal(value, torch.zeros_like(value), value.abs() <= _tolerance(precision))
    return replace(logps, **changed)


def _equal(value: Tensor, to: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, to.to(value.dtype) + (value - value.detach()), value)


def _allowed(logps: Logps, precision: torch.dtype) -> Tensor:
    """(C,) how far policy and reference may be apart where they are one model; rounding errors add up like a random
    walk."""
    return _tolerance(precision) * logps.num_tokens.sqrt()


def _tolerance(precision: torch.dtype) -> float:
    """The same for one token; stored log-probs are float32."""
    return max(TOLERANCE.get(precision, 0.25), TOLERANCE[torch.float32])


_REMEDY = (
    "Do they differ in weights, adapter or precision, or does the policy have dropout? A reference that is meant to be "
    "another model is given as such (model.reference=..., or `reference=`); a stored one can be rebuilt "
    "(`prefopt reference`)"
)
