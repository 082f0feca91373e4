"""The page of the demo: self-contained, escaped, with figures that a screen reader can name."""

from __future__ import annotations

import re

import numpy as np
import pytest

from prefopt.common.estimate import Estimate
from prefopt.compare.demo import BASE, SFT, CurvePoint, DemoFacts, DemoRow
from prefopt.evaluate.world import Evaluation, Sample
from prefopt.report.demo_page import demo_page, standing
from prefopt.worlds.review import ReviewWorld
from tests.report.html import EVIL, Page


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
    world=ReviewWorld(), seed=0, steps=10, batch=128, parameters=104832, samples_per_prompt=4, curve_prompts=256,
    heldout=256,
    ceiling=0.85, best_of_n=[(1, 0.0, Estimate(0.0, 0.1, 4)), (2, 0.19, Estimate(0.4, 0.1, 4))], total_seconds=100.0,
    machine="2 cores", versions="prefopt",
)  # fmt: skip


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


def test_methods_are_told_apart_by_paired_differences() -> None:
    """A - B is -.1, .1, .1, 0: mean .025, standard error sqrt(.0275 / 3 / 4) = .048: it may matter (.05) or not;
    A - C is .9, 1, .8, 1.1; A - D is .01 four times, a tie."""
    assert standing(ROWS) == ("A", {"B": "cannot tell"})
    assert standing([*ROWS, row("D", [0.99, 1.99, 0.99, 1.99])]) == ("A", {"B": "cannot tell", "D": "tie"})


def test_same_rows_same_page(html: str) -> None:
    assert demo_page(ROWS, FACTS) == html
