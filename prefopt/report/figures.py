"""Every figure of the report pages, as inline SVG.

Colour-blind readers can tell the colours apart, every colour comes with a marker, and text is drawn as paths.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.figure import Figure

Box = tuple[float, float, float, float]  # left, bottom, right, top
INK, MUTED, GRID, FAINT = "#1c2430", "#667085", "#e4e7ec", "#98a2b3"


@dataclass(frozen=True)
class Style:
    """How a method looks in every figure of a page."""

    colour: str
    marker: str


# Colours of Okabe and Ito (2008), https://jfly.uni-koeln.de/color/
_STYLES = (
    Style("#0072B2", "o"),
    Style("#E69F00", "s"),
    Style("#009E73", "^"),
    Style("#D55E00", "D"),
    Style("#CC79A7", "v"),
    Style("#56B4E9", "P"),
    Style("#8C6D1F", "X"),
)
REFERENCE_STYLE = Style(INK, "*")


def styles(names: Sequence[str]) -> dict[str, Style]:
    """A style for each name, in order; after seven names the colours repeat with the next marker."""
    n = len(_STYLES)
    return {name: Style(_STYLES[i % n].colour, _STYLES[(i + i // n) % n].marker) for i, name in enumerate(names)}


@dataclass(frozen=True)
class Point:
    """A labelled point with standard errors."""

    label: str
    x: float
    y: float
    x_se: float = 0.0
    y_se: float = 0.0


@dataclass(frozen=True)
class Curve:
    """Joined points.

    Attributes:
        label: of the curve; the name of a method where the chart has a style for each.
        x, y: the points.
        x_se, y_se: their standard errors, where known.
        beside: further points, drawn paler and not joined.
        dashed: draw the line dashed.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False
    x_se: Sequence[float] = ()
    y_se: Sequence[float] = ()
    beside: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True, kw_only=True)
