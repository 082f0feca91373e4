"""`prefopt replay FILE`: a batch that broke a run, again: log-probs, loss, and where it or its gradient stops being
finite, in the run's precision."""

from __future__ import annotations

import argparse
import math
from pathlib import Path


def main(argv: list[str]) -> int:
    """Exit code 0: the batch is finite now; 3: it is not."""
    parser = argparse.ArgumentParser(prog="prefopt replay", description=__doc__)
    parser.add_argument("file", type=Path, help="the folder not-finite-STEP of a run, or the batch.json in it")
    parser.add_argument("--model", help="another model than that of the step: a folder, a hub id, a run's folder")
    parser.add_argument("--loss", help="another loss than the run's, by its name and with its defaults")
    arguments = parser.parse_args(argv)
    from accelerate import PartialState
    from rich.console import Console
    from rich.table import Table

    from prefopt.common.redact import printable, redact
    from prefopt.errors import ThresholdError, UserError
    from prefopt.losses import registry
    from prefopt.models.load import DTYPES, ModelConfig, load_as_trained
    from prefopt.runs.read import is_run, model_path
    from prefopt.runs.rerun import config_of
    from prefopt.train.replay import first_not_finite, gradient_not_finite, load, refuse_other_needs, rows

    kept = load(arguments.file)
    run = (arguments.file if arguments.file.is_dir() else arguments.file.parent).resolve().parent
    config = config_of(run, run) if is_run(run) else None
    if arguments.loss:
        loss, name = registry.load(arguments.loss), arguments.loss
    elif config is not None:
        loss, name = config.loss, config.loss_name
    else:
        raise UserError(f"{run} is not the folder of a run, so its loss is unknown: give --loss NAME")
    refuse_other_needs(loss, kept)
    where = arguments.model or (str(kept.model) if kept.model else None)
    if where is None:
        raise UserError("the weights of that step were not kept: give --model FOLDER, such as an earlier checkpoint")
    # What overflows in half precision may be finite in another.
    dtype = config.model.dtype if config is not None else "float32"
    half = config.trainer if config is not None else {}
    autocast = "bfloat16" if half.get("bf16") else "float16" if half.get("fp16") else None
    model = load_as_trained(ModelConfig(path=model_path(where), dtype=dtype)).to(PartialState().device)
    precision = DTYPES[autocast] if autocast else None

    console = Console()
    print(printable(redact(kept.why)))
    title = f"the batch again, under {name}, weights in {dtype}" + (f", computed in {autocast}" if autocast else "")
    table = Table(title=title, title_justify="left")
    for column in ("record", "completion", "tokens", "policy, nats", "reference", "loss"):
        table.add_column(column, justify="left" if column in ("record", "completion") else "right")
    bad = 0
    for row in rows(model, loss, kept, precision):
        numbers = [row["policy"], row["reference"], row["loss"]]
        finite = all(value is None or math.isfinite(value) for value in numbers)
        bad += not finite
        shown = ["" if value is None else f"{value:.4g}" for value in numbers]
        table.add_row(
            printable(row["record"]),
            row["completion"],
            str(row["tokens"]),
            *shown,
            style=None if finite else "bold red",
        )
    console.print(table, markup=False)
    cause = first_not_finite(model, kept.works, precision)
    if not bad and cause is None:
        cause = gradient_not_finite(model, loss, kept, precision)
    print(f"{bad} of {table.row_count} completions are not finite" + (f"; {cause}" if cause else ""))
    return ThresholdError.exit_code if bad or cause else 0
