"""The checks that every loss must pass, built-in or not. `check_loss(MyLoss())` runs them all."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from prefopt.hyperparameters import comments
from prefopt.plugin import Data, Loss, LossOutput, Needs, State
from prefopt.testing import samples
from prefopt.testing.numbers import SIDES, Numbers, build, call

SEEDS = range(5)
Failures = list[str]


@dataclass(frozen=True)
class Check:
    """The outcome of one check; `detail` says what failed, or is empty."""

    name: str
    ok: bool
    detail: str = ""


def check_loss(loss: Loss) -> list[Check]:
    """Every check of the kit on one loss; a check that raises has failed.

    A plugin may declare `exceptions: ClassVar[dict[str, str]]`, from the name of a check to the reason why the loss
    does not pass it. Such a check must then fail: a reason that no longer holds is itself reported.
    """
    results = [_run(name, check, loss) for name, check in CHECKS.items()]
    exceptions: dict[str, str] = getattr(loss, "exceptions", {})
    unknown = [f"no check is called {name!r}" for name in exceptions if name not in CHECKS]
    return [_excepted(result, exceptions) for result in results] + [
        Check("exceptions", not unknown, "; ".join(unknown))
    ]


def example(cls: type[Any]) -> Any:
    """An instance of a plugin class: its defaults, and 2 for every hyper-parameter that has none."""
    required = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
    hints = typing.get_type_hints(cls)
    return cls(**{name: hints[name](2) for name in required})


def _run(name: str, check: Callable[[Loss], Failures], loss: Loss) -> Check:
    try:
        failures = check(loss)
    except Exception as error:
        failures = [f"raised {type(error).__name__}: {error}"]
    return Check(name, not failures, "; ".join(failures))


def _excepted(result: Check, exceptions: dict[str, str]) -> Check:
    if result.name not in exceptions:
        return result
    if result.ok:
        return Check(result.name, False, f"passes, although its exception says: {exceptions[result.name]}")
    return Check(result.name, True, f"excepted: {exceptions[result.name]}")


# --- what the plugin says of itself


def _metadata(loss: Loss) -> Failures:
    cls = type(loss)
    failures: Failures = []
    if not dataclasses.is_dataclass(cls) or not cls.__dataclass_params__.frozen:
        return ["the class must be a frozen dataclass"]
    if not isinstance(loss.needs, Needs):
        failures.append("`needs` must be a prefopt.plugin.Needs")
    if not str(getattr(loss, "paper", "")).startswith("https://"):
        failures.append("`paper` must be a link")
    text = cls.__doc__ or ""
    for part in ("L =", "Value at policy = reference:", "Differences:"):
        if part not in text.replace("L_i =", "L ="):
            failures.append(f"the docstring has no {part!r}")
    silent = [f.name for f in dataclasses.fields(cls) if f.name not in comments(cls)]
    if silent:
        failures.append(f"no comment (unit, useful range) on the line of {', '.join(silent)}")
    return failures


def _hyperparameters(loss: Loss) -> Failures:
    failures, hints = [], typing.get_type_hints(type(loss))
    for field in dataclasses.fields(loss):  # type: ignore[arg-type]
        hint = hints[field.name]
        plain = [a for a in typing.get_args(hint) if a is not type(None)] if _is_optional(hint) else [hint]
        if not all(_is_settable(a) for a in plain):
            failures.append(f"{field.name}: {hint} cannot be set from a command line")
        if float in plain and not _refused(loss, field.name, math.nan):
            failures.append(f"{field.name}=nan is not refused with a ValueError that names it")
    return failures


def _is_optional(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _is_settable(hint: Any) -> bool:
    if typing.get_origin(hint) is dict:
        return True
    return isinstance(hint, type) and issubclass(hint, float | int | str | bool | Enum)


def _refused(loss: Loss, name: str, value: Any) -> bool:
    try:
        dataclasses.replace(loss, **{name: value})  # type: ignore[type-var]
    except ValueError as error:
        return name in str(error)
    return False


# --- what it computes


def _runs(loss: Loss) -> Failures:
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
            failures.append(f"loss is not finite: {output.loss.tolist()}")
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


def _value_at_reference(loss: Loss) -> Failures:
    failures = []
    for seed in SEEDS:
        full = samples.at_reference(samples.random_numbers(loss.needs.data, seed=seed))
        batch = build(loss.needs, samples.declared(loss.needs, full))
        stated = loss.at_reference(batch)
        if not loss.needs.reference:
            return [] if stated is None else ["at_reference must give None: the loss has no reference"]
        if stated is None:
            return ["at_reference gives None, but the loss has a reference"]
        value = call(loss, batch).loss
        stated = torch.as_tensor(stated, dtype=value.dtype).expand_as(value)
        if not torch.allclose(value, stated, rtol=1e-9, atol=1e-9):
            failures.append(f"seed {seed}: {value.tolist()} at policy = reference, stated {stated.tolist()}")
    return failures


def _direction(loss: Loss) -> Failures:
    """At step 0 (anywhere, without a reference) the loss falls, weakly, where the better side rises or the worse one
    falls."""
    moved = False
    for seed in SEEDS:
        full = samples.random_numbers(loss.needs.data, seed=seed)
        numbers = samples.declared(loss.needs, samples.at_reference(full) if loss.needs.reference else full)
        for name, gradient in _gradients(loss, numbers).items():
            wanted = _wanted_sign(loss.needs, numbers, name)
            if wanted is None:
                continue
            moved |= bool((gradient * wanted).abs().max() > 1e-9)
            if bool((gradient * wanted < -1e-9).any()):
                return [f"seed {seed}: the loss pulls {name} the wrong way: gradient {gradient.tolist()}"]
    return [] if moved else ["the loss has no gradient on any side"]


def _wanted_sign(needs: Needs, numbers: Numbers, name: str) -> Tensor | None:
    """The sign that the gradient on `name` must not contradict, 0 where either is right; None for no opinion."""
    like = numbers[name]
    if name.endswith("_kl"):
        return None
    if needs.data is Data.UNPAIRED:
        good = torch.ones_like(numbers["desirable"]) if needs.control_text else numbers["desirable"]
        sign = torch.where(good, -1.0, 1.0).to(like.dtype)
        return sign.unsqueeze(-1).expand_as(like) if like.ndim == 2 else sign
    if needs.data is Data.LISTS:
        present = numbers["num_tokens"] > 0
        best = numbers["scores"].masked_fill(~present, -math.inf).argmax(-1, keepdim=True)
        worst = numbers["scores"].masked_fill(~present, math.inf).argmin(-1, keepdim=True)
        return torch.zeros_like(like).scatter(-1, best, -1.0).scatter(-1, worst, 1.0)
    return torch.full_like(like, 1.0 if name.startswith("rejected") else -1.0)


def _gradients(loss: Loss, numbers: Numbers, weights: Tensor | None = None) -> dict[str, Tensor]:
    names = samples.leaves(loss.needs, numbers)
    tracked = dict(numbers) | {n: numbers[n].clone().requires_grad_() for n in names}
    value = call(loss, build(loss.needs, tracked)).loss
    total = value.sum() if weights is None else (value * weights).sum()
    grads = torch.autograd.grad(total, [tracked[n] for n in names], allow_unused=True)
    return {n: torch.zeros_like(numbers[n]) if g is None else g for n, g in zip(names, grads, strict=True)}


class _Replay(TorchFunctionMode):
    """Records what `detach` returns, then gives the same back: a stop-gradient is a constant, also to a difference."""

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


def _gradient(loss: Loss) -> Failures:
    """Autograd against central differences in float64, stop-gradients held at their value."""
    failures = []
    for seed in (0, 1):
        numbers = samples.declared(loss.needs, samples.random_numbers(loss.needs.data, seed=seed, examples=4))
        weights = torch.linspace(0.5, 1.5, 4, dtype=torch.float64)
        replay = _Replay()

        def total(at: Numbers, replay: _Replay = replay, weights: Tensor = weights) -> float:
            with replay:
                return float((call(loss, build(loss.needs, at)).loss * weights).sum())

        value = total(numbers)
        for name, gradient in _gradients(loss, numbers, weights).items():
            for index in (numbers[name] != 0).nonzero().tolist():
                ends = []
                for step in (1e-5, -1e-5):
                    moved = numbers[name].clone()
                    moved[tuple(index)] += step
                    replay.replaying = list(replay.recorded)
                    ends.append(total(dict(numbers) | {name: moved}))
                difference, exact = (ends[0] - ends[1]) / 2e-5, float(gradient[tuple(index)])
                if abs(difference - exact) > 1e-6 * (1 + abs(exact)) + 1e-10 * abs(value):
                    failures.append(f"d loss/d {name}{index} is {exact}, by differences {difference}")
    return failures[:3]


class _Live(TorchFunctionMode):
    """Lets gradients through `detach`, to measure how sensitive a value is to its inputs by any way."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is Tensor.detach else func(*args, **(kwargs or {}))


