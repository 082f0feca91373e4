"""`prefopt train key=value ...`: one run, or with -m one run for each combination of comma-separated values."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import Any


def main(argv: list[str]) -> int:
    """Compose the configuration and run it."""
    with redirect_stdout(io.StringIO()):  # some libraries greet on import; stdout may be asked to be JSON
        from torch import distributed

        import prefopt.train  # noqa: F401
        from prefopt.common.redact import redact
        from prefopt.config.compose import run_hydra
        from prefopt.config.run_config import RunConfig
        from prefopt.runs.progress import watch
        from prefopt.runs.stages import run_stages

    def task(config: RunConfig) -> dict[str, Any]:
        told = watch(config.progress, config.loss_name)
        what = f"{config.loss_name} on {config.data.path} from {config.model.path} → {config.output_dir}"
        told.say(redact(what))
        summary: dict[str, Any] = run_stages(config, say=told.say)
        told.end(config.output_dir, summary)
        return summary

    run_hydra(task, argv, "prefopt train")
    if distributed.is_initialized():
        distributed.destroy_process_group()
    return 0
