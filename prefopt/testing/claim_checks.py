"""Checks what a plugin's comments and docstring claim: units and ranges of hyper-parameters, the value at reference."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import math
import operator
import re
from typing import Any

import torch

from prefopt.plugin import Loss, comments, value_at_reference
from prefopt.testing import samples
from prefopt.testing.metadata_checks import replaced
from prefopt.testing.numbers import SIDES, Numbers, build, shown, value_of, whole

Failures = list[str]
ALL_SIDES = {side for sides in SIDES.values() for side, _ in sides}
PER_TOKEN = ("_token", *(f"_{statistic}" for statistic in samples.STATISTICS))
SCALE = 1.5
POWERS = (-1, 0, 1)  # of nats, in the unit of a hyper-parameter
NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"


def units(loss: Loss) -> Failures:
    """Check the unit that each hyper-parameter's comment states, by measuring log-probs in another unit than nats.

    With log-probs and whatever is in nats larger by a factor, and whatever is per nat smaller, a loss is larger by a
    power of the factor. Losses that no units make so, such as those of probabilities, are not checked; nor are those of
    importance ratios and those of a reward model's scores.
    """
    if loss.needs.on_policy or loss.needs.reward_model:
        return []
    names = [f.name for f in dataclasses.fields(loss) if isinstance(getattr(loss, f.name), float)]  # type: ignore[arg-type]
    words = comments(type(loss))
    stated = {name: _stated_power(words.get(name, "")) for name in names}
    batches = [samples.random_numbers(loss.needs.data, seed=seed, examples=n) for seed, n in ((0, 6), (3, 5))]
    batches.append({name: value / 8 if _in_nats(name, value) else value for name, value in batches[0].items()})
    batches = [samples.declared(loss.needs, numbers) for numbers in batches]
    # A hyper-parameter that is 0 has every unit.
    loss = dataclasses.replace(loss, **{n: 0.5 for n in names if getattr(loss, n) == 0 and replaced(loss, n, 0.5)})  # type: ignore[type-var]
    if _scales(loss, stated, batches):
        return []
    allowed = (dict(zip(names, powers, strict=True)) for powers in itertools.product(POWERS, repeat=len(names)))
    right = [powers for powers in allowed if _scales(loss, powers, batches)]
    if not right:
        return []
    nearest = min(right, key=lambda powers: sum(powers[name] != stated[name] for name in names))
    kind = {-1: "per nat", 0: "without nats", 1: "in nats"}
    return [
        f"{name} is {kind[stated[name]]} by its comment, but acts as a number {kind[nearest[name]]}"
        for name in names
        if nearest[name] != stated[name]
    ]


def _stated_power(comment: str) -> int:
    """The power of nats in the unit at the beginning of a comment."""
    unit = comment.partition(";")[0]
    if "nats per nat" in unit:
        return 0
    if re.search(r"\bper \(?nat\b", unit):
        return -1
    return 1 if re.search(r"(?:^|\bin |, )nats\b(?! of loss)", unit) else 0


def _in_nats(name: str, value: torch.Tensor) -> bool:
    return value.is_floating_point() and (name.endswith(PER_TOKEN) or name.removeprefix("ref_") in ALL_SIDES)


def _scales(loss: Any, powers: dict[str, int], batches: list[samples.Named]) -> bool:
    """Whether the values of all batches change by one power of the scale."""
    other = loss
    for name, power in powers.items():
        other = other and replaced(other, name, getattr(loss, name) * SCALE**power)
    if other is None:
        return False
    changes = {-1, 0, 1, 2}
    for numbers in batches:
        before, after = value_of(loss, numbers), value_of(other, _scaled(numbers))
        changes = {p for p in changes if torch.allclose(after, before * SCALE**p, rtol=1e-6, atol=1e-9)}
        if not changes:
            return False
    return True


def _scaled(numbers: Numbers) -> samples.Named:
    return {name: value * SCALE if _in_nats(name, value) else value for name, value in numbers.items()}


def ranges(loss: Loss) -> Failures:
    """Check that defaults lie in the ranges that comments call useful, and that the plugin accepts what it searches."""
    failures, words = [], comments(type(loss))
    for field in dataclasses.fields(loss):  # type: ignore[arg-type]
        found = re.search(rf"({NUMBER}) to ({NUMBER})\b", words.get(field.name, "").partition(";")[2])
        if found and isinstance(field.default, float | int):
            low, high = (float(number) for number in found.groups())
            if not low <= field.default <= high:
                failures.append(f"{field.name}={field.default} by default, outside its useful range {found[0]}")
    for name, values in getattr(loss, "search_space", {}).items():
        refused = [value for value in values if replaced(loss, name, value) is None]
        if refused:
            failures.append(f"search_space has {name}={refused[0]}, which the plugin refuses")
        if list(values) != sorted(values):
            failures.append(f"search_space[{name!r}] must rise")
    return failures


def stated_words(loss: Loss) -> Failures:
    """Check the value at policy = reference that the docstring states, where it is arithmetic on hyper-parameters."""
    text = re.search(r"Value at policy = reference:\s*(.*?)(?:\n\s*\n|\Z)", type(loss).__doc__ or "", re.DOTALL)
    if text is None:
        return []  # the check of metadata says so
    words = " ".join(text[1].split())
    stated = arithmetic(re.split(r"[.,:](?:\s|$)", words)[0], loss)
    if words.startswith("none") if loss.needs.reference else stated is not None:
        return [f"the docstring says {words!r}, but needs.reference is {loss.needs.reference}"]
    if stated is None:
        return []
    numbers = samples.at_reference(samples.random_numbers(loss.needs.data, seed=0))
    batch = whole(loss, build(loss.needs, samples.declared(loss.needs, numbers)))
    value = torch.as_tensor(value_at_reference(loss, batch), dtype=torch.float64)
    if torch.allclose(value, torch.full_like(value, stated), rtol=1e-6):
        return []
    return [f"the docstring says {words!r}, which is {stated:.6g}, but at_reference is {shown(value)}"]


def arithmetic(words: str, loss: Any) -> float | None:
    """The number that words such as `2 log 2` or `1 / (2 beta^2)` stand for; None where they are no arithmetic."""
    text = re.sub(r"\blog (\d+)", r"log(\1)", words).replace("^", "**")
    text = re.sub(r"(\d|\)) (?=[a-z(])", r"\1 * ", text)
    try:
        return _evaluated(ast.parse(text, mode="eval").body, loss)
    except (SyntaxError, ValueError, AttributeError, TypeError, ArithmeticError):
        return None


_OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def _evaluated(node: ast.expr, loss: Any) -> float:
    """The value of an expression of numbers, hyper-parameters, log and exp.

    Raises:
        ValueError: it is anything else.
    """
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.Name():
            return float(getattr(loss, node.id))
        case ast.UnaryOp(op=ast.USub()):
            return -_evaluated(node.operand, loss)
        case ast.BinOp() if type(node.op) in _OPERATIONS:
            return float(_OPERATIONS[type(node.op)](_evaluated(node.left, loss), _evaluated(node.right, loss)))
        case ast.Call(func=ast.Name(id="log" | "exp" as function), args=[argument]):
            return float(getattr(math, function)(_evaluated(argument, loss)))
    raise ValueError("more than arithmetic")
