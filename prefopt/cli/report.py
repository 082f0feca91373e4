"""`prefopt report RUN...`: writes the page of a run again, from its files."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout


def main(argv: list[str]) -> int:
    """Write `report.html` into each folder and print the verdict.

    Raises:
        UserError: a folder that is not a run's.
    """
    parser = argparse.ArgumentParser(
        prog="prefopt report", description="Write the page of a run again, from its files, and print the verdict."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object per run")
    args = parser.parse_args(argv)
    with redirect_stdout(sys.stderr):  # some libraries print when they are imported
        from prefopt.report.run import write_run_page
        from prefopt.report.verdict import judge
        from prefopt.runs.run_folder import RunFolder

    for folder in args.runs:
        run = RunFolder.open(folder)
        page, verdict = write_run_page(run.path), judge(run)
        if args.json:
            print(json.dumps({"run": folder, "page": page, **verdict.plain()}))
        else:
            print("\n".join([*verdict.lines(), f"the page: {page}"]))
    return 0
