"""Arguments that several verbs share."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from prefopt.common.redact import one_line
from prefopt.errors import UserError

MODEL = "a run folder, a model or adapter folder, a hub id, package:NAME or world"


SETTING = re.compile(r"[+~]*[\w.]+=.*", re.DOTALL)  # KEY=VALUE; a folder such as p/a=b is none


class Parser(argparse.ArgumentParser):
    """A parser of arguments whose errors show no secret and no control character."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and what is wrong, and exit."""
        super().error(one_line(message))


def as_typed() -> str:
    """How `prefopt` is typed in this shell: by its path where the virtual environment is not active."""
    script = Path(sys.executable).with_name("prefopt")
    found = shutil.which("prefopt")
    if not script.exists() or (found and os.path.samefile(found, script)):
        return "prefopt"
    here = Path.cwd()
    return str(script.relative_to(here) if script.is_relative_to(here) else script)


def at_least(least: float, kind: Callable[[str], float] = int) -> Callable[[str], float]:
    """What reads the value of an option that is a number of at least `least`."""

    def number(text: str) -> float:
        value = kind(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"{text} must be at least {least:g}")
        return value

    return number


def number_of(key: str, value: str, least: float = 1, kind: Callable[[str], float] = int) -> Any:
    """The number that a setting of a verb's own has.

    Raises:
        UserError: it is none, or too small.
    """
    try:
        return at_least(least, kind)(value)
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise UserError(f"{key}={value} must be a number of at least {least:g}") from error


def add_sampling(parser: argparse.ArgumentParser, *, max_new_tokens: int, temperature: float | None) -> None:
    """Add the options of sampling, with their defaults; without one for the temperature the verb chooses it."""
    parser.add_argument("--max-new-tokens", type=at_least(1), default=max_new_tokens, metavar="N",
                        help="the longest text, in tokens (default: %(default)s)")  # fmt: skip
    shown = "1 for several samples of a prompt, else 0" if temperature is None else temperature
    parser.add_argument("--temperature", type=at_least(0, float), default=temperature,
                        help=f"0 always takes the most likely token (default: {shown})")  # fmt: skip
    parser.add_argument("--seed", type=at_least(0), default=0, help="seeds the sampling (default: %(default)s)")


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `prefopt.evaluate.texts.Sampling` that were given."""
    return {"max_new_tokens": args.max_new_tokens, "temperature": args.temperature, "seed": args.seed}


def split_settings(settings: Sequence[str], *own: str) -> tuple[Any, ...]:
    """Take the values of a verb's own keys (None if not given) out of the overrides, and return those left last.

    Raises:
        UserError: a word that is not `KEY=VALUE`.
    """
    found: dict[str, str | None] = dict.fromkeys(own)
    rest = []
    for setting in settings:
        key, _, value = setting.partition("=")
        if not SETTING.fullmatch(setting):
            raise UserError(f"{setting!r} is not a setting: write KEY=VALUE, such as data.path=pairs.jsonl")
        if key in found:
            found[key] = value
        else:
            rest.append(setting)
    return (*found.values(), rest)