def _extremes(loss: Loss) -> Failures:
    """Log-ratios of +-1e4, probabilities of 1, length 1: finite, and as exact as the precision of the inputs allows."""
    failures = []
    numbers = samples.declared(loss.needs, samples.extreme_numbers(loss.needs.data))
    for dtype in (torch.float32, torch.bfloat16):
        rounded = samples.cast(numbers, dtype)
        exact, sensitivity = _sensitivity(loss, samples.cast(rounded, torch.float64))
        value = call(loss, build(loss.needs, rounded)).loss.double()
        gradients = _gradients(loss, rounded)
        if not value.isfinite().all():
            failures.append(f"{dtype}: value is not finite in {int((~value.isfinite()).sum())} of {len(value)} cases")
            continue
        bad = [name for name, g in gradients.items() if not g.isfinite().all()]
        if bad:
            failures.append(f"{dtype}: gradient on {', '.join(bad)} is not finite")
        if loss.needs.coupled:  # which example a share of the value falls to may hang on a rounded tie
            value, exact, sensitivity = (x.mean().unsqueeze(0) for x in (value, exact, sensitivity))
        allowed = 4 * torch.finfo(dtype).eps * (exact.abs() + sensitivity + 1)
        wrong = ((value - exact).abs() > allowed).nonzero().squeeze(-1).tolist()
        if wrong:
            i = wrong[0]
            at = {n: v[i].tolist() for n, v in rounded.items() if v[i].numel() < 8 and v.is_floating_point()}
            where = "in the mean" if loss.needs.coupled else f"at {at} ({len(wrong)} cases)"
            failures.append(f"{dtype}: {float(value[i])} for {float(exact[i])} {where}")
    return failures


