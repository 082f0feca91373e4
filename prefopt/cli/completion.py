"""`prefopt completion bash|zsh|fish`: shell completion of verbs, options, groups and their choices.

The script that it prints asks `prefopt` at every Tab (argcomplete's protocol). The words are collected once and cached,
so that an answer needs neither torch nor Hydra.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import argcomplete
from argcomplete.shell_integration import shellcode

from prefopt import __version__
from prefopt.cli.verbs import VERBS
from prefopt.common.cache import cache_dir, cached_json

SHELLS = ("bash", "zsh", "fish")
SETUP = """add it to the start file of your shell:
  bash  echo 'eval "$(prefopt completion bash)"' >> ~/.bashrc
  zsh   echo 'eval "$(prefopt completion zsh)"' >> ~/.zshrc
  fish  prefopt completion fish > ~/.config/fish/completions/prefopt.fish
"""
# Verbs, and the command `build` of `reference`, that take overrides.
OVERRIDES = ("train", "plan", "compare", "build", "eval")
FILES = ("path", "output_dir", "folder", "resume", "template")  # last parts of options that name files


def main(argv: list[str]) -> int:
    """Print the completion script of a shell."""
    parser = argparse.ArgumentParser(
        prog="prefopt completion",
        description="Shell completion of verbs, options, groups and their choices.",
        epilog=SETUP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS)
    print(shellcode(["prefopt"], shell=parser.parse_args(argv).shell))
    return 0


def answer() -> None:
    """Print the completions of the command line that the shell has put into the environment, and end the process."""
    index = load_index()
    parser = argparse.ArgumentParser(prog="prefopt")
    verbs = parser.add_subparsers()
    for verb, about in VERBS.items():
        _add_options(verbs.add_parser(verb, help=about, add_help=False), verb, index)
    argcomplete.autocomplete(parser, always_complete_options=False)


def _add_options(parser: argparse.ArgumentParser, verb: str, index: Mapping[str, Any]) -> None:
    about = index["verbs"].get(verb, {"options": [], "commands": []})
    for option in about["options"]:
        parser.add_argument(option, action="store_true")
    if about["commands"]:
        commands = parser.add_subparsers()
        for command in about["commands"]:
            _add_words(commands.add_parser(command, add_help=False), command, index)
    else:
        _add_words(parser, verb, index)


def _add_words(parser: argparse.ArgumentParser, verb: str, index: Mapping[str, Any]) -> None:
    words: Any = parser.add_argument("words", nargs="*")
    if verb in OVERRIDES:
        words.completer = lambda prefix, **_: complete_override(prefix, index)
    elif verb == "check":
        words.completer = lambda prefix, **_: [n for n in index["groups"]["loss"] if n.startswith(prefix)]
    elif verb == "completion":
        words.completer = lambda prefix, **_: [s for s in SHELLS if s.startswith(prefix)]


def complete_override(prefix: str, index: Mapping[str, Any]) -> list[str]:
    """Complete the beginning of an override.

    `lo` gives `loss=` and `loss.`, `loss=si` the losses of that name, `loss.b` the options, `model.path=./` files.
    """
    groups, keys = index["groups"], index["keys"]
    if "=" in prefix:
        key, value = prefix.split("=", 1)
        if key in groups:
            return [f"{key}={choice}" for choice in groups[key] if choice.startswith(value)]
        if key.rsplit(".", 1)[-1] in FILES:
            return [f"{key}={name}" for name in _files(value)]
        return []
    if "." in prefix:
        return [f"{key}=" for key in keys if key.startswith(prefix)]
    heads = dict.fromkeys(key.split(".")[0] + ("." if "." in key else "=") for key in keys)
    return [word for word in [*(f"{group}=" for group in groups), *heads] if word.startswith(prefix)]


def _files(prefix: str) -> list[str]:
    folder, _, name = prefix.rpartition("/")
    home = Path(folder or ("/" if prefix.startswith("/") else "."))
    try:
        found = sorted(p for p in home.iterdir() if p.name.startswith(name) and (name or p.name[0] != "."))
    except OSError:
        return []
    lead = f"{folder}/" if "/" in prefix else ""
    return [f"{lead}{p.name}{'/' if p.is_dir() else ''}" for p in found]


def load_index() -> dict[str, Any]:
    """Load the words to complete from the cache, or collect them: verbs, groups and option names.

    Returns:
        `verbs`: each verb's `options` and `commands`; `groups`: each group's choices; `keys`: all option names.
    """
    outside = sorted(f"{p.group}:{p.name}={p.value}" for g in ("prefopt.losses", "prefopt.conf")
                     for p in entry_points(group=g))  # fmt: skip
    newest = max(p.stat().st_mtime_ns for p in Path(__file__).parent.glob("*.py"))
    key = hashlib.blake2b(repr((__version__, list(VERBS), outside, newest)).encode(), digest_size=8).hexdigest()
    file = cache_dir() / "completion" / f"{key}.json"
    found: dict[str, Any] = cached_json(file, _collect, lambda kept: {"verbs", "groups", "keys"} <= kept.keys())
    return found


def _collect() -> dict[str, Any]:
    from prefopt.cli.completion_index import collect  # loads torch and Hydra

    return collect()
