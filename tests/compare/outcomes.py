"""Made-up runs of a comparison, and the outcome derived from them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prefopt.compare import results
from prefopt.compare.jobs import JobResult
from prefopt.compare.outcome import ComparisonOutcome
from prefopt.compare.rounds import MethodRuns
from prefopt.compare.search import Setting
from prefopt.compare.spec import Budget, Comparison, Method
from prefopt.losses.registry import load

PROMPTS = np.random.default_rng(0).normal(0, 1, 200)


def result(
    name: str, number: int, reward: float, *, status: Any = "ok", valid: float = 0.95, kl: float = 1.0
) -> JobResult:
    rng = np.random.default_rng([7, number, *name.encode()])
    values = reward + PROMPTS + rng.normal(0, 0.03) + rng.normal(0, 0.4, len(PROMPTS))
    figures = {"true_reward": float(values.mean()), "kl": kl, "valid": valid}
    return JobResult(
        key=f"{name}{number}", method=name, label=name, status=status, reason="" if status == "ok" else "loss is nan",
        figures=figures, arrays={"true_reward": values, "kl": np.full(len(values), kl)} if status == "ok" else {},
        cost={"train_seconds": 2.0, "measure_seconds": 1.0, "tokens": 100.0, "peak_memory_mib": 50.0},
    )  # fmt: skip


def runs(name: str, reward: float, *, control: bool = False, seeds: int = 3, **given: Any) -> MethodRuns:
    """The runs of one row: base, a method, or a control (`again` in its name has other seeds)."""
    setting = Setting({"beta": 0.1}, 1e-3)
    config: Any = SimpleNamespace(
        model=SimpleNamespace(path="m"), data=SimpleNamespace(path="d"), loss=load("dpo"), loss_name="dpo"
    )
    trial = result(name, 0, reward, **given)
    if name == "base":
        finals = [result(name, 1, reward, **given)]
        return MethodRuns(name=name, method=None, config=config, trials=[trial], finals=finals)
    offset = 3 if name.endswith("again") else 0
    method = Method(name=name, loss="dpo", sides_swapped=control, seed_offset=offset)
    finals = [result(name, i + 1, reward, **given) for i in range(seeds)]
    return MethodRuns(
        name=name, method=method, config=config, settings=[setting], trials=[trial], chosen=setting, finals=finals
    )


def outcome(
    *rows: MethodRuns, comparison: Comparison | None = None, controls: bool = False, trials: int = 4
) -> ComparisonOutcome:
    """The outcome of a comparison of these rows; the data's fingerprint is their path."""
    methods = [r.method for r in rows if r.method is not None and not r.control and r.name != "sft"]
    comparison = comparison or Comparison(
        methods=tuple(Method(name=method.name, loss="dpo") for method in methods),
        budget=Budget(trials=trials),
        controls=controls,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "fingerprints", lambda config: {"data": config.data.path, "weights": "w"})
        return results.outcome(comparison, rows, command="prefopt compare", seconds=1.0)
