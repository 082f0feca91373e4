"""The command line, `prefopt VERB ...`: one module per verb, each with `main(argv) -> exit code`."""

from __future__ import annotations

import errno
import io
import os
import resource
import sys
from contextlib import nullcontext, redirect_stdout
from importlib import import_module
from typing import Any

from prefopt import __version__
from prefopt.cli.overrides import check_files, check_overrides
from prefopt.cli.verbs import VERBS
from prefopt.common.json_output import only_json
from prefopt.common.redact import one_line
from prefopt.errors import PrefoptError, UserError, disk_full, first_line, nearest, of_machine, out_of_memory

INVALID_PATH = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}
LEAST_BYTES = 2 << 30  # of address space: torch and the others take most of it
NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT}  # the last: no folder can be made in /proc


def main(argv: list[str] | None = None) -> int:
    """Run a verb; an error that the user can fix is one line on stderr and an exit code, never a traceback."""
    own_process, argv = argv is None, sys.argv[1:] if argv is None else argv
    if "_ARGCOMPLETE" in os.environ:  # the shell asks for completions
        _module("completion").answer()
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"prefopt {__version__}")
        return 0
    try:
        with only_json(for_good=own_process) if _prints_json(argv[1:]) else nullcontext():
            return _run(argv[0], argv[1:])
    except Exception as error:
        if os.environ.get("PREFOPT_TRACEBACK") or not (isinstance(error, PrefoptError | OSError) or of_machine(error)):
            raise
        return _report(error)
    except KeyboardInterrupt:
        _print_error("interrupted")
        return 130


def _run(verb: str, argv: list[str]) -> int:
    if verb not in VERBS:
        raise UserError(f"unknown verb {verb!r}{nearest(verb, list(VERBS))}; see `prefopt --help`")
    check_overrides(verb, argv)
    check_files(verb, argv)
    check_address_space()
    return int(_module(verb).main(argv))


def _prints_json(argv: list[str]) -> bool:
    """Whether a verb is asked for JSON: by `--json`, which may be shortened, or by `progress=json`."""
    own = argv[: argv.index("--")] if "--" in argv else argv
    return any(word == "progress=json" or (len(word) > 2 and "--json".startswith(word)) for word in own)


def check_address_space() -> None:
    """Raise PrefoptError for a limit under which the libraries end the process while they are loaded."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_BYTES:
        raise PrefoptError(f"`ulimit -v` allows {limit >> 10} KiB of memory, too little for the libraries that prefopt "
                           f"loads: allow {LEAST_BYTES >> 10} or more")  # fmt: skip


def _module(verb: str) -> Any:
    with redirect_stdout(io.StringIO()):  # some libraries print a greeting when they are imported
        return import_module(f"prefopt.cli.{verb}")


def _report(error: Exception) -> int:
    """Print an error and return the exit code."""
    if isinstance(error, PrefoptError):
        _print_error(str(error))
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        return 1
    number = getattr(error, "errno", None)
    if number in INVALID_PATH:
        _print_error(f"{error}; give another name or folder")
        return UserError.exit_code
    if out_of_memory(error):
        _print_error(f"{first_line(error)}; there is too little memory (a limit such as `ulimit -v` counts): take a "
                     "smaller model, fewer tokens at once (batch.max_tokens), or a larger machine")  # fmt: skip
    elif disk_full(error):
        _print_error(f"{first_line(error)}; free some space, or give another folder (output_dir=..., PREFOPT_CACHE)")
    else:
        _print_error(f"{error}; give another folder (output_dir=...)" if number in NOT_ALLOWED else str(error))
    return 1


def _print_error(message: str) -> None:
    """Print one line on stderr, without secrets or control characters."""
    print(f"prefopt: {one_line(message)}", file=sys.stderr)


def _usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {about}" for name, about in VERBS.items())
    return (
        f"usage: prefopt VERB ...\n\n{verbs}\n\n"
        "`prefopt VERB --help` explains a verb. PREFOPT_TRACEBACK=1 shows tracebacks."
    )
