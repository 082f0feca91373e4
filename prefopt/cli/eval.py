"""`prefopt eval MODEL [against=OTHER] [KEY=VALUE ...]`: held-out figures of a model, alone or against another."""

from __future__ import annotations

import argparse

from prefopt.cli.arguments import MODEL, Parser, split_settings
from prefopt.common.json_output import print_json
from prefopt.runs.run_path import check_model, is_run

EXAMPLES = """examples:
  prefopt eval runs/mine                                   against the model it was tuned from, on its held-out records
  prefopt eval runs/mine data.path=other.jsonl             the same on other data
  prefopt eval MODEL_FOLDER against=OTHER data.path=FILE   any model against any other, on any data
  prefopt eval runs/reward rewardbench=FILE                a reward model on a file in RewardBench's format (1 or 2)
"""


def main(argv: list[str]) -> int:
    """Score a model, and another one if given, on held-out records; print a table or one JSON object.

    Of a reward model, how well its scores rank the answers, on records or on a file in RewardBench's format.

    Raises:
        UserError: a model or data that cannot be used.
    """
    parser = Parser(
        prog="prefopt eval", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Held-out figures of a model with standard errors, and its paired differences from another model.",
    )  # fmt: skip
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE",
                        help="against=MODEL, rewardbench=FILE (of a reward model), and settings as in `prefopt train`, "
                             "such as data.path=FILE")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_intermixed_args(argv)
    against, rewardbench, overrides = split_settings(args.settings, "against", "rewardbench")
    if rewardbench is None:  # else a name on the hub has an owner
        check_model(args.model)
    if against is not None and not is_run(args.model):  # a run knows its start, from wherever it was started
        check_model(against)
    from prefopt.cli.evaluation import evaluate, show
    from prefopt.cli.reward_evaluation import evaluate_reward_model, is_one, show_reward_model

    if rewardbench is not None or is_one(args.model):
        scores = evaluate_reward_model(args.model, against, rewardbench, overrides)
        print_json(scores) if args.json else show_reward_model(scores)
        return 0
    found = evaluate(args.model, against, overrides)
    if args.json:
        print_json(found.plain())
    else:
        show(found)
    return 0
