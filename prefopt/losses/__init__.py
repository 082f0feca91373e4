"""The menu: every built-in loss, by name. A loss is one file and one line here.

`prefopt.losses.DPO` (by class) and `prefopt.registry.load("dpo")` (by name) both work; files are imported on demand.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# name on the command line -> "file:Class"
MENU: dict[str, str] = {
    "dpo": "dpo:DPO",
    "ipo": "ipo:IPO",
    "ipo_sum": "ipo:IPOSum",
    "kto": "kto:KTO",
    "orpo": "orpo:ORPO",
    "sft": "sft:SFT",
    "simpo": "simpo:SimPO",
}


def load_class(name: str) -> Any:
    """The plugin class behind a name of the menu."""
    module, _, cls = MENU[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), cls)


def __getattr__(name: str) -> Any:
    for target in MENU.values():
        module, _, cls = target.partition(":")
        if cls == name:
            return getattr(import_module(f"{__name__}.{module}"), cls)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
