"""Evaluates a model on held-out records, alone or against another model, and prints the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.cli.loading import data_of, opened, progress_bar, records_of
from prefopt.common.escaping_console import Console, Table
from prefopt.common.estimate import Estimate
from prefopt.common.quiet import quiet
from prefopt.config.run_config import RunConfig
from prefopt.errors import UserError
from prefopt.evaluate import held_out
from prefopt.evaluate.held_out import HeldOut
from prefopt.evaluate.texts import Drift, Sampling, drift, held_out_prompts
from prefopt.report.before_after import LEGEND, ROWS, held_out_rows, written_rows
from prefopt.report.formatting import with_error
from prefopt.runs.run_folder import RunFolder
from prefopt.runs.run_path import is_run


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Figures of `model`, and of `against` if given, on the same records.

    Attributes:
        data, records, held_out: where the records are from, how many, and whether they were held out of training.
        figures, others, differences: by the names of `prefopt.evaluate.held_out`; `model` minus `against`.
        texts: how the texts of both differ.
        from_start: whether `against` is the model that `model` was tuned from.
    """

    model: str
    against: str | None
    data: str
    records: int
    held_out: bool
    figures: Mapping[str, Estimate]
    others: Mapping[str, Estimate] | None = None
    differences: Mapping[str, Estimate] | None = None
    texts: Drift | None = None
    from_start: bool = False

    def plain(self) -> dict[str, Any]:
        """As JSON values; every figure has `value`, `se` and `count`."""

        def values(estimates: Mapping[str, Estimate] | None) -> Any:
            return None if estimates is None else {name: e.plain() for name, e in estimates.items()}

        return {
            "model": self.model, "against": self.against,
            "data": {"path": self.data, "records": self.records, "held_out": self.held_out},
            "figures": values(self.figures), "against_figures": values(self.others),
            "differences": values(self.differences), "texts": self.texts.plain() if self.texts else None,
        }  # fmt: skip


def evaluate(name: str, against: str | None, overrides: Sequence[str]) -> Evaluated:
    """Load and score a model; a run without `against` is compared with the model it was tuned from.

    Raises:
        UserError: a model or data that cannot be used, or two models with different vocabularies.
    """
    quiet(keep_data_bars=True)
    start = RunFolder.open(name).start if is_run(name) else None
    against = start if against is None else against
    data = data_of(name, overrides)
    model, tokenizer = opened(name, name, data)
    config, records, is_held_out = records_of(name, overrides, tokenizer)
    own = _score(name, model, records, config)
    compared: dict[str, Any] = {}
    if against is not None:
        other, other_tokenizer = opened(against, name, data)
        if other_tokenizer.get_vocab() != tokenizer.get_vocab():
            raise UserError(f"{name} and {against} have different vocabularies, so their log-probs are of different "
                            "tokens: evaluate each on its own")  # fmt: skip
        theirs = _score(against, other, records, config)
        prompts = held_out_prompts(records, config.evaluation.kl_prompts)
        sampling = Sampling(max_new_tokens=config.evaluation.max_new_tokens, temperature=1.0, seed=config.seed)
        max_tokens = config.batch.budget(model.device.type)
        compared = {
            "others": held_out.figures(theirs),
            "differences": held_out.differences(own, theirs),
            "texts": drift(model, other, tokenizer, prompts, sampling, max_tokens=max_tokens),
        }
    return Evaluated(
        model=name, against=against, data=str(config.data.path or "a mixture"), records=len(records),
        held_out=is_held_out, figures=held_out.figures(own), from_start=against == start, **compared,
    )  # fmt: skip


def _score(name: str, model: Any, records: Any, config: RunConfig) -> HeldOut:
    with progress_bar(f"scoring {name}", len(records)) as progress:
        return held_out.score(model, records, max_tokens=config.batch.budget(model.device.type), progress=progress)


def show(found: Evaluated) -> None:
    """Print the table."""
    console = Console(highlight=False, markup=False)
    kind = "held-out records" if found.held_out else "records (not held out: was the model trained on them?)"
    console.print(f"{found.model} on {found.records:,} {kind} of {found.data}")
    if found.against is None or found.others is None or found.differences is None:
        console.print(_table_of_one(found))
        console.print("against=MODEL compares it with another model, record by record", style="dim")
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    names = ("base", "tuned", "change") if found.from_start else ("against", "model", "difference")
    for column in ("figure", *names, ""):  # as at the end of `prefopt train`
        table.add_column(column, justify="left" if column in ("figure", "") else "right")
    rows = held_out_rows(found.others, found.figures, found.differences)
    for row in rows + (written_rows(found.texts.plain()) if found.texts else []):
        table.add_row(row.title, row.before, row.after, row.change, row.direction)
    console.print(table)
    console.print(f"{names[0]}: {found.against}")
    if "accuracies/ratios" in found.differences:
        share = with_error(found.differences["accuracies/ratios"], "%")
        console.print(f"the model's margin is larger on {share} of the pairs")
    if found.texts:
        console.print(f"KL to it: {with_error(found.texts.kl, 'nats a text')}")
    console.print(LEGEND, style="dim")


def _table_of_one(found: Evaluated) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, words, unit, *_ in ROWS:
        if name in found.figures:
            table.add_row(f"{words}, {unit}", with_error(found.figures[name], unit, bare=True))
    return table
