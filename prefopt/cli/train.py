"""`prefopt train KEY=VALUE ...`: one run, or with -m one run for each combination of comma-separated values."""

from __future__ import annotations

from typing import Any

from torch import distributed

from prefopt.common.redact import redact
from prefopt.config.compose import run_hydra
from prefopt.config.run_config import RunConfig
from prefopt.runs.progress import watch
from prefopt.runs.stages import run_stages


def main(argv: list[str]) -> int:
    """Compose the configuration and run it."""
    run_hydra(_run, argv, "prefopt train")
    if distributed.is_initialized():
        distributed.destroy_process_group()
    return 0


def _run(config: RunConfig) -> dict[str, Any]:
    progress = watch(config.progress, config.loss_name)
    what = f"{config.loss_name} on {config.data.path} from {config.model.path} → {config.output_dir}"
    progress.say(redact(what))
    summary: dict[str, Any] = run_stages(config, say=progress.say)
    progress.end(config.output_dir, summary)
    return summary
