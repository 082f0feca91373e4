"""Presents the outcome of a comparison as text: the finding in sentences, `results.md`, and a table on a terminal."""

from __future__ import annotations

import math
from textwrap import shorten

from rich import box
from rich.text import Text

from prefopt.common.escaping_console import Console, Table
from prefopt.common.redact import printable
from prefopt.compare.outcome import ComparisonOutcome, Standing
from prefopt.compare.results import train_command
from prefopt.compare.spec import BASE, METRICS, SFT
from prefopt.compare.statistics import Interval, verdict_of
from prefopt.report.formatting import listed, number, signed

TASK = "task/"  # prefix of the figures of tasks
ONE_RUN = {  # costs of one final run
    "labels": "labels", "tokens_sampled": "tokens sampled", "tokens_scored": "tokens scored",
    "tokens_trained": "tokens trained",
}  # fmt: skip


def finding(result: ComparisonOutcome) -> list[str]:
    """Return the result in two or three sentences."""
    rivals = result.competitors
    if not rivals:
        return _finding_without_rivals(result)
    best = rivals[0]
    title = METRICS[result.metric].in_words
    found: dict[str, list[str]] = {"better": [], "tie": [], "cannot_tell": []}
    for other in rivals[1:]:
        pair = verdict_of(result.pairs, best.name, other.name)
        found.get(pair.verdict if pair is not None else "", found["cannot_tell"]).append(other.name)
    parts = [said + listed(names) for said, names in zip(
        ("is better than ", "ties with ", "cannot be told from "), found.values(), strict=True) if names]  # fmt: skip
    if len(rivals) == 1:
        sentences = [f"{best.name} is the only method."]
    elif len(found["better"]) == len(rivals) - 1:
        sentences = [f"{best.name} is better than every other method by {title}."]
    elif len(found["cannot_tell"]) == len(rivals) - 1:
        sentences = [
            f"The data cannot tell which method is best by {title}: {best.name} comes first, perhaps by chance."
        ]
    else:
        sentences = [f"{best.name} has the best {title}; it {', and '.join(parts)}."]
    return sentences + [sentence for rival in (SFT, BASE) if (sentence := _against(result, rival))]


def _against(result: ComparisonOutcome, rival: str) -> str:
    """Say which methods are better or worse than SFT or the base model."""
    names = [s.name for s in result.competitors]
    verdicts = {name: pair.verdict for name in names if (pair := verdict_of(result.pairs, name, rival))}
    better, worse = ([name for name in names if verdicts.get(name) == wanted] for wanted in ("better", "worse"))
    who = "SFT on the chosen side" if rival == SFT else "the model before training"
    if len(better) == len(names):
        return f"All are better than {who}."
    parts = [f"better than {who}: {listed(better)}"] if better else []
    parts += [f"worse than {who}: {listed(worse)}"] if worse else []
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _finding_without_rivals(result: ComparisonOutcome) -> list[str]:
    sft = result.standing(SFT)
    if sft is None or sft.value is None:
        return ["No method could be measured: see the reasons below."]
    alone = all(method.name == SFT for method in result.comparison.methods)
    first = "SFT is the only method." if alone else "No method but SFT could be measured: see the reasons below."
    pair = verdict_of(result.pairs, SFT, BASE)
    verdicts = {"better": "is better than", "worse": "is worse than", "tie": "ties with",
                "cannot_tell": "cannot be told from"}  # fmt: skip
    return [first, *([f"It {verdicts[pair.verdict]} the model before training."] if pair is not None else [])]


def task_names(result: ComparisonOutcome) -> list[str]:
    """Return the names of the figures of tasks."""
    return sorted({name for s in result.standings for name in s.figures if name.startswith(TASK)})


