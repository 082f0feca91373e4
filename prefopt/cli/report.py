"""`prefopt report RUN...`: writes the page of a run again, from its files."""

from __future__ import annotations

from typing import Any

from prefopt.cli.arguments import Parser
from prefopt.common.json_output import print_json
from prefopt.common.redact import printable
from prefopt.runs.run_path import check_run


def main(argv: list[str]) -> int:
    """Write `report.html` into each folder and print the verdict.

    Raises:
        UserError: a folder that is not a run's.
    """
    parser = Parser(
        prog="prefopt report", description="Write the page of a run again, from its files, and print the verdict."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder")
    parser.add_argument("--json", action="store_true", help="print a JSON object; a list of them for several runs")
    args = parser.parse_args(argv)
    for folder in args.runs:
        check_run(folder)
    from prefopt.report.run_page import write_run_page
    from prefopt.report.verdict import judge
    from prefopt.runs.run_folder import RunFolder

    found: list[dict[str, Any]] = []
    for folder in args.runs:
        run = RunFolder.open(folder)
        page, verdict = write_run_page(run.path), judge(run)
        found.append({"run": folder, "page": page, **verdict.plain()})
        if not args.json:
            print(printable("\n".join([*verdict.lines(), f"the page: {page}"])))
    if args.json:
        print_json(found if len(found) > 1 else found[0])
    return 0
