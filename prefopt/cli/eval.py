"""`prefopt eval MODEL [against=OTHER] [KEY=VALUE ...]`: held-out figures of a model, alone or against another."""

from __future__ import annotations

import argparse

from prefopt.cli.arguments import MODEL, Parser, split_settings
from prefopt.common.json_output import print_json

EXAMPLES = """examples:
  prefopt eval runs/mine                                   against the model it was tuned from, on its held-out records
  prefopt eval runs/mine data.path=other.jsonl             the same on other data
  prefopt eval MODEL_FOLDER against=OTHER data.path=FILE   any model against any other, on any data
"""


def main(argv: list[str]) -> int:
    """Score a model, and another one if given, on held-out records; print a table or one JSON object.

    Raises:
        UserError: a model or data that cannot be used.
    """
    parser = Parser(
        prog="prefopt eval", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Held-out figures of a model with standard errors, and its paired differences from another model.",
    )  # fmt: skip
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE",
                        help="against=MODEL, and settings as in `prefopt train`, such as data.path=FILE")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_intermixed_args(argv)
    against, overrides = split_settings(args.settings, "against")
    from prefopt.cli.evaluation import evaluate, show

    found = evaluate(args.model, against, overrides)
    if args.json:
        print_json(found.plain())
    else:
        show(found)
    return 0
