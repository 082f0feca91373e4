"""Collects the words that shell completion offers, from the configuration and the help of every verb."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from prefopt.cli.verbs import VERBS
from prefopt.config.compose import OBJECTS, register
from prefopt.config.explain import group_choices, option_names
from prefopt.losses import registry


def collect() -> dict[str, Any]:
    """Collect verbs with their options and commands, groups with their choices, and option names."""
    register()
    options = [name for name in option_names([]) if not name.startswith("loss.")]
    options += [f"loss.{f.name}" for n in registry.names() for f in dataclasses.fields(registry.loss_class(n))]
    home = Path(str(files("prefopt.conf"))) / "experiment"
    experiments = [str(p.relative_to(home).with_suffix("")) for p in home.rglob("*.yaml")]
    groups = {group: group_choices(group) for group in (*OBJECTS, "trainer", "world")}
    return {
        "verbs": {verb: _options_of(verb) for verb in VERBS},
        "groups": {**groups, "experiment": sorted({*experiments, *group_choices("experiment")})},
        "keys": sorted(set(options)),
    }


def _options_of(verb: str) -> dict[str, list[str]]:
    """The options and commands of a verb, from its own help."""
    if verb == "train":
        return {"options": ["--cfg", "--help", "--multirun"], "commands": []}  # the most useful of Hydra's
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        import_module(f"prefopt.cli.{verb}").main(["--help"])
    shown = text.getvalue()
    positional = shown.partition("positional arguments:")[2].partition("\n\n")[0]
    return {
        "options": sorted(set(re.findall(r"--[a-z][\w-]+", shown))),
        "commands": re.findall(r"^    (\w[\w-]*)(?:  +\S|$)", positional, re.MULTILINE),
    }