def _sensitivity(loss: Loss, numbers: Numbers) -> tuple[Tensor, Tensor]:
    """(B,) the values, and sum over inputs x of |x| |d value/dx|: what a relative error of 1 in the inputs would do."""
    floating = [n for n, v in numbers.items() if v.is_floating_point()]
    tracked = dict(numbers) | {n: numbers[n].clone().requires_grad_() for n in floating}
    with _Live():
        value = call(loss, build(loss.needs, tracked)).loss
    inputs = [tracked[n] for n in floating]

    def weigh(total: Tensor) -> Tensor:
        """(B,) sum over the inputs of an example of |x| |d total/dx|."""
        grads = torch.autograd.grad(total, inputs, allow_unused=True, retain_graph=True)
        weighed = [(x * g.nan_to_num(0.0, 0.0, 0.0)).abs() for x, g in zip(inputs, grads, strict=True) if g is not None]
        return torch.stack([w.flatten(1).sum(1) if w.ndim > 1 else w for w in weighed]).sum(0)

    if loss.needs.coupled:
        return value.detach(), torch.stack([weigh(one).sum() for one in value]).detach()
    return value.detach(), weigh(value.sum()).detach()


# --- whether its needs are true


def _value(loss: Loss, numbers: Numbers, state: State | None = None) -> Tensor:
    return call(loss, build(loss.needs, numbers), state).loss.detach()


def _perturbations(data: Data) -> dict[str, Callable[[Numbers, int], Numbers]]:
    """For each need: the same batch with only what that need covers changed."""
    length_names = [lengths for side, lengths in SIDES[data] if side != "mismatched"]

    def reference(name: str) -> bool:
        return name.startswith("ref_")

    def lengths(numbers: Numbers, seed: int) -> Numbers:
        generator = torch.Generator().manual_seed(seed)
        longer = samples.padded(data, numbers) if data is not Data.LISTS else dict(numbers)
        for name in length_names:
            more = torch.randint(1, 4, numbers[name].shape, generator=generator)
            longer[name] = torch.where(numbers[name] > 0, numbers[name] + more, 0)
        return longer

    def tokens(numbers: Numbers, seed: int) -> Numbers:
        """Moves log-prob between the tokens of a completion, its sum unchanged."""
        generator = torch.Generator().manual_seed(seed)
        moved = dict(numbers)
        for name in numbers:
            if name.endswith("_token") and not name.startswith("ref_"):
                inside = (numbers[name] != 0).double()
                noise = torch.rand(inside.shape, generator=generator, dtype=torch.float64) * inside
                mean = noise.sum(-1, keepdim=True) / inside.sum(-1, keepdim=True).clamp(min=1)
                moved[name] = numbers[name] + (noise - mean) * inside
        return moved

    def scores(numbers: Numbers, seed: int) -> Numbers:
        other = samples.random_numbers(data, seed=seed + 1000, examples=len(numbers["ids"]))
        return dict(numbers) | {n: other[n] for n in numbers if n.endswith("score") or n == "scores"}

    def noise(which: Callable[[str], bool]) -> Callable[[Numbers, int], Numbers]:
        return lambda numbers, seed: samples.perturbed(numbers, which, seed)

    found = {
        "reference": noise(reference),
        "lengths": lengths,
        "tokens": tokens,
        "scores": scores,
        "mismatched": noise(lambda name: name == "mismatched"),
        **{s: noise(functools.partial(_ends_with, s)) for s in ("log_sum_sq", "ref_entropy", "kl")},
    }
    if data is Data.UNPAIRED:
        found["desirable"] = lambda numbers, seed: dict(numbers) | {"desirable": ~numbers["desirable"]}
    return found


def _ends_with(suffix: str, name: str) -> bool:
    return name.endswith(suffix)


