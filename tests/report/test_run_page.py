"""The page of a run, made from its files alone: the verdict, escaping, what is missing, and how a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.common.estimate import Estimate
from prefopt.errors import UserError
from prefopt.evaluate.held_out import HeldOut, write_rows
from prefopt.losses import registry
from prefopt.plugin import Data, Traits, traits
from prefopt.report.bands import BANDS, State, bands_of
from prefopt.report.run import run_page, write_run_page
from prefopt.report.text_diff import marked
from prefopt.report.verdict import judge
from prefopt.runs.read import RunFolder
from prefopt.testing import example
from tests.report.test_report import EVIL, Page

GOOD, METHOD = 0.8, Traits()


def run_folder(path: Path, *, margin: float = 1.0, loss: str = "dpo", rows: int = 40, **summary: Any) -> RunFolder:
    """A finished run whose held-out margins grew by `margin`, give or take 0.4, on `rows` pairs."""
    path.mkdir()
    noise = np.where(np.arange(rows) % 2 == 0, 0.4, -0.4)
    chosen = np.linspace(-30, -20, rows)
    before = HeldOut(
        ids=[f"r{i}" for i in range(rows)], prompts=[str(i) for i in range(rows)],
        sums={"chosen": chosen, "rejected": chosen + 0.5 * np.where(np.arange(rows) % 3 == 0, 1, -1)},
        tokens={"chosen": np.full(rows, 10.0), "rejected": np.full(rows, 12.0)},
    )  # fmt: skip
    after = HeldOut(
        ids=before.ids, prompts=before.prompts, tokens=before.tokens,
        sums={"chosen": chosen - 0.2, "rejected": before.sums["rejected"] - 0.2 - margin - noise},
    )  # fmt: skip
    write_rows(path / "heldout.jsonl", before, after)
    estimate = {"value": 20.0, "se": 1.0, "count": 32}
    texts = {"kl": {"value": 0.8, "se": 0.1, "count": 32}, "length": estimate, "length_before": estimate,
             "longer": {"value": 0.5, "se": 0.6, "count": 32}, "ended": {"value": 1.0, "se": 0.0, "count": 32},
             "ended_before": {"value": 0.9, "se": 0.05, "count": 32}}  # fmt: skip
    after_figures = {"rewards/margins": 0.1 * margin, "rewards/accuracies": GOOD, "rewards/ties": 0.0, "kl": 0.8,
                     "kl_sem": 0.1, "records": rows, "lengths/chosen": 10.0, "lengths/rejected": 12.0}  # fmt: skip
    write(path / "summary.json", {
        "method": loss, "before": {}, "after": after_figures, "texts": texts, "steps": 100, "counts": {},
        "seconds": {"train": 61.0, "total": 75.5}, "reference": {"found": 3, "computed": 5}, "memory_gib": 1.25,
        "layout": {"layout": "tree"}, **summary,
    })  # fmt: skip
    write(path / "manifest.json", {"versions": {"torch": "2.0", "peft": None}, "platform": "Linux", "started": "2026",
                                   "data": {"schema": "prompt_pair",
                                            "counts": {"rows": 1200, "train": 1000, "eval": rows}}})  # fmt: skip
    write(path / "config.yaml", {  # JSON is YAML
        "loss": {"name": loss, **({"beta": 0.2} if loss == "dpo" else {})},
        "model": {"path": f"m {EVIL}", "dtype": "float32"},
        "data": {"path": "pairs.jsonl", "eval_records": rows, "max_length": 512}, "trainer": {"learning_rate": 1e-5},
        "seed": 7, "output_dir": str(path), "resume": "auto",
    })  # fmt: skip
    lines(path / "metrics.jsonl", [
        {"step": s, "loss": 0.7 - s / 1000, "learning_rate": 1e-5, "grad_norm": 1.0, "rewards/accuracies": GOOD,
         "rewards/margins": s / 100, "ratios/chosen": -s / 100, "ratios/rejected": -s / 50, "tokens_per_second": 900.0}
        for s in range(1, 101)
    ])  # fmt: skip
    lines(path / "samples.jsonl", [
        {"prompt": f"Say {EVIL}", "before": "A red fox.", "after": f"A blue fox {EVIL}."},
        {"prompt": "Same?", "before": "Yes.", "after": "Yes."},
    ])  # fmt: skip
    lines(path / "rejections.jsonl", [
        {"source": "f:1", "reason": "empty_completion", "detail": f"nothing {EVIL}", "id": ""},
        {"source": "f:2", "reason": "empty_completion", "detail": "nothing", "id": ""},
        {"source": "f:3", "reason": "too_long", "detail": "more than 512 tokens", "id": ""},
    ])  # fmt: skip
    return RunFolder(path)


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def text(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", html))


# ---- the verdict


@pytest.mark.parametrize(
    ("margin", "state", "words"),
    [(1.0, State.GOOD, "It learnt the preference"), (0.0, State.LOOK, "A tie with the base model"),
     (-1.0, State.BAD, "It learnt the opposite")],
)  # fmt: skip
def test_the_verdict_follows_the_paired_differences(tmp_path: Path, margin: float, state: State, words: str) -> None:
    verdict = judge(run_folder(tmp_path / "run", margin=margin))
    assert words in verdict.headline
    grew = next(f for f in verdict.findings if f.band.figure == "grew").figure
    assert grew.value == {1.0: 1.0, 0.0: 0.5, -1.0: 0.0}[margin]
    assert verdict.state in (state, State.LOOK if margin == 1.0 else state)  # all pairs grew: worth a look


def test_accuracy_that_did_not_move_beyond_noise_is_a_tie(tmp_path: Path) -> None:
    """A margin that grows by 0.3 ± 0.4 turns no pair round, since all were 0.5 away."""
    verdict = judge(run_folder(tmp_path / "run", margin=0.05))
    assert "tie with the base model" in verdict.headline


def test_a_figure_out_of_bounds_turns_a_good_verdict_bad(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    summary = json.loads((run.path / "summary.json").read_text())
    summary["after"] |= {"kl": 90.0, "kl_sem": 2.0}
    write(run.path / "summary.json", summary)
    verdict = judge(RunFolder(run.path))
    assert verdict.state is State.BAD
    assert "out of bounds" in verdict.headline
    assert any("90.00 ± 2.00 nats" in detail and "lower learning rate" in detail for detail in verdict.details)


def test_without_held_out_records_nothing_is_claimed(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", after={}, texts={})
    (run.path / "heldout.jsonl").unlink()
    verdict = judge(run)
    assert verdict.state is State.LOOK
    assert "data.eval_records=100" in verdict.headline
    assert verdict.findings == []
    assert "No records were held out" in text(run_page(run))


def test_a_run_that_has_not_ended_has_a_page_too(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    for name in ("summary.json", "heldout.jsonl", "samples.jsonl", "rejections.jsonl", "manifest.json"):
        (run.path / name).unlink()
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 101, "lo')  # cut short by a kill
    assert "has not ended" in text(run_page(run))


def test_what_the_sentinels_said_is_shown_and_counts(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", sentinels=[{"sentinel": "kl", "step": 40, "value": 9.0, "bound": 3.0,
                                                       "text": f"loss jumped {EVIL}"}])  # fmt: skip
    html = run_page(run)
    assert "Step 40: loss jumped" in html
    assert EVIL not in html
    assert judge(run).state is not State.GOOD


def test_every_method_of_the_menu_has_its_bands() -> None:
    for name in registry.names():
        method = traits(example(registry.loss_class(name)))
        bands = bands_of(method)
        assert "chosen" in bands
        assert ("grew" in bands) == (method.needs.data is not Data.DEMONSTRATIONS)


def test_declared_traits_choose_the_bands() -> None:
    neutral = bands_of(Traits())
    assert bands_of(traits(registry.load("dpo"))) == neutral
    assert bands_of(traits(registry.load("ipo")))["margin"].healthy == (0.0, 1.0)
    assert bands_of(traits(registry.load("ipo")))["margin"].bearable == (-np.inf, 2.0)
    assert bands_of(traits(registry.load("orpo")))["chosen"].healthy[0] == 0.0
    assert bands_of(traits(registry.load("mix")))["chosen"] == bands_of(traits(registry.load("orpo")))["chosen"]
    contrast = registry.load("mix", terms={"dpo": 1.0, "hinge": 0.5})
    assert bands_of(traits(contrast)) == neutral


EVERY_BAND = (*BANDS, bands_of(Traits(target_margin=0.5))["margin"])


@pytest.mark.parametrize("band", EVERY_BAND, ids=[f"{b.figure}-{i}" for i, b in enumerate(EVERY_BAND)])
def test_bands_are_sound(band: Any) -> None:
    """Healthy lies within bearable, each side that can be missed says what to do, and a reason has a source."""
    assert band.bearable[0] <= band.healthy[0] < band.healthy[1] <= band.bearable[1]
    assert band.low or band.healthy[0] in (-np.inf, 0.0)
    assert band.high or band.healthy[1] == np.inf
    assert band.why.endswith(".")
    assert band.source.startswith("https://")


def test_noise_is_no_reason_to_warn() -> None:
    band = bands_of(METHOD)["kl"]
    assert band.state(Estimate(11.0, 0.6, 32)) is State.GOOD
    assert band.state(Estimate(11.0, 0.4, 32)) is State.LOOK
    assert band.state(Estimate(41.0, 0.4, 32)) is State.BAD


# ---- the page


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run_folder(tmp_path_factory.mktemp("page") / "run")


@pytest.fixture(scope="module")
def html(run: RunFolder) -> str:
    return run_page(run)


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
    for words in ("Is the run healthy?", "40 records that training never saw", "While learning", "Data card",
                  "1,200", "empty_completion", "1 min 01 s", "1.25 GiB", "900 tokens a second",
                  f"prefopt report {run.path}"):  # fmt: skip
        assert words in said, words
    assert "+1.00 ± 0.06" in said  # 0.4 / sqrt(39), record by record
    assert '<th scope="row">empty_completion</th><td>2</td>' in html


def test_differences_between_texts_are_marked(html: str) -> None:
    assert "A <del>red</del> fox" in html
    assert "<ins>blue</ins>" in html
    assert "word for word the same" in html


def test_marks_keep_every_character() -> None:
    before, after = "One  two,\nthree.", "One two — three!\n"
    left, right = marked(before, after)
    assert "".join(p for p, _ in left) == before
    assert "".join(p for p, _ in right) == after
    assert ("two", False) in right or any("two" in p and not new for p, new in right)


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
    assert (other.data.path, other.data.max_length, other.data.eval_records) == ("other.jsonl", 1024, 0)


def test_a_folder_that_is_no_runs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no config\.yaml"):
        RunFolder.open(tmp_path / "runs" / "mine")
    with pytest.raises(UserError, match="did you mean 'mine'"):
        RunFolder.open(tmp_path / "runs" / "mime")


# ---- a browser

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
