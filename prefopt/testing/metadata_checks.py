"""Checks a plugin's docstring and hyper-parameters."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from enum import Enum
from typing import Any

import torch

from prefopt.plugin import Loss, Needs, comments
from prefopt.testing import samples
from prefopt.testing.numbers import build, call

Failures = list[str]


def metadata(loss: Loss) -> Failures:
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


def hyperparameters(loss: Loss) -> Failures:
    failures, hints = [], typing.get_type_hints(type(loss))
    for field in dataclasses.fields(loss):  # type: ignore[arg-type]
        hint = hints[field.name]
        plain = [a for a in typing.get_args(hint) if a is not type(None)] if _is_optional(hint) else [hint]
        if not all(_is_settable(a) for a in plain):
            failures.append(f"{field.name}: {hint} cannot be set from a command line")
        if float in plain and not _refused(loss, field.name, math.nan):
            failures.append(f"{field.name}=nan is not refused with a ValueError that names it")
    return failures + _settings_act(loss)


def _settings_act(loss: Loss) -> Failures:
    """Check that every hyper-parameter changes something: none is accepted and ignored."""
    data = loss.needs.data
    # Of 6 and 5 examples: an uneven number has more of one label.
    batches = [samples.random_numbers(data, seed=n, examples=n) for n in (6, 5)] + [samples.extreme_numbers(data)]
    batches = [samples.declared(loss.needs, numbers) for numbers in batches]
    enums = [f.name for f in dataclasses.fields(loss) if isinstance(getattr(loss, f.name), Enum)]  # type: ignore[arg-type]
    # An option may act under one method only, so try it under each.
    bases = [loss] + [replaced(loss, name, value) for name in enums for value in type(getattr(loss, name))]
    failures = []
    for field in dataclasses.fields(loss):  # type: ignore[arg-type]
        value = getattr(loss, field.name)
        others = other_values(value)
        if not others:
            continue  # tables act through their entries
        pairs = [(base, replaced(base, field.name, other)) for base in bases for other in others]
        if not any(_differ(base, changed, batches) for base, changed in pairs if base is not None):
            failures.append(f"{field.name} changes nothing: {value!r} and {others} give the same")
    return failures


def other_values(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, Enum):
        return [other for other in type(value) if other is not value]
    if isinstance(value, str):
        return [value + "."]
    if isinstance(value, float | int):
        kind: Any = type(value)
        return [kind(value * factor) for factor in (0.5, 2)] if value else [kind(1)]
    return []


def replaced(loss: Any, name: str, value: Any) -> Any:
    try:
        return dataclasses.replace(loss, **{name: value})
    except ValueError:
        return None


def _differ(one: Any, other: Any, batches: list[samples.Named]) -> bool:
    if other is None:
        return False
    if any(
        getattr(one, a, None) != getattr(other, a, None) for a in ("reference_update", "control_text", "mixture_coef")
    ):
        return True
    values = zip(_in_turn(one, batches), _in_turn(other, batches), strict=True)
    return any(not torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in values)


def _in_turn(loss: Any, batches: list[samples.Named]) -> Iterator[torch.Tensor]:
    """The values of each batch, with the state that the batch before it left."""
    state = None
    for numbers in batches:
        output = call(loss, build(loss.needs, numbers), state)
        state = output.state
        yield output.loss.detach()


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
