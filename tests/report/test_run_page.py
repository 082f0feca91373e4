"""The page of a run, made from its files alone: escaping, what is missing, and how a browser shows it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from prefopt.errors import UserError
from prefopt.report.run_page import run_page, write_run_page
from prefopt.runs.run_folder import RunFolder
from tests.report.html import EVIL, Page, text
from tests.report.run_folders import run_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run_folder(tmp_path_factory.mktemp("page") / "run")


@pytest.fixture(scope="module")
def html(run: RunFolder) -> str:
    return run_page(run)


def test_a_run_that_has_not_ended_has_a_page_too(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    for name in ("summary.json", "heldout.jsonl", "samples.jsonl", "rejections.jsonl", "manifest.json"):
        (run.path / name).unlink()
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 101, "lo')  # cut short by a kill
    assert "has not ended" in text(run_page(run))


def test_page_is_whole_and_fetches_nothing(html: str) -> None:
    page = Page(html)
    assert page.open == []
    assert [r for r in page.resources if not r.startswith("#")] == []
    assert re.search(r"url\((?!#)", html) is None
    assert "script" not in page.tags


def test_texts_of_models_and_data_are_escaped(html: str) -> None:
    assert EVIL not in html
    assert html.count("&lt;script&gt;") >= 4  # the model's path, a prompt, a text, a rejection


def test_the_page_says_what_happened(run: RunFolder, html: str) -> None:
    said = text(html)
    for words in ("Is the run healthy?", "40 records that training never saw", "During training", "Data card",
                  "1,200", "empty_completion", "1 min 01 s", "1.25 GiB", "900 tokens a second",
                  f"prefopt report {run.path}"):  # fmt: skip
        assert words in said, words
    assert "+1.00 ± 0.06" in said  # 0.4 / sqrt(39), record by record
    assert '<th scope="row">empty_completion</th><td data-label="Rows">2</td>' in html


def test_differences_between_texts_are_marked(html: str) -> None:
    assert "A <del>red</del> fox" in html
    assert "<ins>blue</ins>" in html
    assert "word for word the same" in html


def test_every_chart_has_a_name(html: str) -> None:
    heads = re.findall(r"<svg[^>]*>", html)
    assert len(heads) == 7
    assert all('role="img"' in head and re.search(r'aria-label="[^"]+ by step', head) for head in heads)


def test_same_files_same_page(run: RunFolder, html: str) -> None:
    assert run_page(RunFolder(run.path)) == html
    path = Path(write_run_page(run.path))
    assert path.read_text() == html


def test_the_command_repeats_the_run(run: RunFolder) -> None:
    """Composing what the page says gives the settings that the run had."""
    overrides = run.overrides()
    assert "loss.beta=0.2" in overrides
    assert not any(o.startswith("output_dir") for o in overrides)
    config = run.run_config()
    assert (config.loss_name, config.loss.beta, config.seed) == ("dpo", 0.2, 7)
    assert config.model.path == f"m {EVIL}"
    assert config.data.max_length == 512
    assert config.trainer["learning_rate"] == 1e-5
    other = run.run_config("data.path=other.jsonl")
    assert (other.data.path, other.data.max_length, other.data.eval_records) == ("other.jsonl", 1024, None)


def test_a_folder_that_is_no_runs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no config\.yaml"):
        RunFolder.open(tmp_path / "runs" / "mine")
    with pytest.raises(UserError, match=r"did you mean '.*mine'"):
        RunFolder.open(tmp_path / "runs" / "mime")


BROWSER = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_in_a_browser(run: RunFolder, tmp_path: Path) -> None:
    """On a desktop and on a phone the page is not wider than the screen, nothing fails to load, and it prints."""
    probe = ("<script>document.title = [document.documentElement.scrollWidth, innerWidth, "
             "document.querySelectorAll('svg').length].join(' ')</script>")  # fmt: skip
    page = tmp_path / "page.html"
    page.write_text(run_page(run) + probe)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path}/profile"]

    def browse(*arguments: str) -> str:
        call = [str(BROWSER), *flags, *arguments, page.as_uri()]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=300).stdout

    for width in (1200, 500):  # the narrowest window that headless Chromium makes
        title = re.search(r"<title>([^<]*)</title>", browse("--dump-dom", f"--window-size={width},900"))
        assert title is not None
        wide, inner, charts = map(int, title[1].split())
        assert wide <= inner
        assert charts == 7
    browse(f"--print-to-pdf={tmp_path}/page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
