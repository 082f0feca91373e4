"""`prefopt import FILE --to OURS.yaml`, or `prefopt import --to OURS.yaml -- trl dpo --beta 0.1 ...`."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from prefopt.cli.arguments import Parser, at_least
from prefopt.common.escaping_console import Console
from prefopt.common.json_output import print_json
from prefopt.errors import UserError

EXAMPLES = """examples:
  prefopt import dpo_config.json --to ours.yaml
  prefopt import llama3_lora_dpo.yaml --to ours.yaml --processes 8
  prefopt import axolotl_dpo.yaml --to ours.yaml
  prefopt import --to ours.yaml -- trl dpo --model_name_or_path MODEL --dataset_name DATA --beta 0.05
  prefopt import --to ours.yaml -- swift rlhf --rlhf_type dpo --model MODEL --dataset DATA --rpo_alpha 0.1
  prefopt train experiment=ours.yaml
"""


def main(argv: list[str]) -> int:
    """Convert settings, and list those without an equivalent.

    Raises:
        UserError: a file that cannot be read, or settings that prefopt does not offer.
    """
    at = argv.index("--") if "--" in argv else len(argv)
    args = _parser().parse_args(argv[:at])
    words = argv[at + 1 :]
    if (args.file is None) == (not words):
        raise UserError("give a file, or a command line after `--`; see `prefopt import --help`")
    from prefopt.migrate.convert import convert

    found = convert(args.file or words, kind=args.kind, processes=args.processes)
    if args.to is not None:
        if args.to.exists() and not args.force:
            raise UserError(f"{args.to} already exists: choose another name, or add --force")
        args.to.parent.mkdir(parents=True, exist_ok=True)
        args.to.write_text(found.yaml())
    if args.json:
        print_json(found.plain(), indent=1)
    else:
        _show(found, args.to)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="prefopt import",
        description="Convert settings of TRL (its trainers' configs as JSON, YAML or a command line), LLaMA-Factory, "
        "Axolotl (YAML) or ms-swift (a command line, YAML or JSON), and list what has no equivalent and what differs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", nargs="?", help="a JSON or YAML file")
    parser.add_argument("--to", type=Path, metavar="FILE",
                        help="write an experiment for `prefopt train experiment=FILE`")  # fmt: skip
    parser.add_argument("--class", dest="kind", metavar="NAME",
                        help="TRL's class, 'swift rlhf' or 'swift sft', if the settings do not show it")  # fmt: skip
    parser.add_argument("--processes", type=at_least(1), default=1,
                        help="the number of processes of the original run (default: 1)")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="overwrite FILE")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object: overrides, no_equal, no_effect, differs, unavailable",
    )
    return parser


def _show(found: Any, to: Path | None) -> None:
    console = Console(highlight=False, markup=False)
    console.print(f"from {found.source}:")
    unavailable = found.unavailable()
    command = [f"experiment={to}"] if to is not None else found.overrides
    console.print(f"  prefopt train {shlex.join([*command, *unavailable])}", soft_wrap=True)
    for title, lines in (
        ("no equivalent", [f"{name}: {why}" for name, why in found.no_equal.items()]),
        ("differs", found.differs),
        ("no effect here", [", ".join(found.no_effect)] if found.no_effect else []),
        ("on this machine", [f"with {override}: {why}" for override, why in unavailable.items()]),
    ):
        if lines:
            console.print(f"\n{title}:")
            for line in lines:
                console.print(f"  {line}")
    missing = [name for name, value in found.settings.items() if value == "???"]
    if missing:
        console.print(f"\nstill to be given: {', '.join(missing)}")
