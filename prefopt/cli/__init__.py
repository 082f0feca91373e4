"""The command line: `prefopt VERB ...`. One module per verb, with `main(argv) -> exit code`."""

from __future__ import annotations

import errno
import os
import sys
from importlib import import_module

from prefopt.errors import PrefoptError, UserError, nearest

VERBS = {
    "train": "tune a model with a loss: prefopt train loss=simpo model=... data=...",
    "compare": "methods on the same data with an equal budget, and what can be told: compare losses=[dpo,ipo]",
    "plan": "what a run will take: steps, tokens, memory, time, and warnings, before it runs",
    "rerun": "a finished run again, and whether its numbers are identical: rerun FOLDER",
    "replay": "a batch that broke a run, looked at again: replay FILE",
    "report": "the page of a run: its verdict, figures, texts, data, cost",
    "eval": "held-out figures of any model, against any other, on any data",
    "sample": "what several models write behind the same prompts, side by side",
    "chat": "talk with a tuned model in the terminal",
    "demo": "see six methods on a small world with a known reward",
    "export": "the tuned model as a folder that transformers, vLLM and llama.cpp take: export RUN --to DIR",
    "losses": "the menu of losses, and `losses check NAME`",
    "data": "look at preference data: `data check FILE`, `data show FILE --row ID`",
    "import": "settings of TRL or LLaMA-Factory as ours: import FILE --to OURS.yaml",
    "doctor": "versions, and what is usable on this machine",
    "completion": 'completion for bash, zsh and fish: eval "$(prefopt completion bash)"',
    "reference": "the store of reference log-probs: build, list, verify, prune",
}


NO_PLACE = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}  # of a path, whatever the disk


def main(argv: list[str] | None = None) -> int:
    """Run a verb; a user's error is one line on stderr and exit code 2, never a traceback."""
    argv = sys.argv[1:] if argv is None else argv
    if "_ARGCOMPLETE" in os.environ:  # a shell asks at a Tab
        from prefopt.cli.completion import answer

        answer()
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if argv[0] in ("-V", "--version"):
        from prefopt import __version__

        print(f"prefopt {__version__}")
        return 0
    try:
        if argv[0] not in VERBS:
            raise UserError(f"unknown verb {argv[0]!r}{nearest(argv[0], list(VERBS))}; see `prefopt --help`")
        return int(import_module(f"prefopt.cli.{argv[0]}").main(argv[1:]))
    except PrefoptError as error:
        if os.environ.get("PREFOPT_TRACEBACK"):
            raise
        _complain(str(error))
        return error.exit_code
    except BrokenPipeError:
        return 1
    except OSError as error:  # a full disk, a folder that cannot be written
        if os.environ.get("PREFOPT_TRACEBACK"):
            raise
        if error.errno in NO_PLACE:
            _complain(f"{error}; give another name or folder")
            return UserError.exit_code
        _complain(f"{error}; free some space, or give another folder (output_dir=...)")
        return 1
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130


def _complain(message: str) -> None:
    """One line for a person: no secret in it, and nothing that steers a terminal."""
    from prefopt.common.redact import printable, redact

    print(f"prefopt: {printable(' '.join(redact(message).split()))}", file=sys.stderr)


def _usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {text}" for name, text in VERBS.items())
    return (
        f"usage: prefopt VERB ...\n\n{verbs}\n\n`prefopt VERB --help` tells more. PREFOPT_TRACEBACK=1 shows tracebacks."
    )