def _declared_flags(needs: Needs) -> dict[str, bool]:
    flags = {name: bool(getattr(needs, name)) for name in ("reference", "lengths", "tokens", "scores", "mismatched")}
    flags |= {name: any(v.value == name for v in needs.vocab) for name in ("log_sum_sq", "ref_entropy", "kl")}
    return flags | {"desirable": needs.data is Data.UNPAIRED and not needs.control_text}


def _needs(loss: Loss) -> Failures:
    """A declared need is used: the value moves when it is perturbed. One that is not declared is not used."""
    failures = []
    flags = _declared_flags(loss.needs)
    for need, perturb in _perturbations(loss.needs.data).items():
        moved = False
        for seed in SEEDS:
            # Everything is there, so that a plugin that reads what it did not declare is seen reading it.
            full = samples.random_numbers(loss.needs.data, seed=seed)
            before, after = _value(loss, full), _value(loss, perturb(full, seed))
            moved |= not torch.allclose(before, after, rtol=1e-9, atol=1e-12)
        if flags[need] and not moved:
            failures.append(f"{need} is declared, but the value does not depend on it")
        if moved and not flags[need]:
            failures.append(f"{need} is not declared, but the value depends on it")
    return failures + _marker_needs(loss)


def _marker_needs(loss: Loss) -> Failures:
    failures = []
    for flag, attribute in (("moving_reference", "reference_update"), ("state", "initial_state")):
        if getattr(loss.needs, flag) and not hasattr(loss, attribute):
            failures.append(f"{flag} is declared, but there is no `{attribute}`")
    if loss.needs.control_text and not all(isinstance(getattr(loss, n, None), str) for n in ("good", "bad")):
        failures.append("control_text is declared, but there are no texts `good` and `bad`")
    return failures


def _batch_laws(loss: Loss) -> Failures:
    """Order and padding change no value; neither does a split, unless the loss is coupled, and then one does."""
    failures, depends = [], False
    for seed in SEEDS:
        full = samples.random_numbers(loss.needs.data, seed=seed)
        numbers = samples.declared(loss.needs, full)
        size = len(numbers["ids"])
        whole = _value(loss, numbers)
        order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        if not torch.allclose(_value(loss, samples.rows(numbers, order)), whole[order], rtol=1e-12, atol=1e-12):
            failures.append(f"seed {seed}: another order of the batch gives other values")
        if not torch.allclose(_value(loss, samples.padded(loss.needs.data, numbers)), whole, rtol=1e-12, atol=1e-12):
            failures.append(f"seed {seed}: padding changes the value")
        halves = [samples.rows(numbers, index) for index in torch.arange(size).chunk(2)]
        apart = torch.cat([_value(loss, half) for half in halves])
        depends |= not torch.allclose(apart, whole, rtol=1e-9, atol=1e-12)
    if depends and not loss.needs.coupled:
        failures.append("values depend on the other examples: declare `coupled`")
    if not depends and loss.needs.coupled:
        failures.append("coupled is declared, but values do not depend on the other examples")
    return failures


def _state(loss: Loss) -> Failures:
    if not loss.needs.state:
        unexpected = call(
            loss, build(loss.needs, samples.declared(loss.needs, samples.random_numbers(loss.needs.data, seed=0)))
        ).state
        return ["returns a state, but `state` is not declared"] if unexpected is not None else []
    failures = []
    start: State = loss.initial_state()  # type: ignore[attr-defined]
    kept = {name: value.clone() for name, value in start.items()}
    states: list[State] = []
    for seed in (0, 1):
        numbers = samples.declared(loss.needs, samples.random_numbers(loss.needs.data, seed=seed))
        output = call(loss, build(loss.needs, numbers), states[-1] if states else start)
        if output.state is None or set(output.state) != set(start):
            return [f"the new state must have the names {sorted(start)}"]
        if any(value.requires_grad for value in output.state.values()):
            failures.append("the state must be detached")
        states.append(output.state)
    if any(not torch.equal(kept[name], start[name]) for name in kept):
        failures.append("the state that was passed in was changed")
    numbers = samples.declared(loss.needs, samples.random_numbers(loss.needs.data, seed=1))
    fresh, carried = _value(loss, numbers, start), _value(loss, numbers, states[0])
    if torch.allclose(fresh, carried, rtol=1e-9, atol=1e-12):
        failures.append("state is declared, but the value does not depend on it")
    return failures


CHECKS: dict[str, Callable[[Loss], Failures]] = {
    "metadata": _metadata,
    "hyperparameters": _hyperparameters,
    "runs": _runs,
    "value at reference": _value_at_reference,
    "direction": _direction,
    "gradient": _gradient,
    "extremes": _extremes,
    "needs": _needs,
    "batch laws": _batch_laws,
    "state": _state,
}
