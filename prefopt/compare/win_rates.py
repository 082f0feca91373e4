"""Computes how often a model's texts win against another model's, by the comparison's judge."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.common.digest import of_bytes
from prefopt.common.estimate import shares_won
from prefopt.common.files import make_folder, write_json
from prefopt.compare.jobs import JobResult
from prefopt.compare.measure_world import by_prompt
from prefopt.data.doctor.near_duplicates import near_copies
from prefopt.evaluate.judge import function, is_callable, rule, wins

Floats = NDArray[np.float64]


def with_win_rate(result: JobResult, against: JobResult, judge: str, folder: Path) -> JobResult:
    """Add `win_rate` to a result: how its texts fare against another model's, prompt by prompt.

    Args:
        result, against: results on the same prompts.
        judge: the folder of a reward model, or a function.
        folder: where a function's answers are kept: it is asked once about each pair of runs.
    """
    if is_callable(judge):
        prompts = near_copies([str(row["prompt"]) for row in result.texts])
        array = by_prompt(_kept_wins(result, against, judge, folder), prompts)
    elif "judge" in result.arrays:
        gap = result.arrays["judge"] - against.arrays["judge"]
        array = shares_won(gap)
    else:
        return result
    return dataclasses.replace(
        result,
        figures=result.figures | {"win_rate": float(array.mean())},
        arrays=result.arrays | {"win_rate": array},
    )


def _kept_wins(result: JobResult, against: JobResult, judge: str, folder: Path) -> Floats:
    about = f"{judge}\0{rule(judge)}\0{result.key}\0{against.key}"
    name = of_bytes(about.encode())
    file = folder / f"{name}.json"
    if file.exists():
        kept: list[float] = json.loads(file.read_text(encoding="utf-8"))["wins"]
        return np.array(kept)
    prompts, texts, others = (
        [str(row[column]) for row in source]
        for source, column in ((result.texts, "prompt"), (result.texts, "text"), (against.texts, "text"))
    )
    array = wins(function(judge), prompts, texts, others)
    make_folder(folder)
    facts: dict[str, Any] = {"judge": judge, "of": result.label, "against": against.label}
    write_json(file, facts | {"wins": array.tolist()})
    return array
