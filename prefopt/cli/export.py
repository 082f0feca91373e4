"""`prefopt export RUN --to DIR`: writes the tuned model as a folder that plain transformers loads, with a card."""

from __future__ import annotations

from typing import Any

from prefopt.cli.arguments import Parser
from prefopt.common.escaping_console import Console
from prefopt.runs.run_path import check_run


def main(argv: list[str]) -> int:
    """Export a run."""
    parser = Parser(prog="prefopt export", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--to", required=True, metavar="DIR", help="the folder to make; it must be empty or absent")
    parser.add_argument("--dtype", help="dtype of the weights, such as bfloat16 (default: as they were trained)")
    parser.add_argument("--license", dest="licence", metavar="SPDX", help="for the model card, such as apache-2.0")
    parser.add_argument(
        "--push", metavar="OWNER/NAME", help="upload the folder to the hub (a new repository is private)"
    )
    args = parser.parse_args(argv)
    check_run(args.run)
    from prefopt.report.model_card import model_card
    from prefopt.runs.export import export

    def card(run: Any, dtype: str, check: Any) -> str:
        return model_card(run, dtype=dtype, check=check, licence=args.licence)

    made = export(args.run, args.to, dtype=args.dtype, card=card, push=args.push)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(f"{made.folder}: weights in {made.dtype}, tokenizer, generation config, model card")
    what = "scores, in batches of one and of eight that are padded on either side," if made.scores else "log-probs"
    console.print(
        f"loaded by plain transformers in a fresh process: {made.check.tokens} tokens, {what} within "
        f"{made.check.error:.1e} of the run's ({made.check.tolerance:.1e} allowed)"
    )
    if args.licence is None:
        console.print(f"the model card names no license: give --license, or edit {made.folder}/README.md")
    if made.url:
        console.print(f"uploaded to {made.url}")
    return 0
