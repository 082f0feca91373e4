"""`prefopt completion bash|zsh|fish`: completion of verbs, their options, groups, choices and option names.

The script that it prints asks `prefopt` itself at every Tab (argcomplete's protocol). What there is to complete is
found once and kept in the cache, so that an answer needs neither torch nor Hydra.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import re
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

SHELLS = ("bash", "zsh", "fish")
SETUP = """add it to your shell's start file:
  bash  echo 'eval "$(prefopt completion bash)"' >> ~/.bashrc
  zsh   echo 'eval "$(prefopt completion zsh)"' >> ~/.zshrc
  fish  prefopt completion fish > ~/.config/fish/completions/prefopt.fish
"""
# Verbs, and of `reference` the command, that take overrides.
OVERRIDES = ("train", "plan", "compare", "build", "eval")
FILES = ("path", "output_dir", "folder", "resume", "deepspeed", "template")  # last parts of options that name files


def main(argv: list[str]) -> int:
    """Print the script of a shell."""
    parser = argparse.ArgumentParser(
        prog="prefopt completion",
        description="Completion of verbs, options, groups and their choices.",
        epilog=SETUP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS)
    args = parser.parse_args(argv)
    from argcomplete.shell_integration import shellcode

    print(shellcode(["prefopt"], shell=args.shell))
    return 0


def answer() -> None:
    """What the shell asked for by its environment; ends the process."""
    import argcomplete

    from prefopt.cli import VERBS

    index = known()
    parser = argparse.ArgumentParser(prog="prefopt")
    verbs = parser.add_subparsers()
    for verb, about in VERBS.items():
        _complete(verbs.add_parser(verb, help=about, add_help=False), verb, index)
    argcomplete.autocomplete(parser, always_complete_options=False)


def _complete(parser: argparse.ArgumentParser, verb: str, index: Mapping[str, Any]) -> None:
    about = index["verbs"].get(verb, {"options": [], "commands": []})
    for option in about["options"]:
        parser.add_argument(option, action="store_true")
    if about["commands"]:
        commands = parser.add_subparsers()
        for command in about["commands"]:
            _words(commands.add_parser(command, add_help=False), command, index)
    else:
        _words(parser, verb, index)


def _words(parser: argparse.ArgumentParser, verb: str, index: Mapping[str, Any]) -> None:
    words = parser.add_argument("words", nargs="*")
    if verb in OVERRIDES:
        words.completer = lambda prefix, **_: overrides(prefix, index)  # type: ignore[attr-defined]
    elif verb == "check":
        words.completer = lambda prefix, **_: [n for n in index["groups"]["loss"] if n.startswith(prefix)]  # type: ignore[attr-defined]
    elif verb == "completion":
        words.completer = lambda prefix, **_: [s for s in SHELLS if s.startswith(prefix)]  # type: ignore[attr-defined]


def overrides(prefix: str, index: Mapping[str, Any]) -> list[str]:
    """Completions of the beginning of an override.

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


def known() -> dict[str, Any]:
    """Verbs with their options and commands, groups with their choices, and options with the words they take."""
    from prefopt import __version__
    from prefopt.cli import VERBS
    from prefopt.common.cache import cache_dir
    from prefopt.common.files import write_text

    outside = sorted(f"{p.group}:{p.name}={p.value}" for g in ("prefopt.losses", "prefopt.conf")
                     for p in entry_points(group=g))  # fmt: skip
    newest = max(p.stat().st_mtime_ns for p in Path(__file__).parent.glob("*.py"))
    key = hashlib.blake2b(repr((__version__, list(VERBS), outside, newest)).encode(), digest_size=8).hexdigest()
    file = cache_dir() / "completion" / f"{key}.json"
    try:
        found = json.loads(file.read_text())
        if {"verbs", "groups", "keys"} <= found.keys():
            return dict(found)
    except (OSError, ValueError, AttributeError):
        pass
    found = _find()
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(found))
    return found


def _find() -> dict[str, Any]:
    import dataclasses
    from importlib.resources import files

    from prefopt.cli import VERBS
    from prefopt.config.compose import OBJECTS, _choices, _keys, register
    from prefopt.losses import registry

    register()
    options = [name for name in _keys([]) if not name.startswith("loss.")]
    options += [f"loss.{f.name}" for n in registry.names() for f in dataclasses.fields(registry.loss_class(n))]
    home = Path(str(files("prefopt.conf"))) / "experiment"
    experiments = [str(p.relative_to(home).with_suffix("")) for p in home.rglob("*.yaml")]
    groups = {group: _choices(group) for group in (*OBJECTS, "trainer")}
    return {
        "verbs": {verb: _help_of(verb) for verb in VERBS},
        "groups": {**groups, "experiment": sorted({*experiments, *_choices("experiment")})},
        "keys": sorted(set(options)),
    }


def _help_of(verb: str) -> dict[str, list[str]]:
    """Options and commands of a verb, from its own help."""
    if verb == "train":
        return {"options": ["--cfg", "--help", "--multirun"], "commands": []}  # the most useful of Hydra's
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        import_module(f"prefopt.cli.{verb}").main(["--help"])
    said = text.getvalue()
    positional = said.partition("positional arguments:")[2].partition("\n\n")[0]
    return {
        "options": sorted(set(re.findall(r"--[a-z][\w-]+", said))),
        "commands": re.findall(r"^    (\w[\w-]*)(?:  +\S|$)", positional, re.MULTILINE),
    }