class Dots:
    """One quantity for every method: a value and its standard error, by method."""

    label: str
    values: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The labels of a figure, its range and its guide lines."""

    x: str
    y: str
    title: str = ""
    y_range: tuple[float, float] | None = None
    rules: Sequence[float] = ()  # heights of thin horizontal lines


def scatter(*args: Any, summary: str, **options: Any) -> Markup:
    """Draw `scatter_figure` for a page."""
    return svg(scatter_figure(*args, **options), summary)


def scatter_figure(
    points: Sequence[Point], style: Mapping[str, Style], axes: Axes, *, yardstick: Curve | None = None,
    summary: str = "",
) -> Figure:  # fmt: skip
    """Draw named points with error bars; `yardstick` is a thin dashed curve behind them."""
    figure, plot = _new(5.2, 3.9, axes)
    if yardstick is not None:
        plot.plot(yardstick.x, yardstick.y, color=FAINT, lw=1.2, ls=(0, (4, 3)), zorder=1)
        plot.annotate(
            yardstick.label, (yardstick.x[-1], yardstick.y[-1]), xytext=(-4, 5), textcoords="offset points",
            ha="right", va="bottom", color=MUTED, fontsize=8.5,
        )  # fmt: skip
    for point in points:
        look = style[point.label]
        plot.errorbar(
            point.x, point.y, xerr=point.x_se, yerr=point.y_se, fmt=look.marker, color=look.colour,
            ms=11 if look.marker == "*" else 8, mec="white", mew=0.8, elinewidth=1.4, zorder=3,
        )  # fmt: skip
    plot.margins(x=0.12, y=0.12)
    _name_points(figure, plot, points, style)
    return figure


def small_chart(lines: Sequence[Curve], style: Style, axes: Axes, *, summary: str) -> Markup:
    """Draw the curves of one method in its colour, solid and dashed, as one of several small charts."""
    figure, plot = _new(2.2, 1.75, axes)
    for line in lines:
        plot.plot(
            line.x, line.y, color=style.colour, lw=1.8, ls=(0, (3, 2)) if line.dashed else "-",
            marker=style.marker, ms=3.5, mec="white", mew=0.4,
        )  # fmt: skip
    plot.margins(x=0.04)
    plot.xaxis.get_major_locator().set_params(integer=True)
    return svg(figure, summary)


def line_chart(*args: Any, summary: str, **options: Any) -> Markup:
    """Draw `line_figure` for a page."""
    return svg(line_figure(*args, **options), summary)


def line_figure(
    curves: Sequence[Curve],
    style: Mapping[str, Style],
    axes: Axes,
    *,
    yardsticks: Sequence[Curve] = (),
    x_range: tuple[float, float] | None = None,
    size: tuple[float, float] = (7.4, 4.2),
    summary: str = "",
) -> Figure:
    """Draw one curve per method, with a legend of the solid ones; `yardsticks` stand behind, named at their ends."""
    figure, plot = _new(*size, axes)
    if x_range is not None:
        plot.set_xlim(*x_range)
    for number, one in enumerate(yardsticks):
        plot.plot(one.x, one.y, color=FAINT, lw=1.3, ls=(0, (4, 2)) if number else (0, (1, 1.2)), zorder=1)
        inside = [i for i, x in enumerate(one.x) if x_range is None or x <= x_range[1]]
        at = (one.x[inside[-1]], one.y[inside[-1]])
        plot.annotate(
            one.label, at, xytext=(6, -8) if number else (-4, 5), textcoords="offset points",
            ha="left" if number else "right", va="top" if number else "bottom", color=MUTED, fontsize=8.5,
        )  # fmt: skip
    for one in curves:
        look = style[one.label]
        order = sorted(range(len(one.x)), key=lambda i, one=one: one.x[i])  # type: ignore[misc]
        x, y = [one.x[i] for i in order], [one.y[i] for i in order]
        errors = {
            name: [se[i] for i in order] for name, se in (("xerr", one.x_se), ("yerr", one.y_se)) if len(se) == len(x)
        }
        plot.errorbar(
            x, y, fmt="--" if one.dashed else "-", marker="" if one.dashed else look.marker, color=look.colour, lw=1.3,
            ms=5.5, mec="white", mew=0.6, elinewidth=0.9, label=None if one.dashed else one.label, zorder=3, **errors,
        )  # fmt: skip
        plot.plot(
            [x for x, _ in one.beside], [y for _, y in one.beside], ls="", marker=look.marker, color=look.colour,
            ms=4.5, mec="white", mew=0.6, alpha=0.45, zorder=2,
        )  # fmt: skip
    plot.legend(
        loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8.5, labelcolor=INK, handlelength=2.2,
    )  # fmt: skip
    return figure


def dot_chart(
    rows: Sequence[str],
    series: Sequence[Dots],
    style: Mapping[str, Style],
    axes: Axes,
    *,
    zero: bool = True,
    size: tuple[float, float] | None = None,
    summary: str,
) -> Markup:
    """Draw a row for each method, the first on top, with a dot for each series; `zero` draws a line at zero."""
    figure, plot = _new(*(size or (6.4, 0.9 + 0.32 * len(rows))), axes)
    for number, one in enumerate(series):
        look = style[one.label]
        there = [i for i, row in enumerate(rows) if row in one.values]
        shift = 0.14 * (number - (len(series) - 1) / 2)
        plot.errorbar(
            [one.values[rows[i]][0] for i in there], [i + shift for i in there],
            xerr=[one.values[rows[i]][1] for i in there], fmt=look.marker, color=look.colour, ms=6.5, mec="white",
            mew=0.6, elinewidth=1.1, label=one.label, zorder=3,
        )  # fmt: skip
    plot.set_yticks(range(len(rows)), labels=list(rows))
    plot.set_ylim(len(rows) - 0.5, -0.5)
    plot.tick_params(axis="y", labelcolor=INK)
    if zero:
        plot.axvline(0, color=FAINT, lw=0.9, zorder=0)
    plot.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(series), frameon=False, fontsize=8.5)
    return svg(figure, summary)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PDF or PNG, by the path's suffix; text in a PDF stays text."""
    dates = {"CreationDate": None} if path.suffix == ".pdf" else {}
    with mpl.rc_context({"pdf.fonttype": 42}):
        figure.savefig(path, dpi=300, metadata=dates)


