"""`prefopt import FILE --to OURS.yaml`, or `prefopt import --to OURS.yaml -- trl dpo --beta 0.1 ...`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from prefopt.errors import UserError

if TYPE_CHECKING:
    from prefopt.migrate import Translation

EXAMPLES = """examples:
  prefopt import dpo_config.json --to ours.yaml
  prefopt import llama3_lora_dpo.yaml --to ours.yaml --processes 8
  prefopt import --to ours.yaml -- trl dpo --model_name_or_path MODEL --dataset_name DATA --beta 0.05
  prefopt train experiment=ours.yaml
"""


def main(argv: list[str]) -> int:
    """Translate settings, and say what could not be kept.

    Raises:
        UserError: a file that is none, or settings that are not offered here.
    """
    from prefopt.migrate import read

    at = argv.index("--") if "--" in argv else len(argv)
    args = _parser().parse_args(argv[:at])
    words = argv[at + 1 :]
    if (args.file is None) == (not words):
        raise UserError("give a file, or a command line behind `--`; see `prefopt import --help`")
    found = read(args.file or words, kind=args.kind, processes=args.processes)
    if args.to is not None:
        if args.to.exists() and not args.force:
            raise UserError(f"{args.to} is there already: choose another name, or say --force")
        args.to.parent.mkdir(parents=True, exist_ok=True)
        args.to.write_text(found.yaml())
    if args.json:
        shown = {"source": found.source, "overrides": found.overrides, "no_equal": found.no_equal,
                 "differs": found.differs}  # fmt: skip
        print(json.dumps(shown, indent=1))
        return 0
    _show(found, args.to)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prefopt import",
        description="Settings of TRL (DPOConfig, KTOConfig, ORPOConfig, CPOConfig; JSON, YAML or a command line) or of "
        "LLaMA-Factory (YAML) as ours, with what has no equal here and where a formula differs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", nargs="?", help="JSON or YAML")
    parser.add_argument("--to", type=Path, metavar="FILE", help="an experiment for `prefopt train experiment=FILE`")
    parser.add_argument("--class", dest="kind", metavar="NAME", help="TRL's class, where the settings do not tell")
    parser.add_argument("--processes", type=int, default=1, help="of the original run (default: 1)")
    parser.add_argument("--force", action="store_true", help="write over FILE")
    parser.add_argument("--json", action="store_true", help="overrides, no_equal, differs as one object")
    return parser


def _show(found: Translation, to: Path | None) -> None:
    import shlex

    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    console.print(f"from {found.source}:")
    command = f"experiment={to}" if to is not None else shlex.join(found.overrides)
    console.print(f"  prefopt train {command}", soft_wrap=True)
    for title, lines in (
        ("no equal here", [f"{name}: {why}" for name, why in found.no_equal.items()]),
        ("differs", found.differs),
    ):
        if lines:
            console.print(f"\n{title}:")
            for line in lines:
                console.print(Text("  " + "".join(c if c.isprintable() else "?" for c in line)))
    open_ = [name for name, value in found.settings.items() if value == "???"]
    if open_:
        console.print(f"\nstill to be given: {', '.join(open_)}")
