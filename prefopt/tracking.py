"""Where figures go besides `metrics.jsonl`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(kw_only=True)
class TrackingConfig:
    """The defaults of the Hydra group `tracking`."""

    report_to: str = "none"  # wandb, tensorboard, or another of transformers' integrations
    project: str = "prefopt"  # wandb
    mode: str | None = None  # wandb: online, offline, disabled; None leaves it to wandb
    run_name: str | None = None


def trainer_options(tracking: TrackingConfig, out: Path) -> dict[str, Any]:
    """The trainer's options for it; sets the variables that transformers' integrations read."""
    if tracking.report_to == "none":
        return {}
    if tracking.report_to == "wandb":
        os.environ["WANDB_PROJECT"] = tracking.project
        os.environ["WANDB_DIR"] = str(out)
        if tracking.mode:
            os.environ["WANDB_MODE"] = tracking.mode
    if tracking.report_to == "tensorboard":
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(out / "tensorboard")
    return {"report_to": [tracking.report_to], "run_name": tracking.run_name or out.name}
