"""Checks what a plugin computes: shapes, values, gradients, extremes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from prefopt.plugin import Data, Loss, LossOutput, Needs, value_at_reference
from prefopt.testing import samples
from prefopt.testing.numbers import Numbers, build, call, shown, whole

Failures = list[str]
SEEDS = range(5)


def runs(loss: Loss) -> Failures:
    failures = []
    numbers = samples.declared(loss.needs, samples.random_numbers(loss.needs.data, seed=0))
    for dtype in (torch.float64, torch.float32):
        values = samples.cast(numbers, dtype)
        names = samples.leaves(loss.needs, values)
        tracked = {n: v.clone().requires_grad_() if n in names else v.clone() for n, v in values.items()}
        output = call(loss, build(loss.needs, tracked))
        size = len(numbers["ids"])
        if output.loss.shape != (size,):
            failures.append(f"loss has shape {tuple(output.loss.shape)}, expected ({size},): one value per example")
        if output.loss.dtype != dtype:
            failures.append(f"loss is {output.loss.dtype} on {dtype} log-probs")
        if not output.loss.isfinite().all():
            failures.append(f"loss is not finite: {shown(output.loss)}")
        if not output.loss.requires_grad:
            failures.append("loss carries no gradient to the policy")
            continue
        grads = torch.autograd.grad(output.loss.sum(), [tracked[n] for n in names], allow_unused=True)
        if not all(g is None or bool(g.isfinite().all()) for g in grads):
            failures.append("gradient is not finite")
        failures += _side_outputs(loss, output, size)
        if any(not torch.equal(values[n], tracked[n].detach()) for n in values):
            failures.append("the batch was changed in place")
        again = call(loss, build(loss.needs, tracked))
        if not torch.equal(again.loss, output.loss):
            failures.append("the same batch gives another value the second time")
    return failures


def _side_outputs(loss: Loss, output: LossOutput, size: int) -> Failures:
    failures = []
    extra = {"chosen_reward": output.chosen_reward, "rejected_reward": output.rejected_reward, "reward": output.reward}
    extra |= {f"metrics[{name!r}]": value for name, value in output.metrics.items()}
    for name, value in extra.items():
        if value is None:
            continue
        if value.requires_grad:
            failures.append(f"{name} must be detached")
        lists = name == "reward" and loss.needs.data is Data.LISTS
        allowed = [(size, samples.COMPLETIONS)] if lists else [(size,), ()] if name.startswith("metrics") else [(size,)]
        if tuple(value.shape) not in allowed:
            failures.append(f"{name} has shape {tuple(value.shape)}, expected {allowed[0]}")
    if loss.needs.data is Data.PAIRS and (output.chosen_reward is None or output.rejected_reward is None):
        failures.append("a loss on pairs must give chosen_reward and rejected_reward")
    return failures


def stated_value(loss: Loss) -> Failures:
    for seed in SEEDS:
        full = samples.at_reference(samples.random_numbers(loss.needs.data, seed=seed))
        batch = whole(loss, build(loss.needs, samples.declared(loss.needs, full)))
        stated = value_at_reference(loss, batch)
        if not loss.needs.reference:
            return [] if stated is None else ["at_reference must give None: the loss has no reference"]
        if stated is None:
            return ["at_reference gives None, but the loss has a reference"]
        value = call(loss, batch).loss
        stated = torch.as_tensor(stated, dtype=value.dtype).expand_as(value)
        if not torch.allclose(value, stated, rtol=1e-9, atol=1e-9):
            return [f"seed {seed}: {shown(value)} at policy = reference, stated {shown(stated)}"]
    return []


def rounding_at_reference(loss: Loss) -> Failures:
    """Check the value where policy = reference up to rounding, as two forwards give them, and look for a kink there.

    The engine makes these ties exact at step 0, so what a loss does at a kink is its own choice: the docstring says
    which.
    """
    if not loss.needs.reference:
        return []
    kink = False
    for seed in SEEDS:
        exact = samples.at_reference(samples.random_numbers(loss.needs.data, seed=seed))
        near = samples.jittered(exact, seed)
        exact, near = (samples.declared(loss.needs, numbers) for numbers in (exact, near))
        batch = whole(loss, build(loss.needs, near))
        value, stated = call(loss, batch).loss.detach(), value_at_reference(loss, batch)
        stated = torch.as_tensor(stated, dtype=value.dtype).expand_as(value)
        if not torch.allclose(value, stated, rtol=1e-3, atol=1e-3):
            return [f"seed {seed}: {shown(value)} where policy = reference up to rounding, stated {shown(stated)}"]
        at, beside = gradients(loss, exact), gradients(loss, near)
        kink |= any(not torch.allclose(at[n], beside[n], rtol=1e-2, atol=1e-3) for n in at)
    if kink and "step 0" not in (type(loss).__doc__ or ""):
        return ["rounding decides its gradient at policy = reference: the docstring must say what happens at step 0"]
    return []


def direction(loss: Loss) -> Failures:
    """Check that at step 0 (anywhere, without a reference) the loss does not rise where the better side rises or the
    worse one falls.
    """
    moved = False
    for seed in SEEDS:
        full = samples.random_numbers(loss.needs.data, seed=seed)
        numbers = samples.declared(loss.needs, samples.at_reference(full) if loss.needs.reference else full)
        for name, gradient in gradients(loss, numbers).items():
            wanted = _wanted_sign(loss.needs, numbers, name)
            if wanted is None:
                continue
            moved |= bool((gradient * wanted).abs().max() > 1e-9)
            if bool((gradient * wanted < -1e-9).any()):
                return [f"seed {seed}: the loss pulls {name} the wrong way: gradient {shown(gradient)}"]
    return [] if moved else ["the loss has no gradient on any side"]


def _wanted_sign(needs: Needs, numbers: Numbers, name: str) -> Tensor | None:
    """The sign that the gradient on `name` must not contradict, 0 where either is right; None for any."""
    like = numbers[name]
    if name.endswith(("_kl", "_value")):
        return None
    if needs.data is Data.UNPAIRED:
        good = torch.ones_like(numbers["desirable"]) if needs.control_text else numbers["desirable"]
        sign = torch.where(good, -1.0, 1.0).to(like.dtype)
        return sign.unsqueeze(-1).expand_as(like) if like.ndim == 2 else sign
    if needs.data is Data.LISTS:
        present = numbers["num_tokens"] > 0
        best = numbers["scores"].masked_fill(~present, -math.inf).argmax(-1, keepdim=True)
        worst = numbers["scores"].masked_fill(~present, math.inf).argmin(-1, keepdim=True)
        sign = torch.zeros_like(numbers["scores"]).to(like.dtype).scatter(-1, best, -1.0).scatter(-1, worst, 1.0)
        return sign.unsqueeze(-1).expand_as(like) if like.ndim > sign.ndim else sign
    return torch.full_like(like, 1.0 if name.startswith("rejected") else -1.0)


def gradients(loss: Loss, numbers: Numbers, weights: Tensor | None = None) -> dict[str, Tensor]:
    names = samples.leaves(loss.needs, numbers)
    tracked = dict(numbers) | {n: numbers[n].clone().requires_grad_() for n in names}
    value = call(loss, build(loss.needs, tracked)).loss
    total = value.sum() if weights is None else (value * weights).sum()
    grads = torch.autograd.grad(total, [tracked[n] for n in names], allow_unused=True)
    return {n: torch.zeros_like(numbers[n]) if g is None else g for n, g in zip(names, grads, strict=True)}


class Replay(TorchFunctionMode):
    """Records what `detach` returns, then replays it, so that stop-gradients are constant under finite differences."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[Tensor] = []
        self.replaying: list[Tensor] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not Tensor.detach:
            return result
        if self.replaying is None:
            self.recorded.append(result.clone())
            return result
        return self.replaying.pop(0)

    def rewind(self) -> None:
        """Replay from the start from now on."""
        self.replaying = list(self.recorded)


