"""Texts of models and data in pages and on terminals: shown, never obeyed."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.common.redact import CONTROL, printable, redact
from prefopt.config.compose import compose
from prefopt.data import DataConfig
from prefopt.data.doctor import examine
from prefopt.report.data_check import doctor_page
from prefopt.report.run_page import write_run_page
from prefopt.report.verdict import judge
from prefopt.runs.run_folder import RunFolder
from tests.fuzz.hostile import altered_json, as_json, attempt, cases, words

HTML = ["<script>alert(1)</script>", '"><img src=x onerror=x()>', "</style><script>", "</title><script>", "<!--", "]]>",
        "javascript:x()", "' onload='x()", "\x1b[2J", "\u202e", "\x9b31m", "&lt;b&gt;", "{{ 7 * 7 }}"]  # fmt: skip
hostile = st.one_of(st.sampled_from(HTML), words)


class Page(HTMLParser):
    """The tags of a page, and whatever in it could run."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.runs: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.runs += [f"{tag} {n}={v}" for n, v in attrs if n.startswith("on") or "javascript:" in (v or "").lower()]


@pytest.fixture(scope="module")
def run_files() -> dict[str, Any]:
    config = compose([]).plain()
    metrics = [{"step": n, "loss": 0.5, "learning_rate": 0.1, "rewards/accuracies": 0.5, "grad_norm": 1.0,
                "tokens_per_second": 9.0, "lengths/chosen": 3.0} for n in range(1, 5)]  # fmt: skip
    figures = {"accuracies/logps": 0.5, "logps/chosen": -3.0, "kl": 0.2, "rewards/accuracies": 0.5}
    found = {"value": 1.0, "se": 0.1, "count": 4}
    texts = dict.fromkeys(("kl", "length", "length_before", "longer", "ended", "ended_before"), found)
    sentinel = {"name": "kl", "step": 1, "value": 9.0, "bound": 5.0, "text": "too far"}
    return {
        "config.yaml": config,
        "summary.json": {
            "method": "dpo", "before": figures, "after": figures, "texts": texts, "train": metrics[-1], "steps": 4,
            "layout": {"layout": "tree", "why": "so"}, "counts": {"rows": 4, "train": 3}, "sentinels": [sentinel],
            "reference": {"found": 1, "computed": 2}, "memory_gib": 0.5, "seconds": {"total": 3.0, "train": 2.0},
        },
        "manifest.json": {"started": "now", "versions": {"torch": "2"}, "platform": "p", "data": {"schema": "s"}},
        "metrics.jsonl": metrics,
        "samples.jsonl": [{"prompt": "p", "before": "b one", "after": "b two"}],
        "rejections.jsonl": [{"source": "a:1", "reason": "r", "detail": "d", "id": ""}],
    }  # fmt: skip


def lay(folder: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        rows = content if name.endswith(".jsonl") and isinstance(content, list) else [content]
        (folder / name).write_bytes(b"\n".join(map(as_json, rows)))


def test_pages_of_runs(run_files: dict[str, Any], tmp_path: Path) -> None:
    """Any part of a run's files replaced by texts that a page must not obey, or by something else."""
    lay(tmp_path, run_files)
    plain = Page(Path(write_run_page(tmp_path)).read_text())

    @cases(0.002)
    @given(st.sampled_from(sorted(run_files)).flatmap(
        lambda n: st.tuples(st.just(n), st.one_of(altered_json(run_files[n], hostile), altered_json(run_files[n])))
    ))  # fmt: skip
    def check(change: tuple[str, Any]) -> None:
        lay(tmp_path, run_files | dict([change]))
        path = attempt(lambda: write_run_page(tmp_path))
        if path is not None:
            html = Path(path).read_text()
            shown = Page(html)
            assert not CONTROL.search(html)
            assert not shown.runs
            assert not shown.tags & {"img", "script"} - plain.tags
        attempt(lambda: [printable(line) for line in judge(RunFolder.open(tmp_path)).lines()])

    check()


def test_pages_about_data(tmp_path: Path) -> None:
    row = {"prompt": "Q?", "chosen": "A.", "rejected": "B."}
    (tmp_path / "a.jsonl").write_bytes(as_json(row))
    config = DataConfig(path=str(tmp_path / "a.jsonl"), cache_dir=str(tmp_path / "cache"))
    plain = Page(doctor_page([examine(config)]))

    @cases(0.002)
    @given(st.lists(altered_json(row, hostile), min_size=1, max_size=3), hostile)
    def check(rows: list[Any], name: str) -> None:
        (tmp_path / "a.jsonl").write_bytes(b"\n".join(map(as_json, [row, *rows, {**row, name: name, "prompt": name}])))
        report = attempt(lambda: examine(config))
        if report is not None:
            html = doctor_page([report])
            shown = Page(html)
            assert not CONTROL.search(html)
            assert not shown.runs
            assert not shown.tags & {"img", "script"} - plain.tags

    check()


@cases(0.1)
@given(st.one_of(st.text(), hostile))
def test_terminals(text: str) -> None:
    shown = attempt(lambda: printable(redact(text)))
    assert printable(shown) == shown
    assert not set(shown) & set(map(chr, [*range(9), *range(11, 32), *range(0x7F, 0xA0), 0x202E]))
    json.dumps(shown).encode()
