"""`prefopt data check FILE...` checks preference data; `prefopt data show FILE --row ID` shows one record."""

from __future__ import annotations

import argparse

from prefopt.cli.arguments import Parser


def main(argv: list[str]) -> int:
    """Check data, or show one record.

    Raises:
        UserError: data that cannot be read, or an unknown option, finding or row.
        ThresholdError: `check` found a figure beyond its threshold.
    """
    parser = _parser()
    args, more = parser.parse_known_args(argv)  # settings may also follow options
    if unknown := [arg for arg in more if arg.startswith("-")]:
        parser.error(f"unknown option {unknown[0]}")
    args.what += more
    from prefopt.cli.data_inspection import check, show

    return check(args) if args.command == "check" else show(args)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="prefopt data", description="Inspect preference data.")
    commands = parser.add_subparsers(dest="command", required=True)
    shared = Parser(add_help=False)
    shared.add_argument("what", nargs="+", metavar="FILE | data.KEY=VALUE",
                        help="files, folders or hub names, and settings such as data.max_length=512")  # fmt: skip
    shared.add_argument("--tokenizer", metavar="MODEL", help="a folder or hub id: also count tokens with its tokenizer")

    check = commands.add_parser("check", parents=[shared], help="check data for what goes wrong in preference tuning")
    check.add_argument("--model", help="a folder or hub id: also score the data with the model")
    check.add_argument("--json", action="store_true", help="print one JSON object")
    check.add_argument("--html", metavar="FILE", help="write a page with histograms")
    check.add_argument("--threshold", metavar="FINDING=NUMBER", action="append", default=[],
                       help="fail (exit code 3) if the figure is beyond this; may be repeated")  # fmt: skip

    show = commands.add_parser("show", parents=[shared], help="show one record, as text and as tokens")
    show.add_argument("--row", required=True, help="an id, a row number counted from 0, or FILE:ROW")
    show.add_argument("--model", help="a folder or hub id whose tokenizer and chat template are used")
    return parser