def svg_file(figure: Markup) -> str:
    """Return a figure as the content of an SVG file, on white, with the version of matplotlib that drew it."""
    head, rest = str(figure).split(">", 1)
    if "xmlns=" not in head:
        head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f'{head}>\n<!-- matplotlib {mpl.__version__} -->\n<rect width="100%" height="100%" fill="white"/>{rest}'


def _new(width: float, height: float, axes: Axes) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    plot = figure.add_subplot()
    plot.set_xlabel(axes.x, color=MUTED, fontsize=8.5)
    plot.set_ylabel(axes.y, color=MUTED, fontsize=8.5)
    if axes.title:
        plot.set_title(axes.title, loc="left", color=INK, fontsize=10.5, fontweight="bold", wrap=True)
    if axes.y_range is not None:
        plot.set_ylim(*axes.y_range)
    for height_of_rule in axes.rules:
        plot.axhline(height_of_rule, color=FAINT, lw=0.8, zorder=0)
    plot.grid(color=GRID, lw=0.7)
    plot.set_axisbelow(True)
    plot.tick_params(colors=MUTED, labelsize=8.5, length=0)
    for side in ("top", "right", "left"):
        plot.spines[side].set_visible(False)
    plot.spines["bottom"].set_color(FAINT)
    return figure, plot


def _name_points(figure: Figure, plot: Any, points: Sequence[Point], style: Mapping[str, Style]) -> None:
    """Write each point's name at that of eight places around it which covers least of what is there already."""
    figure.draw_without_rendering()
    at = {point.label: plot.transData.transform((point.x, point.y)) for point in points}
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in at.values()]
    left, bottom, right, top = plot.get_window_extent().extents.tolist()
    places = [(10, 0), (0, 11), (0, -11), (-10, 0), (9, 9), (9, -9), (-9, 9), (-9, -9)]
    for point in points:
        x, y = at[point.label]
        width, height = 7.2 * len(point.label), 13.0

        def box(dx: float, dy: float, x: float = x, y: float = y, w: float = width, h: float = height) -> Box:
            left = x + dx - (w if dx < 0 else w / 2 if dx == 0 else 0)
            return left, y + dy - h / 2, left + w, y + dy + h / 2

        def cost(place: tuple[float, float]) -> float:
            a = box(*place)
            outside: float = max(0.0, left - a[0]) + max(0.0, a[2] - right)
            outside += max(0.0, bottom - a[1]) + max(0.0, a[3] - top)
            return 50.0 * outside + sum(_overlap(a, b) for b in taken)

        dx, dy = min(places, key=cost)
        taken.append(box(dx, dy))
        plot.annotate(
            point.label, (point.x, point.y), xytext=(dx, dy), textcoords="offset points", va="center",
            ha="left" if dx > 0 else "right" if dx < 0 else "center",
            color=style[point.label].colour, fontsize=9.5, fontweight="bold", zorder=4,
        )  # fmt: skip


def _overlap(a: Box, b: Box) -> float:
    """Return the area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def svg(figure: Figure, summary: str) -> Markup:
    """Return the figure as one `<svg>` element that scales with the page and that screen readers can name."""
    buffer = io.StringIO()
    # A fixed salt: the same figure gives the same bytes, so that pages can be compared.
    with mpl.rc_context({"svg.hashsalt": "prefopt", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # names such as axes_1 would repeat on a page of several figures
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return Markup(f'{head} role="img" aria-label="{escape(summary)}">{rest}')
