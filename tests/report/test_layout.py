"""Every page fits a phone and a desktop: what its CSS and markup have for that, and how its sentences are spaced."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest

from prefopt.data import DataConfig
from prefopt.data.doctor import examine
from prefopt.report.comparison_page import compare_page
from prefopt.report.data_check import doctor_page
from prefopt.report.page import label_cells
from prefopt.report.run_page import run_page
from prefopt.report.runs_page import runs_of, write_runs_page
from tests.compare.outcomes import outcome
from tests.report.html import Page
from tests.report.run_folders import lines, run_folder
from tests.report.test_comparison_page import COST, TIMED, row

TEMPLATES = sorted(
    path.name for path in (files("prefopt.report") / "templates").iterdir() if path.name.endswith("html")
)
CHAT = "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"


def a_run(folder: Path) -> str:
    run = run_folder(folder / "run")
    samples = (run.path / "samples.jsonl").read_text().replace("Same?", CHAT.replace("\n", "\\n"))
    (run.path / "samples.jsonl").write_text(samples)
    return run_page(run)


def a_comparison(folder: Path) -> str:
    return compare_page(outcome(row("base", 0.0, COST), row("sft", 0.1, COST | TIMED), row("dpo", 1.0, COST)))


def a_data_check(folder: Path) -> str:
    path = folder / "pairs.jsonl"
    path.write_text(
        "".join(f'{{"prompt": "p{i}", "chosen": "c {i}", "rejected": "r {i}"}}\n' for i in range(20)) + "{}\n"
    )
    return doctor_page([examine(DataConfig(path=str(path)))])


def a_reward_model(folder: Path) -> str:
    one = {"value": 0.6, "se": 0.05, "count": 40}
    figures = {"accuracy": one, "accuracy_strict": one, "ties": one | {"value": 0.0}, "margin": one, "by_length": {},
               "score": 0.1, "score_std": 1.0, "length_correlation": None, "calibration": []}  # fmt: skip
    more = {"reward_model": {"before": figures, "after": figures}, "reference": {"found": 0, "computed": 0}}
    return run_page(run_folder(folder / "run", loss="bradley_terry", texts={}, **more))


def a_run_on_samples(folder: Path) -> str:
    run = run_folder(folder / "run", loss="rloo")
    row = {"step": 1, "prompt": CHAT, "text": "It is.<|im_end|>", "reward": 1.0, "advantage": 0.5, "ended": True}
    lines(run.path / "rollouts.jsonl", [row])
    return run_page(run)


def many_runs(folder: Path) -> str:
    for number, loss in enumerate(("dpo", "ipo", "simpo")):
        run_folder(folder / f"{number}-{loss}", loss=loss, margin=float(number))
    return write_runs_page(folder, runs_of(folder)).read_text()


PAGES: dict[str, Callable[[Path], str]] = {
    "run": a_run, "comparison": a_comparison, "data check": a_data_check, "reward model": a_reward_model,
    "run on samples": a_run_on_samples, "runs": many_runs,
}  # fmt: skip


@pytest.fixture(scope="module", params=PAGES)
def html(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return PAGES[request.param](tmp_path_factory.mktemp("layout"))


def test_every_cell_bears_the_name_of_its_column(html: str) -> None:
    """On a phone the heads of tables are hidden, and each cell shows its label."""
    tables = re.findall(r"<table\b.*?</table>", html, re.DOTALL)
    assert tables
    for table in tables:
        head, body = table.split("</thead>")
        names = len(re.findall(r"<th\b", head))
        for one in re.findall(r"<tr\b.*?</tr>", body, re.DOTALL):
            cells = re.findall(r"<td\b[^>]*>", one)
            assert len(re.findall(r"<t[dh]\b", one)) == names
            assert all('data-label="' in cell for cell in cells), one
    assert Page(html).open == []


def test_every_table_scrolls_where_it_is_too_wide(html: str) -> None:
    assert len(re.findall(r"<table\b", html)) == len(re.findall(r'<div class="scroll">\s*<table\b', html))


def test_the_style_keeps_a_narrow_screen_usable(html: str) -> None:
    style = html[html.index("<style>") : html.index("</style>")]
    phone = style[style.index("@media (max-width: 40rem)") : style.index("@media print")]
    assert "thead { display: none; }" in phone
    assert "content: attr(data-label)" in phone
    assert re.search(r"th, td, tbody th \{[^}]*white-space: normal;[^}]*overflow-wrap: anywhere", phone)
    assert re.search(r"\npre \{[^}]*white-space: pre-wrap", style)
    assert re.search(r"\.badge \{[^}]*white-space: nowrap", style)
    assert 'name="viewport" content="width=device-width' in html


def test_no_text_has_tokens_of_a_template(html: str) -> None:
    assert not re.search("im_start|im_end|eos>", html)


def test_a_table_has_no_empty_column(html: str) -> None:
    for table in re.findall(r"<table\b.*?</table>", html, re.DOTALL):
        rows = [
            re.findall(r"<td\b[^>]*>(.*?)</td>", row, re.DOTALL)
            for row in re.findall(r"<tr\b.*?</tr>", table, re.DOTALL)
        ]
        columns = list(zip(*(row for row in rows if row), strict=True))
        assert all(any(cell.strip() for cell in column) for column in columns), table[:300]


def test_sentences_are_spaced(html: str) -> None:
    """A tag of the template at the end of a line takes the line's end with it."""
    text = re.sub(r"<style>.*?</style>|<svg.*?</svg>|<pre>.*?</pre>|<code>.*?</code>", " ", html, flags=re.DOTALL)
    assert re.findall(r"[a-z)][.;:][A-Z“][a-z]*", re.sub(r"<[^>]+>", " ", text)) == []


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_share_one_base(name: str) -> None:
    text = (files("prefopt.report") / "templates" / name).read_text()
    assert name == "base.html" or text.startswith('{% extends "base.html" %}')


def test_numbers_have_no_exponents(html: str) -> None:
    shown = re.sub(r"<(style|svg|pre|code)\b.*?</\1>", " ", html, flags=re.DOTALL)
    assert re.findall(r"\d[eE][-−+]\d+", shown) == []


def test_a_label_is_an_attribute() -> None:
    table = ('<table><thead><tr><th>A</th><th>B "<b>x</b>" y</th></tr></thead>'
             "<tbody><tr><th>1</th><td class='n'>2</td></tr></tbody></table>")  # fmt: skip
    assert "<td data-label=\"B &quot; x &quot; y\" class='n'>2</td>" in label_cells(table)