def markdown(result: ComparisonOutcome) -> str:
    """Return the content of `results.md`."""
    title = METRICS[result.metric].title
    shown = [name for name in METRICS if name != result.metric and any(name in s.figures for s in result.standings)]
    head = ["", title, *(METRICS[name].title for name in shown), "setting", "trials", "s a run", *ONE_RUN.values(),
            "tokens of all runs", "peak MiB"]  # fmt: skip
    lines = ["# Comparison", "", *finding(result), "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for s in result.standings:
        value = _with_interval(s.value, 3) if s.value else "failed"
        figures = [number(s.figures[name], 3) if name in s.figures else "–" for name in shown]
        one_run = ["–" if math.isnan(s.cost[name]) else f"{s.cost[name]:,.0f}" for name in ONE_RUN]
        cost = [f"{s.cost['trials']:.0f}", f"{s.cost['train_seconds']:.1f}", *one_run, f"{s.cost['tokens']:,.0f}",
                f"{s.cost['peak_memory_mib']:.0f}"]  # fmt: skip
        lines.append("| " + " | ".join([s.name, value, *figures, s.setting, *cost]) + " |")
    lines += [*_ranking_lines(result), *_task_lines(result)]
    lines += ["", "| | against | difference | effect | p (Holm) | verdict |", "|---|---|---:|---:|---:|---|"]
    for pair in result.pairs:
        lines.append(
            f"| {pair.a} | {pair.b} | {signed(pair.difference, 3)} [{signed(pair.low, 3)}, {signed(pair.high, 3)}] | "
            f"{signed(pair.effect)} | {pair.p_holm:.2g} | {pair.describe()} |"
        )
    lines += ["", *(f"- {warning}" for warning in result.warnings), "", "    " + result.command, ""]
    lines += [f"    {train_command(result.comparison, s.runs)}" for s in result.standings if s.runs.chosen is not None]
    return "\n".join(lines) + "\n"


def _ranking_lines(result: ComparisonOutcome) -> list[str]:
    """Return a table of the kinds of losses, where there are several: the methods of each and the best of them."""
    kinds = result.by_ranking
    if len(kinds) < 2:
        return []
    lines = ["", "| losses that are | methods | best | " + METRICS[result.metric].title + " |", "|---|---:|---|---|"]
    for kind, rows in kinds.items():
        value = rows[0].value
        lines.append(f"| {kind} | {len(rows)} | {rows[0].name} | {_with_interval(value, 3) if value else '–'} |")
    return lines


def _task_lines(result: ComparisonOutcome) -> list[str]:
    """Return a table of task figures by row, with their change against the model before training."""
    names = task_names(result)
    base = result.standing(BASE)
    start = base.figures if base is not None else {}

    def cell(s: Standing, name: str) -> str:
        if name not in s.figures:
            return "–"
        change = f" ({signed(s.figures[name] - start[name], 3)})" if s is not base and name in start else ""
        return f"{number(s.figures[name], 3)}{change}"

    table = [["tasks (change against base)", *(name.removeprefix(TASK) for name in names)]]
    table += [[s.name, *(cell(s, name) for name in names)] for s in result.standings]
    head, *lines = ["| " + " | ".join(cells) + " |" for cells in table]
    return ["", head, "|---" * len(table[0]) + "|", *lines] if names else []


def _with_interval(value: Interval, digits: int) -> str:
    """Format a mean and its interval, where there is one."""
    low, point, high = (number(one, digits) for one in (value.low, value.point, value.high))
    return point if math.isnan(value.low) else f"{point} [{low}, {high}]"


def _caption(result: ComparisonOutcome) -> str:
    least = METRICS[result.metric].smallest_in_words()
    return "rows whose intervals do not overlap have a verdict" + (
        f"; a tie: surely less than {least} apart" if least else ""
    )


def print_outcome(console: Console, result: ComparisonOutcome) -> None:
    """Print the finding, a table of the methods, and the warnings."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, header_style="bold", title_justify="left", title_style="dim",
                  title=_caption(result))  # fmt: skip
    best = result.competitors[0].name if result.competitors else None
    columns = (METRICS[result.metric].title, "KL", "against the best", "setting", "s a run", "labels", "sampled")
    table.add_column("method")
    for column in columns:
        table.add_column(column, justify="left" if column in ("against the best", "setting") else "right")
    for s in result.standings:
        pair = verdict_of(result.pairs, s.name, best) if best else None
        value = _with_interval(s.value, 2) if s.value else "failed"
        verdict = (
            "best by number" if s.name == best else pair.describe() if pair else shorten(s.reason, 60, placeholder=" …")
        )
        kl = number(s.figures["kl"]) if "kl" in s.figures else ""
        bought = ["" if math.isnan(s.cost[name]) else f"{s.cost[name]:,.0f}" for name in ("labels", "tokens_sampled")]
        row = (s.name, value, kl, verdict, s.setting, f"{s.cost['train_seconds']:.1f}", *bought)
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)
    for sentence in finding(result):
        console.print(Text(printable(sentence)))
    for warning in result.warnings:
        console.print(Text(printable(f"warning: {warning}")), style="dim")
