"""Checks preference data, and shows single records."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from prefopt.common.escaping_console import Console
from prefopt.common.json_output import print_json
from prefopt.config.compose import compose
from prefopt.config.grammar import value_of
from prefopt.data.data_config import DataConfig
from prefopt.data.doctor import examine, thresholds
from prefopt.data.doctor.console import show as show_report
from prefopt.data.doctor.findings import Report
from prefopt.data.reader import read
from prefopt.data.show import find
from prefopt.data.show import show as show_record
from prefopt.data.views import to_view
from prefopt.errors import ThresholdError, UserError
from prefopt.report.data_check import doctor_page

OVERRIDE = re.compile(r"data(\.[\w.]+)?=.*", re.DOTALL)


def check(args: argparse.Namespace) -> int:
    """Print the report of each file, or write it as JSON or a page.

    Raises:
        ThresholdError: a figure is beyond its threshold.
    """
    limits = thresholds(args.threshold)
    tokenizer, scorer = _tokenizer(args), _models().scorer_of(args.model) if args.model else None
    reports = [examine(c, tokenizer=tokenizer, score=scorer, limits=limits) for c in _configs(args.what)]
    if args.html:
        Path(args.html).parent.mkdir(parents=True, exist_ok=True)
        Path(args.html).write_text(doctor_page(reports), encoding="utf-8")
    if args.json:
        print_json(_plain(reports), indent=2)
    else:
        for report in reports:
            show_report(report, Console())
        if args.html:
            print(f"page: {args.html}")
    failed = [
        f"{report.name}: {finding.name} {finding.figure:g} (threshold {finding.threshold:g})"
        for report in reports
        for finding in report.findings.values()
        if not finding.ok
    ]
    if failed:
        raise ThresholdError(f"the check fails: {'; '.join(failed)}")
    return 0


def _plain(reports: list[Report]) -> dict[str, Any]:
    """One report as it is; several under `files`, with their sums before them and findings by `FILE/NAME`."""
    plain = [report.plain() for report in reports]
    if len(plain) == 1:
        return plain[0]
    rejected: dict[str, Any] = {}
    for one in plain:
        for reason, found in one["rejected"].items():
            into = rejected.setdefault(reason, {"count": 0, "ids": []})
            into["count"] += found["count"]
            into["ids"] += found["ids"]
    return {
        "rows": sum(one["rows"] for one in plain),
        "kept": sum(one["kept"] for one in plain),
        "rejected": rejected,
        "findings": {f"{one['name']}/{name}": f for one in plain for name, f in one["findings"].items()},
        "ok": all(one["ok"] for one in plain),
        "files": plain,
    }


def show(args: argparse.Namespace) -> int:
    """Print one record of each file."""
    tokenizer = _tokenizer(args)
    for config in _configs(args.what):
        found = read(config)
        view = to_view(found.records, None, ties="keep", train_on=config.train_on, cache_dir=config.cache_dir)
        show_record(find(view.records, found.rejections, args.row), tokenizer, config, Console())
    return 0


def _configs(words: list[str]) -> list[DataConfig]:
    """One DataConfig per file, with the overrides among the words, composed as `prefopt train` does."""
    overrides = [word for word in words if OVERRIDE.fullmatch(word)]
    files = [word for word in words if not OVERRIDE.fullmatch(word)]
    chosen = [] if any(o.startswith("data=") for o in overrides) else ["data=auto"]
    if not files and not any(o.startswith(("data=", "data.path=", "data.mixture=")) for o in overrides):
        raise UserError("give a FILE, a folder or a hub name (or data=PRESET)")
    paths = [[f"data.path={value_of(file)}"] for file in files] or [[]]
    return [compose([*chosen, *path, *overrides]).data for path in paths]


def _tokenizer(args: argparse.Namespace) -> Any:
    path = args.tokenizer or args.model
    return _models().tokenizer_of(path) if path else None


def _models() -> Any:
    from prefopt.cli import data_models  # loads transformers

    return data_models
