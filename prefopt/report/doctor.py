"""A report as one self-contained HTML page with histograms."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from prefopt.data.doctor.findings import Histogram, Report
from prefopt.data.doctor.text import figure

WIDTH, HEIGHT = 640.0, 150.0
COLORS = {"prompt": "#8a94a6", "chosen": "#0072b2", "rejected": "#d55e00", "completion": "#0072b2"}


def page(reports: Sequence[Report]) -> str:
    """The HTML text."""
    environment = Environment(
        loader=PackageLoader("prefopt.report", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["figure"] = figure
    return environment.get_template("doctor.html").render(
        reports=reports, bars=bars, colors=COLORS, width=WIDTH, height=HEIGHT
    )


def bars(histogram: Histogram) -> list[dict[str, float | str]]:
    """The rectangles of a histogram: bins side by side, the series of a bin too."""
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
