"""Pages: self-contained, escaped, with figures that a screen reader can name."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from prefopt.common.estimate import Estimate
from prefopt.evaluate.world import Evaluation, Sample
from prefopt.report.demo import BASE, SFT, CurvePoint, DemoFacts, DemoRow, demo_page, standing
from prefopt.report.figures import Axes, Curve, Point, Style, scatter, small_chart, styles
from prefopt.report.formatting import number, signed
from prefopt.report.page import write_page
from prefopt.worlds.review import ReviewWorld

EVIL = "<script>alert('&')</script>"


def row(name: str, rewards: list[float], *, completion: str = "the staff was kind .", kl: float = 1.0) -> DemoRow:
    by_prompt = np.array(rewards)
    half = Estimate(0.5, 0.1, 4)
    evaluation = Evaluation(
        true_reward=Estimate.of(by_prompt), kl=Estimate(kl, 0.05, 4), kl_monte_carlo=Estimate(kl, 0.1, 4), valid=half,
        length=Estimate(12.0, 0.1, 4), accuracy=half, chosen_change=Estimate(-0.5, 0.1, 4),
        rejected_change=Estimate(-2.0, 0.1, 4), reward_by_prompt=by_prompt,
        samples=tuple(Sample("the soup was cold and", completion, r) for r in rewards),
    )  # fmt: skip
    if name in (BASE, SFT):
        return DemoRow(name=name, evaluation=evaluation, seconds=1.0)
    curve = [CurvePoint(0, 0.0, 0.5, 0.0, 0.0), CurvePoint(10, 1.0, 0.7, -0.5, -2.0)]
    return DemoRow(
        name=name, evaluation=evaluation, seconds=2.0, setting="loss=dpo", paper="https://x.y/1", curve=curve
    )


ROWS = [
    row(BASE, [-3.0, -3.0, -2.0, -3.0], completion=EVIL, kl=9.0),
    row(SFT, [0.0, 0.5, -0.5, 0.0], kl=0.0),
    row("A", [1.0, 2.0, 1.0, 2.0]),
    row("B", [1.1, 1.9, 0.9, 2.0]),
    row("C", [0.1, 1.0, 0.2, 0.9]),
]
FACTS = DemoFacts(
    world=ReviewWorld(), seed=0, steps=10, batch=128, parameters=104832, samples_per_prompt=4, look_prompts=256,
    heldout=256,
    ceiling=0.85, best_of_n=[(1, 0.0, Estimate(0.0, 0.1, 4)), (2, 0.19, Estimate(0.4, 0.1, 4))], total_seconds=100.0,
    machine="2 cores", versions="prefopt",
)  # fmt: skip


class Page(HTMLParser):
    """Collects what a browser would fetch, and checks that elements close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.resources: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        for name in ("src", "srcset", "data", "poster"):
            self.resources += [str(given[name])] if name in given else []
        if tag in ("link", "use", "image"):
            self.resources += [str(given[name]) for name in ("href", "xlink:href") if name in given]
        if tag not in ("meta", "br", "link", "img", "hr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def html() -> str:
    return demo_page(ROWS, FACTS)


def test_page_is_whole_and_fetches_nothing(html: str) -> None:
    page = Page(html)
    assert page.open == []
    assert [r for r in page.resources if not r.startswith("#")] == []  # only marks inside the page's own figures
    assert "@import" not in html
    assert re.search(r"url\((?!#)", html) is None
    assert "script" not in page.tags


def test_texts_from_models_are_escaped(html: str) -> None:
    assert EVIL not in html
    assert "&lt;script&gt;" in html


def test_every_figure_has_a_name(html: str) -> None:
    heads = re.findall(r"<svg[^>]*>", html)
    assert len(heads) == 1 + 3 * 3  # the frontier, and three charts a method
    assert all('role="img"' in head and re.search(r'aria-label="[^"]+"', head) for head in heads)


def test_the_page_says_the_numbers(html: str) -> None:
    text = re.sub(r"<[^>]+>", "", html)
    for words in ("Three ways", "+1.50", "7,936 pairs", "one standard error", "One seed", "104,832 parameters"):
        assert words in text


def test_ties_are_told_by_paired_differences() -> None:
    """A - B is -.1, .1, .1, 0: mean .025, standard error sqrt(.0275 / 3 / 4) = .048, a tie; A - C is .9, 1, .8, 1.1."""
    assert standing(ROWS) == ("A", ["B"])


def test_same_rows_same_page(html: str) -> None:
    assert demo_page(ROWS, FACTS) == html


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
    ("value", "plain", "with_sign"),
    [(1.234, "1.23", "+1.23"), (-1.234, "−1.23", "−1.23"), (-0.001, "0.00", "0.00"), (float("nan"), "–", "–")],
)
def test_numbers(value: float, plain: str, with_sign: str) -> None:
    assert (number(value), signed(value)) == (plain, with_sign)


def test_write_page_leaves_one_file(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write_page(tmp_path / "folder" / "page.html", text)
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["page.html"]
    assert (tmp_path / "folder" / "page.html").read_text() == "two"
