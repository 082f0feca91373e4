"""Logs a comparison to Weights & Biases: one group with a run per method and a run with the summary tables."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from prefopt.compare.outcome import ComparisonOutcome, Standing
from prefopt.compare.results import train_command
from prefopt.config.tracking import TrackingConfig
from prefopt.errors import UserError


def track(result: ComparisonOutcome, tracking: TrackingConfig, folder: Path) -> None:
    """Log a comparison if `tracking.report_to` is wandb; do nothing if it is none.

    Raises:
        UserError: another tracker, or wandb is not installed.
    """
    if tracking.report_to == "none":
        return
    if tracking.report_to != "wandb":
        raise UserError(f"tracking.report_to={tracking.report_to}: a comparison can be logged to wandb only; "
                        "results.json and report.html contain everything")  # fmt: skip
    try:
        import wandb
    except ImportError as error:
        raise UserError("tracking=wandb needs `pip install 'prefopt-zoo[wandb]'`") from error
    group = tracking.run_name or folder.resolve().name
    common: dict[str, Any] = {
        "project": tracking.project,
        "group": group,
        "dir": str(folder),
        "mode": tracking.mode or os.environ.get("WANDB_MODE"),
        "reinit": "finish_previous",
        "settings": wandb.Settings(silent=True),
    }
    for standing in result.standings:
        with wandb.init(name=standing.name, job_type="method", config=_config(result, standing), **common) as run:
            for final in standing.runs.finals[:1]:
                for point in final.curve:
                    run.log({name: value for name, value in point.items() if name != "step"}, step=int(point["step"]))
            run.summary.update({**standing.figures, **{f"cost/{name}": v for name, v in standing.cost.items()}})
    with wandb.init(name="summary", job_type="comparison", config={"command": result.command}, **common) as run:
        run.log({"methods": wandb.Table(**_methods(result)), "verdicts": wandb.Table(**_verdicts(result))})
        run.summary.update({"metric": result.metric, "warnings": result.warnings})


def _config(result: ComparisonOutcome, standing: Standing) -> dict[str, Any]:
    chosen = standing.runs.chosen.plain() if standing.runs.chosen is not None else {}
    return {"method": standing.name, **chosen, "command": train_command(result.comparison, standing.runs)}


def _methods(result: ComparisonOutcome) -> dict[str, Any]:
    names = sorted({name for s in result.standings for name in s.figures})
    rows = [
        [s.name, *((s.value.point, s.value.low, s.value.high) if s.value else (None, None, None)), s.setting,
         *(s.figures.get(name) for name in names), s.cost["train_seconds"], s.reason]
        for s in result.standings
    ]  # fmt: skip
    columns = ["method", result.metric, "low", "high", "setting", *names, "train_seconds", "reason"]
    return {"columns": columns, "data": rows}


def _verdicts(result: ComparisonOutcome) -> dict[str, Any]:
    rows = [[p.a, p.b, p.difference, p.low, p.high, p.p_holm, p.describe()] for p in result.pairs]
    return {"columns": ["a", "b", "difference", "low", "high", "p_holm", "verdict"], "data": rows}
