"""Evaluates a reward model on records, or on a file in RewardBench's format, and prints the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

from prefopt.cli.loading import format_of, records_of
from prefopt.common.escaping_console import Console, Table
from prefopt.common.quiet import quiet
from prefopt.data.data_config import Source
from prefopt.data.rows import open_source
from prefopt.data.world_names import WORLD_MODELS
from prefopt.errors import UserError
from prefopt.evaluate.held_out import score
from prefopt.evaluate.reward_figures import figures
from prefopt.evaluate.rewardbench import cases_of, run
from prefopt.models.reward_model import is_reward_model, open_reward_model
from prefopt.report.before_after import reward_model_rows
from prefopt.runs.run_folder import model_path


def is_one(name: str) -> bool:
    """Whether a model as a user names it is a reward model."""
    return name not in WORLD_MODELS and is_reward_model(model_path(name))


def evaluate_reward_model(
    name: str, against: str | None, rewardbench: str | None, overrides: Sequence[str]
) -> dict[str, Any]:
    """The figures of a reward model as JSON values: on a file of RewardBench, else on a run's held-out records or data.

    Raises:
        UserError: no reward model, or a file or data that cannot be used.
    """
    quiet(keep_data_bars=True)
    if not {"/", ":"} & set(name) and name not in WORLD_MODELS and not Path(name).exists():  # before the hub is asked
        raise UserError(f"there is no folder {name}; a reward model on the hub is OWNER/NAME")
    if not is_one(name):
        raise UserError(f"rewardbench=... is for reward models, and {name} is none: train one with loss=bradley_terry")
    if against is not None:
        raise UserError(f"against={against}: scores of two reward models have no common unit; evaluate each on its own")
    model, tokenizer = open_reward_model(model_path(name))
    model = model.to(PartialState().device)
    if rewardbench is not None:
        if overrides:
            raise UserError(f"{overrides[0]}: rewardbench={rewardbench} is the data; leave other settings out")
        cases = cases_of(open_source(Source(path=rewardbench)).rows)
        return {"model": name, "file": rewardbench, **run(model, tokenizer, cases, format_of(name)).plain()}
    config, records, is_held_out = records_of(name, overrides, tokenizer)
    found = figures(score(model, records, max_tokens=config.batch.budget(model.device.type)))
    data = {"path": str(config.data.path or "a mixture"), "records": len(records), "held_out": is_held_out}
    return {"model": name, "data": data, **found}


def show_reward_model(found: Mapping[str, Any]) -> None:
    """Print the table."""
    console = Console(highlight=False, markup=False)
    table = Table(box=None, padding=(0, 2, 0, 0))
    if "subsets" not in found:
        kind = "held-out records" if found["data"]["held_out"] else "records (not held out: was it trained on them?)"
        console.print(f"{found['model']} on {found['data']['records']:,} {kind} of {found['data']['path']}")
        for column in ("figure", "value"):
            table.add_column(column, justify="left" if column == "figure" else "right")
        for row in reward_model_rows({"after": found}):
            table.add_row(row.title, row.after)
        if "calibration_error" in found:
            table.add_row("Calibration error, points", f"{100 * found['calibration_error']:.1f}")
        console.print(table)
        return
    console.print(f"{found['model']} on {found['file']} (RewardBench {found['version']})")
    for column in ("subset", "accuracy, a tie is half", "a tie is wrong", "ties", "rows"):
        table.add_column(column, justify="left" if column == "subset" else "right")
    for name, one in [*found["subsets"].items(), ("all", found)]:
        if "accuracy" in one:
            strict = f"{100 * one['accuracy_strict']:.1f} %" if "accuracy_strict" in one else "–"
            shares = (f"{100 * one['accuracy']:.1f} %", strict, f"{100 * one['ties']:.1f} %", str(one["count"]))
            table.add_row(name, *shares)
    console.print(table)
    for name, share in found["sections"].items():
        console.print(f"{name}: {100 * share:.1f} % by RewardBench's own rule and weights")
    if found["score"] is not None:
        console.print(f"the benchmark's own total: {100 * found['score']:.1f}")
    for reason, count in found["rejected"].items():
        console.print(f"left out: {reason}: {count}")
