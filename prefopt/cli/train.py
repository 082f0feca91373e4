"""`prefopt train KEY=VALUE ...`: one run, or with -m one run for each combination of comma-separated values."""

from __future__ import annotations

import textwrap
from importlib.metadata import entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable

from prefopt.losses import MENU

HELP = """usage: prefopt train [-m] KEY=VALUE ...

  prefopt train loss=simpo loss.beta=2.5 model.path=MODEL data.path=FILE output_dir=DIR
  prefopt train -m loss=dpo,ipo loss.beta=0.1,0.5     one run for each combination
  prefopt train experiment=FILE.yaml                  settings from a file, as `prefopt import` writes them
  prefopt train loss=simpo --cfg job                  print all options and their values, and run nothing

Groups, each with the choices for GROUP=CHOICE:
"""
OUTSIDE = {"losses": "prefopt.losses", "presets": "prefopt.conf"}  # entry points of other packages


def main(argv: list[str]) -> int:
    """Compose the configuration and run it, or print what can be chosen."""
    if argv in (["-h"], ["--help"]):  # with other words Hydra shows what they compose
        print(HELP + "\n".join(_choices()))
        return 0
    from prefopt.cli.training import compose_and_run

    return compose_and_run(argv)


def _choices() -> list[str]:
    """The choices in each group, from the names of losses and of files."""
    found = {"loss": {*MENU, *(point.name for point in entry_points(group=OUTSIDE["losses"]))}}
    for package in ("prefopt.conf", *(point.value for point in entry_points(group=OUTSIDE["presets"]))):
        for group in files(package).iterdir():
            if group.is_dir() and (names := set(_presets(group, ""))):
                found.setdefault(group.name, set()).update(names)
    return [
        textwrap.fill(" ".join(sorted(names)), 100, initial_indent=f"  {group:12}", subsequent_indent=" " * 14,
                      break_on_hyphens=False)
        for group, names in sorted(found.items())
    ]  # fmt: skip


def _presets(folder: Traversable, prefix: str) -> list[str]:
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _presets(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".yaml") and not entry.name.startswith("_"):
            found.append(prefix + entry.name.removesuffix(".yaml"))
    return found
