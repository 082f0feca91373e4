"""Writes what a paper takes from a comparison: a table as CSV and LaTeX, figures as PDF and PNG, how they were made."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from prefopt.common.files import write_text
from prefopt.common.redact import redact
from prefopt.compare.outcome import ComparisonOutcome, Standing
from prefopt.compare.spec import METRICS
from prefopt.compare.statistics import verdict_of
from prefopt.report.comparison_page import final_models, looks, tried_settings
from prefopt.report.figures import line_figure, save, scatter_figure
from prefopt.report.formatting import listed

FOLDER = "paper"
SUFFIXES = (".pdf", ".png")


def write_paper(folder: Path, result: ComparisonOutcome) -> Path:
    """Write `paper/` into the folder of a comparison.

    Files: `results.csv` (every number as it is), `results.tex` (a table for the package booktabs), `final_models` and
    `tried_settings` as PDF and PNG where there is something to draw, and `how.txt`.

    Returns:
        The folder.
    """
    to = folder / FOLDER
    to.mkdir(parents=True, exist_ok=True)
    how = sentence(result)
    table = pd.DataFrame([numbers(result, s) for s in result.standings])
    write_text(to / "results.csv", redact(table.to_csv(index=False)))
    write_text(to / "results.tex", redact(latex(result, how)))
    write_text(to / "how.txt", redact(f"{how}\n\n{result.command}\n"))
    look = looks(result)
    for name, figure in (
        ("final_models", final_models(result, look, scatter_figure)),
        ("tried_settings", tried_settings(result, look, line_figure)),
    ):
        if figure is not None:
            for suffix in SUFFIXES:
                save(figure, to / f"{name}{suffix}")
    return to


def sentence(result: ComparisonOutcome) -> str:
    """How the numbers were made, as a paper says it."""
    facts = result.facts
    trained = [s for s in result.standings if s.runs.finals and s.runs.method is not None]
    tried = max((len(s.runs.settings) for s in trained), default=0)
    seeds = max((len(s.runs.finals) for s in trained), default=0)
    prompts = next((r.arrays[result.metric].size for s in trained for r in s.runs.finals if r.ok), 0)
    versions = listed([f"{name} {version}" for name, version in facts["versions"].items()])
    return (
        f"Each method was tuned over {tried} settings on validation prompts; its best was trained with {seeds} seeds "
        f"and measured on {prompts} test prompts, the same for all. Intervals: 95 %, over seeds and prompts. Verdicts: "
        f"two-sided tests at 5 % after Holm's correction over {len(result.pairs)} pairs. Model {facts['model']}, data "
        f"{facts['data']}; {versions}."
    )


def latex(result: ComparisonOutcome, how: str) -> str:
    """The table of a comparison; it needs `booktabs`, and says so in its first line."""
    metric = METRICS[result.metric].title
    rows = [
        {
            "method": s.name,
            metric: f"{s.value.point:z.2f}" if s.value else "failed",
            "95 % interval": _interval(s),
            "KL": f"{s.figures['kl']:z.2f}" if "kl" in s.figures else "–",
            "against the best": _verdict(result, s),
            "setting": s.setting or "–",
        }
        for s in result.standings
    ]
    body = pd.DataFrame(rows).to_latex(index=False, escape=True, column_format="lrrrll")
    return "".join(["% \\usepackage{booktabs}\n", *(f"% {line}\n" for line in how.splitlines()), body])


def numbers(result: ComparisonOutcome, s: Standing) -> dict[str, Any]:
    """Every number of a row as it is, with its verdict against the best."""
    value = s.value
    return {
        "method": s.name,
        "loss": s.runs.method.loss if s.runs.method is not None else "",
        "control": s.runs.control,
        "online": s.runs.method is not None and result.comparison.online(s.runs.method),
        "metric": result.metric,
        "value": value.point if value else math.nan,
        "low": value.low if value else math.nan,
        "high": value.high if value else math.nan,
        "against_best": _verdict(result, s),
        "setting": s.setting,
        **s.figures,
        **{f"cost_{name}": cost for name, cost in s.cost.items()},
        "reason": s.reason,
    }


def _interval(s: Standing) -> str:
    return "–" if s.value is None or math.isnan(s.value.low) else f"[{s.value.low:z.2f}, {s.value.high:z.2f}]"


def _verdict(result: ComparisonOutcome, s: Standing) -> str:
    best = result.competitors[0].name if result.competitors else None
    if s.name == best:
        return "best by number"
    pair = verdict_of(result.pairs, s.name, best) if best is not None else None
    return pair.verdict.replace("_", " ") if pair is not None else ""