def gradient(loss: Loss) -> Failures:
    """Compare autograd with central differences in float64, with stop-gradients held constant."""
    failures = []
    for seed in (0, 1):
        numbers = samples.declared(loss.needs, samples.random_numbers(loss.needs.data, seed=seed, examples=4))
        weights = torch.linspace(0.5, 1.5, 4, dtype=torch.float64)
        replay = Replay()

        def total(at: Numbers, replay: Replay = replay, weights: Tensor = weights) -> float:
            with replay:
                return float((call(loss, build(loss.needs, at)).loss * weights).sum())

        value = total(numbers)
        for name, gradient in gradients(loss, numbers, weights).items():
            for index in (numbers[name] != 0).nonzero().tolist():
                ends = []
                for step in (1e-5, -1e-5):
                    moved = numbers[name].clone()
                    moved[tuple(index)] += step
                    replay.rewind()
                    ends.append(total(dict(numbers) | {name: moved}))
                difference, exact = (ends[0] - ends[1]) / 2e-5, float(gradient[tuple(index)])
                if abs(difference - exact) > 1e-6 * (1 + abs(exact)) + 1e-10 * abs(value):
                    failures.append(f"d loss/d {name}{index} is {exact}, by differences {difference}")
    return failures[:3]


class _Live(TorchFunctionMode):
    """Lets gradients through `detach`, to measure the full sensitivity of a value to its inputs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is Tensor.detach else func(*args, **(kwargs or {}))


def extremes(loss: Loss) -> Failures:
    """Check log-ratios of +-1e4, probabilities of 1 and length 1: finite, and as exact as the inputs allow."""
    failures = []
    numbers = samples.declared(loss.needs, samples.extreme_numbers(loss.needs.data))
    for dtype in (torch.float32, torch.bfloat16):
        rounded = samples.cast(numbers, dtype)
        exact, moves = sensitivity(loss, samples.cast(rounded, torch.float64))
        value = call(loss, build(loss.needs, rounded)).loss.double()
        slopes = gradients(loss, rounded)
        if not value.isfinite().all():
            failures.append(f"{dtype}: value is not finite in {int((~value.isfinite()).sum())} of {len(value)} cases")
            continue
        bad = [name for name, g in slopes.items() if not g.isfinite().all()]
        if bad:
            failures.append(f"{dtype}: gradient on {', '.join(bad)} is not finite")
        if loss.needs.coupled:  # a rounded tie may decide which example gets a share of the value
            value, exact, moves = (x.mean().unsqueeze(0) for x in (value, exact, moves))
        allowed = 4 * torch.finfo(dtype).eps * (exact.abs() + moves + 1)
        wrong = ((value - exact).abs() > allowed).nonzero().squeeze(-1).tolist()
        if wrong:
            i = wrong[0]
            at = {n: v[i].tolist() for n, v in rounded.items() if v[i].numel() < 8 and v.is_floating_point()}
            where = "in the mean" if loss.needs.coupled else f"at {at} ({len(wrong)} cases)"
            failures.append(f"{dtype}: {float(value[i])} for {float(exact[i])} {where}")
    return failures


def sensitivity(loss: Loss, numbers: Numbers) -> tuple[Tensor, Tensor]:
    """(B,) the values, and the sum over inputs x of |x| |d value/dx|: their relative sensitivity."""
    floating = [n for n, v in numbers.items() if v.is_floating_point()]
    tracked = dict(numbers) | {n: numbers[n].clone().requires_grad_() for n in floating}
    with _Live():
        batch = whole(loss, build(loss.needs, tracked))
        value = call(loss, batch).loss
    targets = getattr(batch, "targets", {}).values()  # rounded too before the loss reads them
    inputs = [*(tracked[n] for n in floating), *(t for t in targets if t.requires_grad)]

    def weigh(total: Tensor) -> Tensor:
        """(B,) sum over the inputs of an example of |x| |d total/dx|."""
        grads = torch.autograd.grad(total, inputs, allow_unused=True, retain_graph=True)
        weighed = [(x * g.nan_to_num(0.0, 0.0, 0.0)).abs() for x, g in zip(inputs, grads, strict=True) if g is not None]
        return torch.stack([w.flatten(1).sum(1) if w.ndim > 1 else w for w in weighed]).sum(0)

    if loss.needs.coupled:
        return value.detach(), torch.stack([weigh(one).sum() for one in value]).detach()
    return value.detach(), weigh(value.sum()).detach()
