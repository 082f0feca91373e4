"""Pictures as inline SVG: colours that colour-blind readers tell apart, a marker beside every colour, text as paths."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.figure import Figure

Box = tuple[float, float, float, float]  # left, bottom, right, top
INK, MUTED, GRID = "#1c2430", "#667085", "#e4e7ec"


@dataclass(frozen=True)
class Style:
    """How a method looks in every picture of a page."""

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
    """A style for each name, in order; colours come round again after seven, with the next marker."""
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
class Line:
    """One curve of a chart."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Axes:
    """Words around a chart."""

    x: str
    y: str
    title: str = ""
    y_range: tuple[float, float] | None = None
    rules: Sequence[float] = field(default_factory=tuple)  # heights of thin horizontal lines


def scatter(
    points: Sequence[Point], style: Mapping[str, Style], axes: Axes, *, yardstick: Line | None = None, summary: str
) -> Markup:
    """Points with error bars and their names beside them; `yardstick` is a thin dashed curve behind."""
    figure, plot = _new(5.2, 3.9, axes)
    if yardstick is not None:
        plot.plot(yardstick.x, yardstick.y, color="#98a2b3", lw=1.2, ls=(0, (4, 3)), zorder=1)
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
    return _svg(figure, summary)


def curves(lines: Sequence[Line], style: Style, axes: Axes, *, summary: str) -> Markup:
    """A small chart of one method: its curves in its colour, told apart by dashes."""
    figure, plot = _new(2.2, 1.75, axes)
    for line in lines:
        plot.plot(
            line.x, line.y, color=style.colour, lw=1.8, ls=(0, (3, 2)) if line.dashed else "-",
            marker=style.marker, ms=3.5, mec="white", mew=0.4,
        )  # fmt: skip
    plot.margins(x=0.04)
    plot.xaxis.get_major_locator().set_params(integer=True)
    return _svg(figure, summary)


def _new(width: float, height: float, axes: Axes) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    plot = figure.add_subplot()
    plot.set_xlabel(axes.x, color=MUTED, fontsize=8.5)
    plot.set_ylabel(axes.y, color=MUTED, fontsize=8.5)
    if axes.title:
        plot.set_title(axes.title, loc="left", color=INK, fontsize=10.5, fontweight="bold")
    if axes.y_range is not None:
        plot.set_ylim(*axes.y_range)
    for height_of_rule in axes.rules:
        plot.axhline(height_of_rule, color="#98a2b3", lw=0.8, zorder=0)
    plot.grid(color=GRID, lw=0.7)
    plot.set_axisbelow(True)
    plot.tick_params(colors=MUTED, labelsize=8.5, length=0)
    for side in ("top", "right", "left"):
        plot.spines[side].set_visible(False)
    plot.spines["bottom"].set_color("#98a2b3")
    return figure, plot


def _name_points(figure: Figure, plot: Any, points: Sequence[Point], style: Mapping[str, Style]) -> None:
    """Names beside points: of eight places around each, the one that covers least of what is already there."""
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
    """Area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _svg(figure: Figure, summary: str) -> Markup:
    """The figure as one `<svg>` element that scales with the page and that a screen reader can name."""
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
