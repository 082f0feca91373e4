"""Chooses the experiment tracker that a run logs to, besides `metrics.jsonl`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from prefopt.common.environment import environment_kept
from prefopt.common.files import check_not_link
from prefopt.common.option_limits import Limits, one_of
from prefopt.errors import UserError, nearest

MODULES = {"wandb": "wandb", "tensorboard": "tensorboard", "trackio": "trackio", "mlflow": "mlflow"}  # our extras
VARIABLES = ("WANDB_PROJECT", "WANDB_DIR", "WANDB_MODE", "WANDB_RUN_ID", "WANDB_RESUME", "TENSORBOARD_LOGGING_DIR",
             "MLFLOW_EXPERIMENT_NAME")  # fmt: skip


@dataclass(kw_only=True)
class TrackingConfig:
    """The defaults of the Hydra group `tracking`."""

    LIMITS: ClassVar[Limits] = {"mode": one_of("online", "offline", "disabled")}

    report_to: str = "none"  # wandb, tensorboard, trackio, mlflow, or another of transformers' integrations
    project: str = "prefopt"  # of wandb and trackio; the experiment of mlflow
    mode: str | None = None  # wandb: online, offline, disabled; None leaves it to wandb
    run_name: str | None = None  # None: the name of the run's folder


@contextmanager
def tracker() -> Iterator[None]:
    """Leave the environment as it was and end wandb's run, so that the next run of this process has its own."""
    before, code = _wandb_run(), 1
    with environment_kept(*VARIABLES):
        try:
            yield
            code = 0
        finally:
            if before is None and _wandb_run() is not None:
                wandb = sys.modules["wandb"]
                wandb.finish(exit_code=code)
                wandb.teardown()  # it reads the environment once


def _wandb_run() -> Any:
    return getattr(sys.modules.get("wandb"), "run", None)


def log_options(config: Mapping[str, Any]) -> None:
    """Give wandb's run, where there is one, the options of a run, so that runs can be told apart by them.

    They are filtered by as `method`, and by their names: `prefopt.loss.beta`.
    """
    if (run := _wandb_run()) is not None:
        run.config.update({"method": config["loss"]["name"], "prefopt": dict(config)}, allow_val_change=True)


def log_texts(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Log rows of text to wandb's run, where there is one, as a table."""
    if (run := _wandb_run()) is not None and rows:
        columns = list(rows[0])
        table = sys.modules["wandb"].Table(columns=columns, data=[[row[c] for c in columns] for row in rows])
        run.log({name: table})


def trainer_options(tracking: TrackingConfig, out: Path, run_id: str | None = None) -> dict[str, Any]:
    """The trainer's options for a tracker; also sets the environment variables that transformers' integrations read.

    Args:
        tracking: the tracker.
        out: the folder of the run.
        run_id: of the run, also after a resume, which is logged to the same run of wandb.

    Raises:
        UserError: there is no such tracker, or it is not installed.
    """
    name = tracking.report_to
    if name == "none":
        return {}
    _check_installed(name)
    check_not_link(out / name)  # the folder of wandb and tensorboard
    options: dict[str, Any] = {"report_to": [name], "run_name": tracking.run_name or out.name}
    if name == "wandb":
        os.environ["WANDB_PROJECT"] = tracking.project
        os.environ["WANDB_DIR"] = str(out)
        if run_id is not None and "WANDB_RUN_ID" not in os.environ:
            os.environ |= {"WANDB_RUN_ID": run_id, "WANDB_RESUME": "allow"}
        if tracking.mode:
            os.environ["WANDB_MODE"] = tracking.mode
    if name == "tensorboard":
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(out / "tensorboard")
    if name == "mlflow":
        os.environ.setdefault("MLFLOW_EXPERIMENT_NAME", tracking.project)
    if name == "trackio":
        options["project"] = tracking.project
    return options


def _check_installed(name: str) -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    if name not in INTEGRATION_TO_CALLBACK:
        known = sorted(INTEGRATION_TO_CALLBACK)
        raise UserError(f"tracking.report_to={name} is not one of none, {', '.join(known)}{nearest(name, known)}")
    if name in MODULES and find_spec(MODULES[name]) is None:
        raise UserError(f"tracking.report_to={name} is not installed: pip install 'prefopt-zoo[{name}]'")
