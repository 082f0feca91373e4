"""`prefopt chat MODEL`: chat with a model in the terminal, or pipe questions to it, one per line."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from prefopt.cli.arguments import MODEL, Parser, add_sampling, sampling_options, split_settings
from prefopt.common.redact import printable
from prefopt.errors import UserError
from prefopt.runs.run_path import check_model

with contextlib.suppress(ImportError):
    import readline  # noqa: F401 - gives `input()` arrow keys and history

HELP = ("/reset starts a new conversation, /image FILE shows an image with the next question, /quit or Ctrl-D ends the "
        "chat, Ctrl-C stops an answer")  # fmt: skip


def main(argv: list[str]) -> int:
    """Read lines and print answers.

    Raises:
        UserError: a model that cannot be used.
    """
    parser = Parser(prog="prefopt chat", epilog=HELP,
                                     description="Chat with a model in the terminal, or pipe questions to it, one per "
                                                 "line.")  # fmt: skip
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE",
                        help="how prompts are written, by default as in the run's training: data.template, "
                             "data.chat_template_kwargs={enable_thinking: false}, data.date")  # fmt: skip
    add_sampling(parser, max_new_tokens=256, temperature=0.7)
    args = parser.parse_intermixed_args(argv)
    *_, settings = split_settings(args.settings)
    check_model(args.model)
    from prefopt.cli.loading import format_of
    from prefopt.common.quiet import quiet
    from prefopt.evaluate.conversation import Conversation
    from prefopt.evaluate.texts import Sampling
    from prefopt.runs.run_folder import open_model

    quiet(keep_data_bars=True)
    sampling = Sampling(**sampling_options(args))
    written = format_of(args.model, settings)
    conversation = Conversation(*open_model(args.model), sampling, system=args.system, written=written)
    _chat(conversation, args.model)
    return 0


def _chat(conversation: Any, name: str) -> None:
    if sys.stdin.isatty():
        print(printable(f"{name}. {HELP}."))
        if not conversation.in_turns:
            print("The model has no chat template: it continues each text that you write, and remembers nothing.")
    images: list[str] = []
    for line in _lines():
        if line.startswith("/image "):
            images.append(line.removeprefix("/image ").strip())
            continue
        if line.startswith("/"):
            if line in ("/quit", "/exit"):
                return
            if line == "/reset":
                conversation.reset()
            print("(new conversation)" if line == "/reset" else HELP, flush=True)
            continue
        if not line.strip():
            continue
        try:
            _answer(conversation, line, images)
        except UserError as error:
            print(printable(f"({error})"), file=sys.stderr)
        except KeyboardInterrupt:
            print("\n(stopped)", flush=True)


def _answer(conversation: Any, line: str, images: list[str]) -> None:
    shown = list(images)
    images.clear()
    conversation.ask(line, lambda piece: print(printable(piece), end="", flush=True), images=shown)
    print(flush=True)
    if conversation.forgotten:
        print(f"(the context is full: the first {conversation.forgotten} turns are left out)", file=sys.stderr)


def _lines() -> Iterator[str]:
    """Yield the lines that are typed or piped in."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.rstrip("\n")
        return
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(/quit ends the chat)")
