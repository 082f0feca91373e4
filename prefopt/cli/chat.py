"""`prefopt chat MODEL`: talk with a model in the terminal, or pipe questions to it, one a line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from prefopt.errors import UserError

HELP = "/reset forgets what was said, /quit leaves (so does Ctrl-D), Ctrl-C stops an answer"


def main(argv: list[str]) -> int:
    """Read lines, print answers.

    Raises:
        UserError: a model that cannot be used.
    """
    parser = argparse.ArgumentParser(prog="prefopt chat", description="Talk with a model in the terminal. "
                                     "Questions can be piped in, one a line.", epilog=HELP)  # fmt: skip
    parser.add_argument("model", metavar="MODEL", help="a run's folder, a model or adapter folder, a hub id, "
                                                       "package:NAME or world")  # fmt: skip
    parser.add_argument("--system", metavar="TEXT", help="what the system turn says")
    parser.add_argument("--template", default="auto", help="as data.template: auto is the model's own chat template")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="of an answer (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.7, help="0: always the likeliest token (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (%(default)s)")
    args = parser.parse_args(argv)

    from prefopt.common.quiet import quiet
    from prefopt.evaluate.conversation import Conversation
    from prefopt.evaluate.texts import Sampling
    from prefopt.runs.read import open_model

    quiet(keep_data_bars=True)
    if args.max_new_tokens < 1 or not args.temperature >= 0:
        raise UserError("--max-new-tokens must be at least 1, and --temperature at least 0")
    sampling = Sampling(max_new_tokens=args.max_new_tokens, temperature=args.temperature, seed=args.seed)
    talk = Conversation(*open_model(args.model), sampling, system=args.system, template=args.template)
    _loop(talk, args.model)
    return 0


def _loop(talk: Any, name: str) -> None:
    from prefopt.common.redact import printable

    if sys.stdin.isatty():
        print(printable(f"{name}. {HELP}."))
        if not talk.in_turns:
            print("It has no chat template: it goes on with each text that you write, and remembers nothing.")
    for line in _lines():
        if line.startswith("/"):
            if line in ("/quit", "/exit"):
                return
            if line == "/reset":
                talk.reset()
            print("(forgotten)" if line == "/reset" else HELP, flush=True)
            continue
        if not line.strip():
            continue
        try:
            _answer(talk, line)
        except UserError as error:
            print(f"({error})", file=sys.stderr)
        except KeyboardInterrupt:
            print("\n(stopped)", flush=True)


def _answer(talk: Any, line: str) -> None:
    from prefopt.common.redact import printable

    def heard(piece: str) -> None:
        print(printable(piece), end="", flush=True)

    talk.ask(line, heard)
    print(flush=True)
    if talk.forgotten:
        print(f"(its context is full: it no longer sees the first {talk.forgotten} turns)", file=sys.stderr)


def _lines() -> Iterator[str]:
    """What is typed or piped in, until its end."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.rstrip("\n")
        return
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - arrow keys and history
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(/quit leaves)")
