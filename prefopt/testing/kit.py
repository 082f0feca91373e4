"""Runs the checks that every loss must pass, built-in or not: `check_loss(MyLoss())`."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefopt.plugin import Loss
from prefopt.testing import claim_checks, metadata_checks, needs_checks, reward_checks, target_checks, value_checks

Failures = list[str]


@dataclass(frozen=True)
class Check:
    """The outcome of one check; `detail` says what failed, or what is worth knowing of a loss that passes."""

    name: str
    ok: bool
    detail: str = ""


NO_SPACE = ("declares no search_space: comparisons try learning rates alone; declare one hyper-parameter and four "
            "values, or {} where there is no strength")  # fmt: skip
CHECKS: dict[str, Callable[[Loss], Failures]] = {
    "metadata": metadata_checks.metadata,
    "hyperparameters": metadata_checks.hyperparameters,
    "units": claim_checks.units,
    "ranges": claim_checks.ranges,
    "runs": value_checks.runs,
    "value at reference": value_checks.stated_value,
    "stated in words": claim_checks.stated_words,
    "rounding at reference": value_checks.rounding_at_reference,
    "direction": value_checks.direction,
    "gradient": value_checks.gradient,
    "extremes": value_checks.extremes,
    "rewards": reward_checks.rewards,
    "needs": needs_checks.needs,
    "ranking": needs_checks.ranking,
    "batch laws": needs_checks.batch_laws,
    "targets": target_checks.targets,
    "state": needs_checks.state,
}


def check_loss(loss: Loss) -> list[Check]:
    """Run every check of the kit on a loss; a check that raises has failed.

    A plugin may declare `exceptions: ClassVar[dict[str, str]]`, from the name of a check to the reason why the loss
    does not pass it. That check must then fail: an exception that is no longer needed is reported.
    """
    results = [_run(name, check, loss) for name, check in CHECKS.items()]
    exceptions: dict[str, str] = getattr(loss, "exceptions", {})
    unknown = [f"no check is called {name!r}" for name in exceptions if name not in CHECKS]
    return [_excepted(result, exceptions) for result in results] + [
        Check("exceptions", not unknown, "; ".join(unknown)),
        Check("search space", True, "" if hasattr(loss, "search_space") else NO_SPACE),
    ]


def example(cls: type[Any]) -> Any:
    """Instantiate a plugin class with its defaults, and 2 for every hyper-parameter without one."""
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
