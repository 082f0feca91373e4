"""`prefopt replay FILE`: recomputes a batch that broke a run, in the run's precision: log-probs, loss, and the layer
where it or its gradient stops being finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prefopt.cli.arguments import Parser
from prefopt.common.escaping_console import Console, Table
from prefopt.common.redact import printable, redact
from prefopt.errors import ThresholdError, UserError
from prefopt.runs.run_path import is_run


def main(argv: list[str]) -> int:
    """Replay a batch; exit code 0 if it is finite now, 3 if not.

    Raises:
        UserError: a folder without a batch, or weights or a loss that cannot be used.
    """
    parser = Parser(prog="prefopt replay", description=__doc__)
    parser.add_argument("file", type=Path, help="the folder not-finite-STEP of a run, or the batch.json in it")
    parser.add_argument("--model", help="a model other than that of the step: a folder, a hub id, a run folder")
    parser.add_argument("--loss", help="a loss other than the run's, by its name and with its defaults")
    args = parser.parse_args(argv)
    from accelerate import PartialState

    from prefopt.engine.reference.fingerprint import fingerprint
    from prefopt.losses import registry
    from prefopt.models.load import DTYPES, load_as_trained
    from prefopt.models.model_config import ModelConfig
    from prefopt.runs.rerun import config_of
    from prefopt.runs.run_folder import model_path
    from prefopt.train.replay import first_not_finite, gradient_not_finite, load, refuse_other_needs, rows
    from prefopt.train.run_identity import differences

    kept = load(args.file)
    run = (args.file if args.file.is_dir() else args.file.parent).resolve().parent
    config = config_of(run, run) if is_run(run) else None
    if args.loss:
        loss, name = registry.load(args.loss), args.loss
    elif config is not None:
        loss, name = config.loss, config.loss_name
    else:
        raise UserError(f"{run} is not a run folder, so the loss is unknown: give --loss NAME")
    refuse_other_needs(loss, kept)
    where = args.model or (str(kept.model) if kept.model else None)
    if where is None:
        raise UserError("the weights of that step were not kept: give --model FOLDER, such as an earlier checkpoint")
    # The dtypes of the run: what overflows in half precision may be finite in another.
    dtype = config.model.dtype if config is not None else "float32"
    autocast = _autocast(config.trainer) if config is not None else None
    precision = DTYPES[autocast] if autocast else None
    model = load_as_trained(ModelConfig(path=model_path(where), dtype=dtype)).to(PartialState().device)
    policy = kept.policy(model)
    now: dict[str, Any] = {} if args.loss else {"loss": repr(loss)}
    if config is not None:
        now |= {f"trainer.{name}": bool(config.trainer.get(name)) for name in ("bf16", "fp16")}
        now["model.dtype"] = dtype
    if not args.model and (config is None or config.model.quantization is None):  # which is loaded without
        now["weights"] = fingerprint(model)
    if said := differences(kept.identity, now):
        raise UserError(f"{args.file} is not a batch of the run in {run} as it is now: it was kept with "
                        f"{' and '.join(said)}; give --loss and --model to replay it under others")  # fmt: skip

    print(printable(redact(kept.why)))
    title = f"the batch again, under {name}, weights in {dtype}" + (f", computed in {autocast}" if autocast else "")
    bad, count = _show(title, rows(policy, loss, kept, precision))
    cause = first_not_finite(policy, kept.works, precision)
    if not bad and cause is None:
        cause = gradient_not_finite(policy, loss, kept, precision)
    print(f"{bad} of {count} completions are not finite" + (f"; {cause}" if cause else ""))
    return ThresholdError.exit_code if bad or cause else 0


def _autocast(trainer: Mapping[str, Any]) -> str | None:
    return "bfloat16" if trainer.get("bf16") else "float16" if trainer.get("fp16") else None


def _show(title: str, rows: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """Print a row for each completion; return how many are not finite, and how many there are."""
    table = Table(title=title, title_justify="left")
    for column in ("record", "completion", "tokens", "policy, nats", "reference", "loss"):
        table.add_column(column, justify="left" if column in ("record", "completion") else "right")
    bad = 0
    for row in rows:
        numbers = [row["policy"], row["reference"], row["loss"]]
        finite = all(value is None or math.isfinite(value) for value in numbers)
        bad += not finite
        shown = ["" if value is None else f"{value:.4g}" for value in numbers]
        cells = (printable(row["record"]), row["completion"], str(row["tokens"]), *shown)
        table.add_row(*cells, style=None if finite else "bold red")
    Console().print(table, markup=False)
    return bad, table.row_count
