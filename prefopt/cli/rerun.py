"""`prefopt rerun FOLDER`: a finished run again, into a new folder, and whether the numbers are identical."""

from __future__ import annotations

import argparse
from pathlib import Path


def main(argv: list[str]) -> int:
    """Exit code 0: identical; 3: not."""
    parser = argparse.ArgumentParser(prog="prefopt rerun", description=__doc__)
    parser.add_argument("folder", type=Path, help="of a finished run")
    parser.add_argument("--output-dir", type=Path, help="of the repetition, which goes on if it was interrupted; by "
                        "default FOLDER-rerun, or with a number")  # fmt: skip
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model's own code, if the run did")
    arguments = parser.parse_args(argv)
    from prefopt.common.redact import printable, redact
    from prefopt.errors import ThresholdError
    from prefopt.runs.rerun import folder_for, rerun, shown

    folder: Path = arguments.folder
    out = arguments.output_dir or folder_for(folder)

    def say(line: str) -> None:
        print(printable(redact(line)), flush=True)

    say(f"{folder} again, in {out}")
    comparison = rerun(folder, out, trust_remote_code=arguments.trust_remote_code, say=say)
    for line in shown(comparison):
        say(line)
    return 0 if comparison.identical else ThresholdError.exit_code
