"""`prefopt plan KEY=VALUE ...`: what a run will take, before it starts."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from prefopt.cli.arguments import Parser, at_least
from prefopt.common.escaping_console import Console, Table
from prefopt.common.json_output import print_json
from prefopt.config.options import ADAPTER_RATE, rate_of_adapters
from prefopt.errors import UserError
from prefopt.planning.devices import DEVICES, device
from prefopt.planning.shape import SHAPES, shape

if TYPE_CHECKING:
    from prefopt.config.run_config import RunConfig
    from prefopt.planning.plan import Plan
    from prefopt.planning.sharded import ShardedPlan
    from prefopt.planning.staged import StagedPlan

EXAMPLES = """examples:
  prefopt plan loss=simpo model.path=MODEL data.path=FILE
  prefopt plan loss=dpo model.path=MODEL data.path=FILE --device a100-80
  prefopt plan loss=dpo batch.records=128 --model-shape llama3-70b --device h100 --devices 64
"""
# The average record of --model-shape, which reads no data: about that of UltraFeedback.
LENGTHS = "256,256,256"
OF_SHAPES = {"devices": 1, "records": 60_000, "lengths": LENGTHS}  # options of --model-shape and their defaults
SHAPE_OVERRIDES = ("model=local", "data=auto", "data.path=none")


def main(argv: list[str]) -> int:
    """Print a plan, or its JSON.

    Raises:
        UserError: anything that the run itself would reject.
    """
    args = _parser().parse_intermixed_args(argv)
    plain = _plan_shape(args) if args.model_shape else _plan_run(args)
    if args.json:
        print_json(plain, indent=1)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="prefopt plan",
        description="Estimate the steps, tokens, memory by part and time of a run before it starts, and warn. Takes "
        "the overrides of `prefopt train`, also those that change no estimate, such as tracking=wandb. Loads the model "
        "and runs two short rows of the data; trains nothing. Of a run with stages, plans each and adds them up.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for `prefopt train`")
    parser.add_argument("--json", action="store_true",
                        help="print one JSON object: steps, tokens_per_step, memory_gib, ...")  # fmt: skip
    parser.add_argument("--device", metavar="NAME", help=f"plan for another device: {', '.join(DEVICES)}")
    paper = parser.add_argument_group("arithmetic only, without weights, data or measurements")
    paper.add_argument("--model-shape", metavar="SHAPE", help=f"{', '.join(SHAPES)}, or a config.json")
    paper.add_argument("--devices", type=at_least(1), default=OF_SHAPES["devices"],
                       help="the number of devices, among which the model is sharded (default: 1)")  # fmt: skip
    paper.add_argument(
        "--records", type=at_least(1), default=OF_SHAPES["records"], help="the number of records (default: 60,000)"
    )
    paper.add_argument("--lengths", default=OF_SHAPES["lengths"], metavar="P,C,R",
                       help=f"tokens of an average prompt and its completions (default: {LENGTHS})")  # fmt: skip
    return parser


def _plan_run(args: argparse.Namespace) -> dict[str, Any]:
    from prefopt.common.quiet import quiet
    from prefopt.config.compose import compose
    from prefopt.planning.staged import plan_stages

    for name, default in OF_SHAPES.items():
        if getattr(args, name) != default:
            raise UserError(f"--{name} is for --model-shape: a plan with weights is for one device and the run's data")
    quiet(keep_data_bars=True)
    named = device(args.device) if args.device else None
    config = compose(args.overrides, refuse_unread=True)
    found = plan_stages(config, named)
    if not args.json:
        _print_stages(config, found, args.overrides)
    return {"config": config.plain(), **found.plain()}


def _print_stages(config: RunConfig, found: StagedPlan, overrides: Sequence[str]) -> None:
    console = Console(highlight=False, markup=False)
    for stage, planned in found.stages:
        if planned is None:
            console.print(f"stage {stage.name}: {stage.config.loss_name}, found in {stage.folder}; takes nothing")
        else:
            console.print(f"stage {stage.name}, in {stage.folder}:")
            _print_plan(console, stage.config, planned, overrides)
        console.print()
    if found.stages:
        console.print(f"stage {config.loss_name}, the last, from {found.stages[-1][0].folder}:")
    _print_plan(console, config, found.last, overrides)
    if found.stages:
        total = found.total()
        console.print(f"\nin all: {total['steps']:,} steps, about {_duration(total['seconds'])}, at most "
                      f"{total['memory_gib']:.2f} GiB at once")  # fmt: skip


def _print_plan(console: Console, config: RunConfig, found: Plan, overrides: Iterable[str]) -> None:
    schedule, plain = found.schedule, config.plain()
    settings = " ".join(f"{key}={value}" for key, value in plain["loss"].items() if key != "name")
    console.print(f"{config.loss_name} {settings}".rstrip())
    rate = f"learning rate {config.trainer['learning_rate']:g}"
    if rate_of_adapters(overrides) is not None:
        rate += f" ({ADAPTER_RATE} times that of full tuning, the default with adapters)"
    console.print(f"model {config.model.path}, data {config.data.path}, {rate}")
    what, epochs = "prompts" if found.samples else "records", f"{schedule.steps / schedule.steps_per_epoch:.2g}"
    console.print(
        f"{schedule.records:,} {what} to train on, {found.held_out:,} held out, {found.rejected:,} rejected; "
        f"{schedule.records_per_step} per step; {schedule.steps:,} steps, {epochs} epoch{'s' * (epochs != '1')}"
    )
    console.print(
        f"{schedule.tokens_per_step:,.0f} tokens per step in {schedule.micro_batches:.1f} micro-batches, the longest "
        f"of {schedule.heaviest_tokens:,} tokens ({found.layout} layout)"
    )
    if found.samples:
        console.print(
            f"{found.samples['samples']:,} samples, {found.samples['samples_per_rollout']:,} at once, of at most "
            f"{found.samples['tokens_sampled_at_most']:,} tokens in all; what follows, and the tokens per step, are at "
            "most what a run takes: most texts end earlier"
        )
    console.print(f"peak memory on {found.device}:")
    table = Table()
    table.add_column("part")
    table.add_column("GiB", justify="right")
    for name, gib in found.memory.gib().items():
        if name == "total":
            table.add_section()
        table.add_row(name, f"{gib:.2f}")
    table.add_row("free there", f"{found.limit_gib:.2f}")
    console.print(table)
    how = "from two measured rows" if found.measured else "computed, not measured"
    parts = ", ".join(f"{name} {_duration(value)}" for name, value in found.seconds.items() if value >= 0.5)
    about = "at most about" if found.samples else "about"
    console.print(f"time: {about} {_duration(sum(found.seconds.values()))} ({how}): {parts}")
    _print_warnings(console, found.warnings)


def _plan_shape(args: argparse.Namespace) -> dict[str, Any]:
    from prefopt.config.compose import compose
    from prefopt.planning.sharded import AverageRecord, plan_sharded

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
    _check_counted(config)
    found = plan_sharded(
        config, shape(args.model_shape), device=device(args.device or "h100"), devices=args.devices,
        records=args.records, record=AverageRecord(prompt=prompt, completions=tuple(completions)),
    )  # fmt: skip
    if not args.json:
        _print_shape(args.model_shape, found)
    return {"model_shape": args.model_shape, **found.plain()}


def _check_counted(config: RunConfig) -> None:
    """Raise UserError for an option that the arithmetic does not know: it is of full tuning in bfloat16 with Adam."""
    trainer = config.trainer
    ignored = [
        (config.peft.method != "none", "peft=none"),
        (config.model.dtype != "float32", "model.dtype=float32"),
        (config.model.quantization is not None, "model.quantization=null"),
        (bool(trainer["fp16"]), "trainer.bf16=true"),
        ("adam" not in str(trainer["optim"]), "trainer.optim=adamw_torch"),
        (config.source != "offline", "source=offline"),
        (bool(config.stages), "no stages"),
    ]
    if wrong := [option for is_wrong, option in ignored if is_wrong]:
        raise UserError(f"--model-shape counts full tuning in bfloat16 with Adam on given records: {', '.join(wrong)}; "
                        "a plan with weights (model.path=..., without --model-shape) counts the rest")  # fmt: skip


def _print_shape(name: str, found: ShardedPlan) -> None:
    console = Console(highlight=False, markup=False)
    step, plain = found.step, found.step.plain()
    console.print(
        f"{name}: {step.weights / 1e9:.1f}e9 weights on {step.devices} x {step.device.name}. Computed, not measured; "
        "docs/planning.md has the formulas."
    )
    console.print(
        f"{found.steps:,} steps of {step.tokens_per_step:,.0f} tokens, each in {step.micro_batches} micro-batches per "
        "device"
    )
    table = Table("", "", title="one device and step", title_justify="left", show_header=False)
    table.columns[1].justify = "right"
    for title, key, unit in (
        ("memory", "memory_gib", "GiB"), ("traffic", "traffic_gib", "GiB"), ("time", "seconds_per_step", "s"),
    ):  # fmt: skip
        values: Any = plain[key]
        for part, value in values.items():
            table.add_row(f"{title}, {part}", f"{value:.2f} {unit}")
        table.add_section()
    console.print(table)
    reference = _duration(found.reference_seconds)
    console.print(f"time: about {_duration(found.seconds)}, {reference} of it for the reference")
    _print_warnings(console, found.warnings)


def _print_warnings(console: Console, warnings: Iterable[str]) -> None:
    for warning in warnings:
        console.print(f"warning: {warning}")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
