"""Writes the page of a data check, with histograms."""

from __future__ import annotations

from collections.abc import Sequence

from prefopt.data.doctor.console import figure
from prefopt.data.doctor.findings import Histogram, Report
from prefopt.report.page import render

WIDTH, HEIGHT = 640.0, 150.0
COLORS = {"prompt": "#8a94a6", "chosen": "#0072b2", "rejected": "#d55e00", "completion": "#0072b2"}


def doctor_page(reports: Sequence[Report]) -> str:
    """Return the whole page as HTML, with a section for each report."""
    return render("doctor.html", reports=reports, figure=figure, bars=bars, colors=COLORS, width=WIDTH, height=HEIGHT)


def bars(histogram: Histogram) -> list[dict[str, float | str]]:
    """Return the rectangles of a histogram: the bins side by side, and in each bin its series."""
    highest = max((count for counts in histogram.series.values() for count in counts), default=0) or 1
    edges = histogram.edges
    bins = len(edges) - 1
    step = WIDTH / max(bins, 1)
    thin = (step - 3) / len(histogram.series)
    return [
        {
            "x": round(i * step + k * thin, 2),
            "width": round(thin, 2),
            "y": round(HEIGHT - HEIGHT * count / highest, 2),
            "height": round(HEIGHT * count / highest, 2),
            "name": name,
            "title": f"{name}: {count:,} of {edges[i]:,.0f} to {edges[i + 1]:,.0f} {histogram.unit}",
        }
        for k, (name, counts) in enumerate(histogram.series.items())
        for i, count in enumerate(counts)
        if count
    ]
