"""Prints a report in the terminal."""

from __future__ import annotations

from rich.markup import escape

from prefopt.common.escaping_console import Console, Table
from prefopt.data.doctor.findings import Finding, Report


def show(report: Report, console: Console) -> None:
    """Print the findings, bad ones first."""
    console.print(f"\n[bold]{escape(report.name)}[/]  {report.schema}, {report.kind}: "
                  f"{report.kept:,} of {report.rows:,} rows kept")  # fmt: skip
    for line in report.account:
        console.print(f"  {escape(line)}")
    reasons = report.reasons()
    for reason, found in reasons.items():
        console.print(f"  [yellow]−{found['count']:>6,}[/]  {reason}  [dim]{escape(_places(found['sources']))}[/]")
        console.print(f"           [dim]{escape(found['example'])}[/]")
    if reasons:
        console.print("  [dim]rows are counted from 0; `prefopt data show FILE --row N` shows one[/]")
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(ratio=1)
    for finding in sorted(report.findings.values(), key=lambda f: (f.ok, not f.noticed)):
        table.add_row(_mark(finding), figure(finding), _words(finding))
    console.print(table)
    if report.costs:
        costs = ", ".join(f"{cost['max_length']:.0f}: {cost['dropped']:.1%}" for cost in report.costs)
        console.print(f"  records over max_length  {costs}")
    failed = [finding.name for finding in report.findings.values() if not finding.ok]
    console.print(f"[red]fails: {', '.join(failed)}[/]" if failed else "[green]no threshold fails[/]")


def figure(finding: Finding) -> str:
    """The figure as text: a count with its share, or a ratio."""
    if isinstance(finding.figure, int):
        share = f" ({finding.figure / finding.total:.1%})" if finding.meaning.share and finding.total else ""
        return f"{finding.figure:,}{share}"
    return f"{finding.figure:z.3f}"


def _mark(finding: Finding) -> str:
    sign = "[red]✗" if not finding.ok else "[yellow]![/]" if finding.noticed else "[green]✓[/]"
    return f"{sign} {finding.name}"


def _words(finding: Finding) -> str:
    lines = [escape(finding.meaning.says)]
    if finding.note:
        lines.append(f"[dim]{escape(finding.note)}[/]")
    if finding.ids and (finding.noticed or not finding.ok):
        lines.append(f"[dim]{escape(_places(list(finding.ids)))}[/]")
    if finding.noticed or not finding.ok:
        lines.append(f"[yellow]→ {escape(finding.meaning.advice)}[/]")
    return "\n".join(lines)


def _places(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f", … {len(names) - 6} more" if len(names) > 6 else "")
