"""`prefopt rerun RUN`: repeats a finished run in a new folder, and checks that the numbers are identical."""

from __future__ import annotations

from pathlib import Path

from prefopt.cli.arguments import Parser
from prefopt.common.redact import printable, redact
from prefopt.errors import ThresholdError
from prefopt.runs.run_path import check_run


def main(argv: list[str]) -> int:
    """Repeat a run; exit code 0 if the numbers are identical, 3 if not."""
    parser = Parser(prog="prefopt rerun", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of a finished run")
    parser.add_argument("--output-dir", type=Path, help="the folder of the repetition, which is resumed if it was "
                        "interrupted (default: FOLDER-rerun, with a number if that is taken)")  # fmt: skip
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model's own code, if the run did")
    args = parser.parse_args(argv)
    check_run(args.folder)
    from prefopt.cli.training import run_and_report
    from prefopt.runs.rerun import folder_for, rerun, shown

    folder: Path = args.folder
    out = args.output_dir or folder_for(folder)

    def log(line: str) -> None:
        print(printable(redact(line)), flush=True)

    log(f"repeating {folder} in {out}")
    comparison = rerun(folder, out, trust_remote_code=args.trust_remote_code, log=log, run=run_and_report)
    for line in shown(comparison):
        log(line)
    return 0 if comparison.identical else ThresholdError.exit_code
