"""`prefopt plan key=value ...`: what a run will take, before it runs."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefopt.config.run_config import RunConfig
    from prefopt.planning import Plan, Sharded

EXAMPLES = """examples:
  prefopt plan loss=simpo model.path=MODEL data.path=FILE
  prefopt plan loss=dpo model.path=MODEL data.path=FILE --device a100-80
  prefopt plan loss=dpo batch.records=128 --model-shape llama3-70b --device h100 --devices 64
"""
# An average record where there are no data: UltraFeedback's order of magnitude.
LENGTHS = "256,256,256"
SHAPE_OVERRIDES = ("model=local", "data=auto", "data.path=none")


def main(argv: list[str]) -> int:
    """Print a plan, or its JSON.

    Raises:
        UserError: what the run itself would refuse.
    """
    args = _parser().parse_intermixed_args(argv)
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        shown = _on_paper(args) if args.model_shape else _of_a_run(args)
    if args.json:
        print(json.dumps(shown, indent=1))
    return 0


def _parser() -> argparse.ArgumentParser:
    from prefopt.planning.devices import DEVICES
    from prefopt.planning.shape import SHAPES

    parser = argparse.ArgumentParser(
        prog="prefopt plan",
        description="Steps, tokens, memory by part, time and warnings of a run, before it runs. Takes the overrides of "
        "`prefopt train`. Loads the model and runs two short rows of the data; trains nothing.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="the same as for `prefopt train`")
    parser.add_argument("--json", action="store_true", help="one object: steps, tokens_per_step, memory_gib, ...")
    parser.add_argument("--device", metavar="NAME", help=f"another device: {', '.join(DEVICES)}")
    paper = parser.add_argument_group("arithmetic alone: no weights, no data, nothing measured")
    paper.add_argument("--model-shape", metavar="SHAPE", help=f"{', '.join(SHAPES)}, or a config.json")
    paper.add_argument("--devices", type=int, default=1, help="how many, with the model in shards (default: 1)")
    paper.add_argument("--records", type=int, default=60_000, help="of the data (default: 60,000)")
    paper.add_argument("--lengths", default=LENGTHS, metavar="P,C,R",
                       help=f"tokens of an average prompt and its completions (default: {LENGTHS})")  # fmt: skip
    return parser


def _of_a_run(args: argparse.Namespace) -> dict[str, Any]:
    from prefopt.common.quiet import quiet
    from prefopt.config.compose import compose
    from prefopt.errors import UserError
    from prefopt.planning import plan
    from prefopt.planning.devices import device

    if args.devices != 1:
        raise UserError("--devices is for --model-shape: a plan with weights is that of one device")
    quiet(keep_data_bars=True)
    named = device(args.device) if args.device else None
    config = compose(args.overrides)
    found = plan(config, named)
    if not args.json:
        _print_plan(config, found)
    return {"config": config.plain(), **found.plain()}


def _print_plan(config: RunConfig, found: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    planned, plain = found.schedule, config.plain()
    settings = " ".join(f"{key}={value}" for key, value in plain["loss"].items() if key != "name")
    console.print(f"{config.loss_name} {settings}".rstrip())
    console.print(
        f"model {config.model.path}, data {config.data.path}, learning rate {config.trainer['learning_rate']:g}"
    )
    console.print(
        f"{planned.records:,} records ({found.rejected:,} rejected), {planned.records_per_step} a step; "
        f"{planned.steps:,} steps, {planned.steps / planned.steps_per_epoch:.2g} epochs"
    )
    console.print(
        f"{planned.tokens_per_step:,.0f} tokens a step in {planned.micro_batches:.1f} forwards, the longest of "
        f"{planned.heaviest_tokens:,} tokens ({found.layout} layout)"
    )
    table = Table(title=f"peak memory on {found.device}", title_justify="left")
    table.add_column("part")
    table.add_column("GiB", justify="right")
    for name, gib in found.memory.gib().items():
        if name == "total":
            table.add_section()
        table.add_row(name, f"{gib:.2f}")
    table.add_row("free there", f"{found.limit_gib:.2f}")
    console.print(table)
    how = "from two measured rows" if found.measured else "arithmetic, not measured"
    parts = ", ".join(f"{name} {_time(value)}" for name, value in found.seconds.items() if value >= 0.5)
    console.print(f"time: about {_time(sum(found.seconds.values()))} ({how}): {parts}")
    _print_warnings(console, found.warnings)


def _on_paper(args: argparse.Namespace) -> dict[str, Any]:
    from prefopt.config.compose import compose
    from prefopt.errors import UserError
    from prefopt.planning import sharded
    from prefopt.planning.advice import memory
    from prefopt.planning.devices import device
    from prefopt.planning.shape import shape
    from prefopt.planning.sharded import Records

    try:
        prompt, *completions = (float(part) for part in args.lengths.split(","))
        if not completions or min(prompt, *completions) < 1:
            raise ValueError
    except ValueError:
        raise UserError(f"--lengths {args.lengths}: give the tokens of a prompt and of its completions, such as "
                        f"{LENGTHS}") from None  # fmt: skip
    given = {o.split("=", 1)[0] for o in args.overrides}
    config = compose([*(o for o in SHAPE_OVERRIDES if o.split("=")[0] not in given), *args.overrides,
                      *([] if "model.path" in given else [f"model.path={args.model_shape}"])])  # fmt: skip
    named = device(args.device or "h100")
    trainer = config.trainer
    found = sharded(
        shape(args.model_shape), device=named, devices=args.devices, records_per_step=config.batch.records,
        max_tokens=config.batch.budget("cuda"), record=Records(prompt=prompt, completions=tuple(completions)),
        checkpointing=trainer["activation_checkpointing"] or args.devices > 1, scoring=config.loss.needs.reference,
    )  # fmt: skip
    steps_per_epoch = -(-args.records // config.batch.records)
    steps = (
        trainer["max_steps"]
        if trainer["max_steps"] > 0
        else int(-(-trainer["num_train_epochs"] * steps_per_epoch // 1))
    )
    reference = found.reference_seconds_per_record * args.records
    plain = {
        "model_shape": args.model_shape, "steps": steps, **found.plain(),
        "seconds": round(steps * found.step_seconds + reference, 3),
        "seconds_by_part": {"training": round(steps * found.step_seconds, 3), "reference": round(reference, 3)},
        "warnings": list(memory(found.memory.total / 2**30, named.memory_gib, named.name)),
    }  # fmt: skip
    if not args.json:
        _print_paper(args.model_shape, found, plain)
    return plain


def _print_paper(name: str, found: Sharded, plain: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    console.print(
        f"{name}: {found.weights / 1e9:.1f}e9 weights on {found.devices} x {found.device.name}. Arithmetic, not "
        "measured; the formulas are in docs/planning.md."
    )
    console.print(
        f"{plain['steps']:,} steps of {found.tokens_per_step:,.0f} tokens, in each {found.micro_batches} forwards of a "
        "device"
    )
    table = Table(title="of one device and step", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    for part, gib in plain["memory_gib"].items():
        table.add_row(f"memory, {part}", f"{gib:.2f} GiB")
    table.add_section()
    for part, gib in plain["traffic_gib"].items():
        table.add_row(f"traffic, {part}", f"{gib:.2f} GiB")
    table.add_section()
    for part, seconds in plain["seconds_per_step"].items():
        table.add_row(f"time, {part}", f"{seconds:.2f} s")
    console.print(table)
    reference = _time(plain["seconds_by_part"]["reference"])
    console.print(f"time: about {_time(plain['seconds'])}, {reference} of it for the reference")
    _print_warnings(console, plain["warnings"])


def _print_warnings(console: Any, warnings: list[str]) -> None:
    for warning in warnings:
        console.print(f"warning: {warning}")


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
