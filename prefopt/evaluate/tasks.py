"""Runs tasks of lm-evaluation-harness (`pip install 'prefopt-zoo[lm-eval]'`): what tuning costs in other abilities."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from prefopt.common.digest import FileState, of_files
from prefopt.errors import UserError, first_line, nearest

DATA = ("dataset_path", "dataset_kwargs")  # keys of a task under which its data are named


def run_tasks(model: Any, tokenizer: Any, tasks: Sequence[str], *, limit: int | None = None) -> dict[str, float]:
    """Run tasks and return `task/NAME/METRIC` for every numeric metric.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        tasks: names that the harness knows, or YAML files of tasks.
        limit: the number of examples of each task; None: all.

    Raises:
        UserError: the harness is not installed, or a task fails.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise UserError("tasks=[...] needs `pip install 'prefopt-zoo[lm-eval]'`") from error
    plain = model.eval()
    try:
        manager, names = _found(tasks)
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


def check_tasks(tasks: Sequence[str]) -> None:
    """Check tasks before anything is trained.

    Raises:
        UserError: the harness is not installed, there is no such task, or a file is not a task.
    """
    manager, names = _found(tasks)
    for task, name in zip(tasks, names, strict=True):
        if name not in manager.all_tasks:
            raise UserError(f"tasks: lm-evaluation-harness has no task {task!r}{nearest(name, manager.all_tasks)}; "
                            "`lm-eval ls tasks` prints them")  # fmt: skip


def digest_of_tasks(tasks: Sequence[str]) -> str:
    """The harness's version, and the digest of the tasks' YAML files, their includes, functions and data files."""
    files = [file for task in tasks if _is_file(task) for file in _files_of(Path(task))]
    return f"{version('lm_eval')} {of_files(map(FileState.of, dict.fromkeys(files)))}"


def _found(tasks: Sequence[str]) -> tuple[Any, list[str]]:
    """The harness's task manager, and the names of the tasks in it."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError("tasks=[...] needs `pip install 'prefopt-zoo[lm-eval]'`") from error
    names = [_name_of(Path(task)) if _is_file(task) else task for task in tasks]
    folders = sorted({str(Path(task).resolve().parent) for task in tasks if _is_file(task)})
    return TaskManager(include_path=folders or None, include_defaults=not all(map(_is_file, tasks))), names


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))


class _Function(str):
    """`!function module.name` of a task."""


_Loader: Any = type("_Loader", (yaml.SafeLoader,), {})  # reads a task, and imports none of its functions
_Loader.add_constructor("!function", lambda loader, node: _Function(loader.construct_scalar(node)))


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"tasks: cannot read {file} ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"tasks: {file} is not a task of lm-evaluation-harness: it has no `task: NAME`")
    return content


def _name_of(file: Path) -> str:
    content = _read(file)
    if "task" not in content:
        raise UserError(f"tasks: {file} is not a task of lm-evaluation-harness: it has no `task: NAME`")
    return str(content["task"])


def _files_of(file: Path) -> Iterator[Path]:
    """The file of a task, and the local files that its results depend on."""
    yield file
    for key, text in _texts(_read(file)):
        if isinstance(text, _Function):
            yield from _existing(file.parent / f"{text.rpartition('.')[0].replace('.', '/')}.py")
        elif key == "include" and (included := file.parent / text).is_file() and included != file:
            yield from _files_of(included)
        elif key in DATA:
            named = [Path(text), *map(Path, glob.glob(text, recursive=True)), file.parent / text]
            yield from (one for path in named for one in _existing(path))


def _texts(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string in a task, with the outermost key above it."""
    if isinstance(content, str):
        yield key, content
    elif isinstance(content, dict):
        for name, value in content.items():
            yield from _texts(value, key or str(name))
    elif isinstance(content, list):
        for value in content:
            yield from _texts(value, key)


def _existing(path: Path) -> list[Path]:
    """The file, or the files of the folder; none where there is neither."""
    if path.is_dir():
        inside = [one for one in path.rglob("*") if one.is_file()]
        return sorted(one for one in inside if not any(part.startswith(".") for part in one.relative_to(path).parts))
    return [path] if path.is_file() else []
