"""`prefopt eval MODEL [against=OTHER] [data.path=FILE ...]`: held-out figures of any model, and against any other."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

from prefopt.errors import UserError

EXAMPLES = """examples:
  prefopt eval runs/mine                                   against the model it was tuned from, on its held-out records
  prefopt eval runs/mine data.path=other.jsonl             the same on other data
  prefopt eval MODEL_FOLDER against=OTHER data.path=FILE   any model against any other, on any data
"""


def main(argv: list[str]) -> int:
    """Score a model, and another one, on held-out records; print a table or one JSON object.

    Raises:
        UserError: a model or data that cannot be used.
    """
    parser = argparse.ArgumentParser(
        prog="prefopt eval", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Held-out figures of a model with standard errors, and its paired differences from another.",
    )  # fmt: skip
    parser.add_argument("model", metavar="MODEL", help="a run's folder, a model or adapter folder, a hub id, "
                                                       "package:NAME or world")  # fmt: skip
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE",
                        help="against=MODEL, and settings as in `prefopt train`, such as data.path=FILE")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_intermixed_args(argv)
    with redirect_stdout(sys.stderr):  # some libraries greet, and stdout may be asked to be JSON
        found = measure(args.model, args.settings)
    if args.json:
        print(json.dumps(plain(found)))
    else:
        show(found)
    return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """Figures of `model`, and of `against` where there is one, on the same records.

    Attributes:
        data, records, held_out: where the records are from, how many, and whether they were held out of training.
        figures, others, differences: by the names of `prefopt.evaluate.held_out`; the last are `model` less `against`.
        texts: how they write (`prefopt.evaluate.texts.Distance`), or None.
    """

    model: str
    against: str | None
    data: str
    records: int
    held_out: bool
    figures: Any
    others: Any
    differences: Any
    texts: Any


def measure(name: str, settings: Sequence[str]) -> Measured:
    """Load, score, compare.

    Raises:
        UserError: a model or data that cannot be used.
    """
    from prefopt.cli.loading import bar, records_of, split
    from prefopt.common.quiet import quiet
    from prefopt.evaluate import held_out
    from prefopt.evaluate.texts import Sampling, distance, held_out_prompts
    from prefopt.runs.read import RunFolder, is_run, open_model

    quiet(keep_data_bars=True)
    against, overrides = split(settings, "against")
    if against is None and is_run(name):
        against = RunFolder.open(name).start
    model, tokenizer = open_model(name)
    config, records, is_held_out = records_of(name, overrides, tokenizer)
    max_tokens = config.batch.budget(model.device.type)
    with bar(f"scoring {name}", len(records)) as progress:
        own = held_out.score(model, records, max_tokens=max_tokens, progress=progress)
    others = differences = texts = None
    if against is not None:
        other, other_tokenizer = open_model(against)
        if other_tokenizer.get_vocab() != tokenizer.get_vocab():
            raise UserError(f"{name} and {against} have different vocabularies, so their log-probs are of different "
                            "tokens: evaluate each on its own")  # fmt: skip
        with bar(f"scoring {against}", len(records)) as progress:
            theirs = held_out.score(other, records, max_tokens=max_tokens, progress=progress)
        others, differences = held_out.figures(theirs), held_out.differences(own, theirs)
        prompts = held_out_prompts(records, config.evaluation.kl_prompts)
        sampling = Sampling(max_new_tokens=config.evaluation.max_new_tokens, temperature=1.0, seed=config.seed)
        texts = distance(model, other, tokenizer, prompts, sampling, max_tokens=max_tokens)
    return Measured(
        model=name, against=against, data=str(config.data.path or "a mixture"), records=len(records),
        held_out=is_held_out, figures=held_out.figures(own), others=others, differences=differences, texts=texts,
    )  # fmt: skip


def plain(found: Measured) -> dict[str, Any]:
    """As JSON values; every figure has `value`, `se` and `count`."""

    def values(estimates: Any) -> Any:
        return None if estimates is None else {name: e.plain() for name, e in estimates.items()}

    return {
        "model": found.model, "against": found.against,
        "data": {"path": found.data, "records": found.records, "held_out": found.held_out},
        "figures": values(found.figures), "against_figures": values(found.others),
        "differences": values(found.differences), "texts": found.texts.plain() if found.texts else None,
    }  # fmt: skip


def show(found: Measured) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table

    from prefopt.common.redact import printable
    from prefopt.report.table import ROWS, held_out_rows, written_rows
    from prefopt.report.verdict import shown

    console = Console()
    kind = "held-out records" if found.held_out else "records (none were held out: were they trained on?)"
    console.print(
        printable(f"{found.model} on {found.records:,} {kind} of {found.data}"), highlight=False, markup=False
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    if found.against is None:
        table.add_column("figure")
        table.add_column("value", justify="right")
        for name, words, unit, _ in ROWS:
            if name in found.figures:
                table.add_row(f"{words}, {unit}", shown(found.figures[name], unit, bare=True))
    else:
        rows = held_out_rows(found.others, found.figures, found.differences)
        rows += written_rows(found.texts.plain()) if found.texts else []
        for column in ("figure", "against", "model", "difference", ""):
            table.add_column(column, justify="left" if column in ("figure", "") else "right")
        for row in rows:
            table.add_row(row.words, row.before, row.after, row.change, row.standing)
    console.print(table)
    if found.against is None:
        console.print("against=MODEL compares it with another model, record by record", style="dim", highlight=False)
        return
    console.print(printable(f"against {found.against}"), highlight=False, markup=False)
    if "accuracies/ratios" in found.differences:
        share = shown(found.differences["accuracies/ratios"], "%")
        console.print(f"the model's margin is the larger one on {share} of the pairs", highlight=False)
    if found.texts:
        console.print(f"KL to it: {shown(found.texts.kl, 'nats a text')}", highlight=False)
    console.print("± is one standard error; “tie” is a difference within two of them", style="dim", highlight=False)
