"""`prefopt losses`: the menu as a table or JSON, the conformance kit (`check`), and the catalogue page (`docs`)."""

from __future__ import annotations

import argparse
from pathlib import Path

from prefopt.cli.arguments import Parser
from prefopt.cli.loss_menu import keep_facts, kept_facts, print_menu


def main(argv: list[str]) -> int:
    """Print the menu, or run `check` or `docs`.

    Raises:
        UserError: a name that is not on the menu, or an outside plugin that cannot be used.
        ThresholdError: `check` found a loss that fails.
    """
    args = _parser().parse_args(argv)
    if args.command is None and (losses := kept_facts()) is not None:
        return print_menu(losses, as_json=args.json)
    from prefopt.cli import loss_plugins

    if args.command == "check":
        return loss_plugins.check(args.names, everything=args.all, as_json=args.json)
    if args.command == "docs":
        return loss_plugins.write_docs(args.output)
    losses = loss_plugins.describe_all()
    keep_facts(losses)
    return print_menu(losses, as_json=args.json)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="prefopt losses", description="List the losses.")
    parser.add_argument("--json", action="store_true",
                        help="print a list: name, needs, ranking, audit, source, paper, hyperparameters")  # fmt: skip
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(metavar="check | docs")
    check = commands.add_parser("check", help="run the conformance kit; exit code 3 when a loss fails")
    check.add_argument("names", nargs="*", metavar="NAME")
    check.add_argument("--all", action="store_true", help="every loss, including those of other packages")
    check.add_argument("--json", action="store_true", help="print the checks of each loss as one JSON object")
    check.set_defaults(command="check")
    docs = commands.add_parser("docs", help="write the catalogue page and its figures")
    docs.add_argument("--output", type=Path, default=Path("docs"), help="the folder of losses.md (default: docs)")
    docs.set_defaults(command="docs")
    return parser
