"""`prefopt losses`: the menu as a table or JSON, what one loss is (`NAME`), the conformance kit (`check`), and the
catalogue page (`docs`)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from prefopt.cli.arguments import Parser
from prefopt.cli.loss_menu import facts, print_menu

COMMANDS = ("show", "check", "docs")


def main(argv: list[str]) -> int:
    """Print the menu, or describe the named losses, or run `check` or `docs`.

    Raises:
        UserError: a name that is not on the menu, or an outside plugin that cannot be used.
        ThresholdError: `check` found a loss that fails.
    """
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        argv = ["show", *argv]
    args = _parser().parse_args(argv)
    if args.command is None:
        return print_menu(facts(lambda: _plugins().describe_all()), as_json=args.json)
    status: int
    if args.command == "show":
        status = _plugins().show(args.names, as_json=args.json)
    elif args.command == "check":
        status = _plugins().check(args.names, everything=args.all, as_json=args.json)
    else:
        status = _plugins().write_docs(args.output)
    return status


def _plugins() -> Any:
    from prefopt.cli import loss_plugins  # loads torch

    return loss_plugins


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="prefopt losses", usage="prefopt losses [-h] [--json] [NAME ... | check | docs]",
                    description="List the losses, or describe those that are named.")  # fmt: skip
    parser.add_argument("--json", action="store_true",
                        help="print a list: name, needs, ranking, audit, source, paper, hyperparameters")  # fmt: skip
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(metavar="NAME ... | check | docs", prog="prefopt losses")
    show = commands.add_parser("show", help="describe losses: formula, hyper-parameters, needs, source")
    show.add_argument("names", nargs="+", metavar="NAME")
    show.add_argument("--json", action="store_true", help="print a list, as for all losses")
    show.set_defaults(command="show")
    check = commands.add_parser("check", help="run the conformance kit; exit code 3 when a loss fails")
    check.add_argument("names", nargs="*", metavar="NAME")
    check.add_argument("--all", action="store_true", help="every loss, including those of other packages")
    check.add_argument("--json", action="store_true", help="print the checks of each loss as one JSON object")
    check.set_defaults(command="check")
    docs = commands.add_parser("docs", help="write the catalogue page and its figures")
    docs.add_argument("--output", type=Path, default=Path("docs"), help="the folder of losses.md (default: docs)")
    docs.set_defaults(command="docs")
    return parser
