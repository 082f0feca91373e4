"""Charts of a comparison: every method is there, by name and by its own look; the same input gives the same file."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from prefopt.report import figures
from prefopt.report.figures import (
    Axes,
    Curve,
    Dots,
    Point,
    Style,
    dot_chart,
    line_chart,
    scatter,
    small_chart,
    styles,
    svg_file,
)
from prefopt.report.run_page import CHARTS

AXES = Axes(x="KL", y="reward")


def frontier() -> str:
    curves = [
        Curve(label="A", x=[2.0, 0.5, 1.0], y=[1.5, 0.5, 1.0], y_se=[0.1, 0.1, 0.1]),
        Curve(label="B", x=[0.5, 1.0], y=[0.4, 0.8]),
    ]
    oracle = Curve(label="oracle", x=[0.5, 1.0, 9.0], y=[1.0, 1.5, 3.0])
    return svg_file(
        line_chart(
            curves, styles(["A", "B"]), AXES, yardsticks=[oracle, oracle], x_range=(0, 3), summary='Reward & "KL"'
        )
    )


def test_a_picture_file_is_whole_and_repeatable() -> None:
    drawn = frontier()
    root = ET.fromstring(drawn)  # well-formed, and of the namespace that a browser draws
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.attrib["aria-label"] == 'Reward & "KL"'
    assert f"matplotlib {mpl.__version__}" in drawn
    assert "white" in root[0].attrib["fill"]  # readable on a dark page
    assert frontier() == drawn


def test_methods_have_their_own_look() -> None:
    look = styles(["A", "B"])
    drawn = frontier()
    assert all(look[name].colour.lower() in drawn.lower() for name in "AB")


def test_dots_leave_out_what_is_not_there() -> None:
    series = [Dots(label="x", values={"A": (1.0, 0.1), "B": (2.0, 0.2)}), Dots(label="y", values={"A": (0.5, 0.1)})]
    drawn = dot_chart(["A", "B"], series, styles(["x", "y"]), AXES, summary="two worlds")
    assert ET.fromstring(str(drawn).replace("xlink:href", "href")).attrib["aria-label"] == "two worlds"


def test_scatter_keeps_names_apart() -> None:
    points = [Point(f"method {i}", 1.0 + 0.02 * i, 1.0 + 0.01 * i, 0.1, 0.1) for i in range(4)]
    svg = scatter(points, styles([p.label for p in points]), Axes(x="x", y="y"), summary='four "points" & bars')
    assert svg.startswith("<svg")
    assert 'aria-label="four &#34;points&#34; &amp; bars"' in svg


def test_curves_draw_every_line() -> None:
    lines = [Curve("one", [0, 1], [0, 1]), Curve("two", [0, 1], [1, 0], dashed=True)]
    svg = small_chart(lines, Style("#123456", "o"), Axes(x="step", y="", title="T"), summary="two lines")
    assert svg.count("#123456") >= 2
    assert "stroke-dasharray" in svg


def test_styles_differ() -> None:
    made = styles([str(i) for i in range(14)])
    assert len(set(made.values())) == 14


@pytest.mark.parametrize(
    "title", [title for _, title, _ in CHARTS] + ["a method with a long name and options of its own"]
)
def test_no_title_of_a_small_chart_is_cut(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "svg", lambda figure, summary: drawn.append(figure))
    small_chart(
        [Curve("A", [1.0, 2.0], [0.0, 1.0])], Style("#000000", "o"), Axes(x="step", y="share", title=title), summary=""
    )
    drawn[0].draw_without_rendering()
    bold = next(text for text in drawn[0].findobj(Text) if text.get_fontweight() == "bold" and text.get_text())
    assert bold.get_window_extent().x1 <= drawn[0].bbox.x1
