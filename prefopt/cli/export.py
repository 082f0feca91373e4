"""`prefopt export RUN --to DIR`: the tuned model as a folder that plain transformers loads, with a model card."""

from __future__ import annotations

import argparse


def main(argv: list[str]) -> int:
    """Export a run."""
    from prefopt.models.load import DTYPES

    parser = argparse.ArgumentParser(prog="prefopt export", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run")
    parser.add_argument("--to", required=True, metavar="DIR", help="the folder to make; empty or absent")
    parser.add_argument("--dtype", choices=list(DTYPES), help="of the weights (default: as they were trained)")
    parser.add_argument("--license", dest="licence", metavar="SPDX", help="for the model card, such as apache-2.0")
    parser.add_argument(
        "--push", metavar="OWNER/NAME", help="upload the folder to the hub (a new repository is private)"
    )
    given = parser.parse_args(argv)

    from rich.console import Console

    from prefopt.runs.export import export

    made = export(given.run, given.to, dtype=given.dtype, licence=given.licence, push=given.push)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{made.folder}: weights in {made.dtype}, tokenizer, generation config, model card", markup=False)
    console.print(
        f"loaded by plain transformers in a fresh process: {made.check.tokens} tokens, log-probs within "
        f"{made.check.error:.1e} nats of the run's ({made.check.tolerance:.1e} allowed)",
        markup=False,
    )
    if given.licence is None:
        console.print(f"the model card names no licence: --license, or edit {made.folder}/README.md", markup=False)
    if made.url:
        console.print(f"uploaded to {made.url}", markup=False)
    return 0
