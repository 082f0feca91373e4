"""`prefopt data check FILE...` checks preference data; `prefopt data show FILE --row ID` shows one record."""

from __future__ import annotations

import argparse
import json
import re
import sys
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from prefopt.errors import ThresholdError, UserError

OVERRIDE = re.compile(r"data(\.[\w.]+)?=.*", re.DOTALL)


def main(argv: list[str]) -> int:
    """Check data, or show one record.

    Raises:
        UserError: data that cannot be read, or an unknown option, finding or row.
        ThresholdError: `check` found a figure beyond its threshold.
    """
    parser = _parser()
    args, more = parser.parse_known_args(argv)  # settings may also follow options
    if unknown := [arg for arg in more if arg.startswith("-")]:
        parser.error(f"unknown option {unknown[0]}")
    args.what += more
    return int(args.run(args))


def _check(args: argparse.Namespace) -> int:
    with redirect_stdout(sys.stderr):  # some libraries print when they are imported
        from prefopt.data.doctor import examine, thresholds
        from prefopt.data.doctor.console import show
        from prefopt.engine.scoring import score
        from prefopt.models.load import ModelConfig, load_model
        from prefopt.report.data_check import doctor_page
        from prefopt.runs.resolve import resolve_path

        limits = thresholds(args.threshold)
        tokenizer = _tokenizer(args)
        scorer = partial(score, load_model(ModelConfig(path=resolve_path(args.model)))) if args.model else None
        reports = [examine(c, tokenizer=tokenizer, score=scorer, limits=limits) for c in _configs(args.what)]
    if args.html:
        Path(args.html).parent.mkdir(parents=True, exist_ok=True)
        Path(args.html).write_text(doctor_page(reports), encoding="utf-8")
    if args.json:
        print(json.dumps(_plain(reports), indent=2))
    else:
        for report in reports:
            show(report, Console())
    failed = [
        f"{report.name}: {finding.name} {finding.figure:g} (threshold {finding.threshold:g})"
        for report in reports
        for finding in report.findings.values()
        if not finding.ok
    ]
    if failed:
        raise ThresholdError(f"the check fails: {'; '.join(failed)}")
    return 0


def _plain(reports: list[Any]) -> dict[str, Any]:
    """One report as it is; several under `files`, with their sums before them and findings by `FILE/NAME`."""
    plain = [report.plain() for report in reports]
    if len(plain) == 1:
        return plain[0]  # type: ignore[no-any-return]
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


def _show(args: argparse.Namespace) -> int:
    from prefopt.data.reader import read
    from prefopt.data.show import find, show

    tokenizer = _tokenizer(args)
    for config in _configs(args.what):
        found = read(config)
        show(find(found.records, found.rejections, args.row), tokenizer, config, Console())
    return 0


def _configs(words: list[str]) -> list[Any]:
    """One DataConfig per file, with the overrides among the words, composed as `prefopt train` does."""
    from prefopt.config.compose import compose

    overrides = [word for word in words if OVERRIDE.fullmatch(word)]
    files = [word for word in words if not OVERRIDE.fullmatch(word)]
    chosen = [] if any(o.startswith("data=") for o in overrides) else ["data=auto"]
    if not files and not any(o.startswith(("data=", "data.path=", "data.mixture=")) for o in overrides):
        raise UserError("give a FILE, a folder or a hub name (or data=PRESET)")
    paths = [[f"data.path={json.dumps(file)}"] for file in files] or [[]]
    return [compose([*chosen, *path, *overrides]).data for path in paths]


def _tokenizer(args: argparse.Namespace) -> Any:
    from prefopt.models.load import ModelConfig, load_tokenizer
    from prefopt.runs.resolve import resolve_path

    path = args.tokenizer or args.model
    return load_tokenizer(ModelConfig(path=resolve_path(path))) if path else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prefopt data", description="Inspect preference data.")
    verbs = parser.add_subparsers(required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("what", nargs="+", metavar="FILE | data.KEY=VALUE",
                        help="files, folders or hub names, and settings such as data.max_length=512")  # fmt: skip
    shared.add_argument("--tokenizer", metavar="MODEL", help="a folder or hub id: also count tokens with its tokenizer")

    check = verbs.add_parser("check", parents=[shared], help="check data for what goes wrong in preference tuning")
    check.add_argument("--model", help="a folder or hub id: also score the data with the model")
    check.add_argument("--json", action="store_true", help="print one JSON object")
    check.add_argument("--html", metavar="FILE", help="write a page with histograms")
    check.add_argument("--threshold", metavar="FINDING=NUMBER", action="append", default=[],
                       help="fail (exit code 3) if the figure is beyond this; may be repeated")  # fmt: skip
    check.set_defaults(run=_check)

    show = verbs.add_parser("show", parents=[shared], help="show one record, as text and as tokens")
    show.add_argument("--row", required=True, help="an id, a row number counted from 0, or FILE:ROW")
    show.add_argument("--model", help="a folder or hub id whose tokenizer and chat template are used")
    show.set_defaults(run=_show)
    return parser
