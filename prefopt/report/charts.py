"""Pictures of a whole comparison: several methods' curves in one chart, and figures of many methods side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import matplotlib as mpl
from markupsafe import Markup

from prefopt.report.figures import INK, MUTED, Axes, Style, _new, _svg

YARDSTICK = "#98a2b3"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points of one method, joined; with standard errors where they are known; those `beside` are paler, not joined."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    x_se: Sequence[float] = field(default_factory=tuple)
    y_se: Sequence[float] = field(default_factory=tuple)
    beside: Sequence[tuple[float, float]] = field(default_factory=tuple)


@dataclass(frozen=True, kw_only=True)
class Dots:
    """One figure of every method: a value, and its standard error, by method."""

    label: str
    values: Mapping[str, tuple[float, float]]


def curves_chart(
    curves: Sequence[Curve],
    style: Mapping[str, Style],
    axes: Axes,
    *,
    yardsticks: Sequence[Curve] = (),
    x_range: tuple[float, float] | None = None,
    size: tuple[float, float] = (7.4, 4.2),
    summary: str,
) -> Markup:
    """Curves with a legend in the order given; `yardsticks` are dashed lines behind, named at their ends."""
    figure, plot = _new(*size, axes)
    if x_range is not None:
        plot.set_xlim(*x_range)
    for number, one in enumerate(yardsticks):
        plot.plot(one.x, one.y, color=YARDSTICK, lw=1.3, ls=(0, (4, 2)) if number else (0, (1, 1.2)), zorder=1)
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
            x, y, fmt="-", marker=look.marker, color=look.colour, lw=1.3, ms=5.5, mec="white", mew=0.6,
            elinewidth=0.9, label=one.label, zorder=3, **errors,
        )  # fmt: skip
        plot.plot(
            [x for x, _ in one.beside], [y for _, y in one.beside], ls="", marker=look.marker, color=look.colour,
            ms=4.5, mec="white", mew=0.6, alpha=0.45, zorder=2,
        )  # fmt: skip
    plot.legend(
        loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8.5, labelcolor=INK, handlelength=2.2,
    )  # fmt: skip
    return _svg(figure, summary)


def dots_chart(
    rows: Sequence[str],
    series: Sequence[Dots],
    style: Mapping[str, Style],
    axes: Axes,
    *,
    zero: bool = True,
    size: tuple[float, float] | None = None,
    summary: str,
) -> Markup:
    """A row for each method, the first on top, and on it a dot for each series; `zero` draws a line there."""
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
        plot.axvline(0, color=YARDSTICK, lw=0.9, zorder=0)
    plot.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(series), frameon=False, fontsize=8.5)
    return _svg(figure, summary)


def picture_file(picture: Markup) -> str:
    """A picture as a file of its own, on white, with the version of matplotlib that drew it."""
    head, rest = str(picture).split(">", 1)
    if "xmlns=" not in head:
        head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f'{head}>\n<!-- matplotlib {mpl.__version__} -->\n<rect width="100%" height="100%" fill="white"/>{rest}'
