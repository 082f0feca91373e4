"""Tasks of lm-evaluation-harness (`pip install prefopt[lm-eval]`): what tuning costs in other abilities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefopt.engine.forward import uninstall
from prefopt.errors import UserError


def run_tasks(model: Any, tokenizer: Any, tasks: Sequence[str], *, limit: int | None = None) -> dict[str, float]:
    """`task/NAME/METRIC` for every numeric metric of every task.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        tasks: names that the harness knows, or YAML files of tasks.
        limit: examples of each task; None: all.

    Raises:
        UserError: the harness is not installed, or refuses a task.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError("tasks=[...] needs `pip install prefopt[lm-eval]`") from error
    files = [Path(task) for task in tasks if task.endswith((".yaml", ".yml"))]
    names = [_name_of(Path(task)) if Path(task) in files else task for task in tasks]
    folders = sorted({str(file.resolve().parent) for file in files})
    plain = uninstall(model).eval()  # the harness calls the model as transformers would
    try:
        manager = TaskManager(include_path=folders or None, include_defaults=len(files) < len(tasks))
        found = simple_evaluate(
            model=HFLM(pretrained=plain, tokenizer=tokenizer), tasks=names, task_manager=manager, limit=limit,
            bootstrap_iters=0, log_samples=False, verbosity="ERROR",
        )  # fmt: skip
    except (KeyError, ValueError, OSError, RuntimeError, ImportError) as error:
        raise UserError(f"tasks={list(tasks)}: {type(error).__name__}: {str(error)[:300]}") from error
    return {
        f"task/{task}/{metric.removesuffix(',none')}": float(value)
        for task, metrics in found["results"].items()
        for metric, value in metrics.items()
        if isinstance(value, int | float) and "_stderr" not in metric and metric != "sample_len"
    }


def _name_of(file: Path) -> str:
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        return str(content["task"])
    except (OSError, TypeError, KeyError, yaml.YAMLError) as error:
        raise UserError(f"tasks: {file} is not a task of lm-evaluation-harness ({error})") from error
