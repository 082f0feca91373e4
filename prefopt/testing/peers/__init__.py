"""The libraries that `prefopt referee` can judge, each a module with `version()` and `PEER`."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from prefopt.errors import UserError, nearest

# name on the command line -> (module here, the package that must be installed)
PEERS = {
    "trl": ("trl_losses", "trl"),
    "liger": ("liger_losses", "liger_kernel"),
    "openrlhf": ("openrlhf_losses", "openrlhf"),
    "torchtune": ("torchtune_losses", "torchtune"),
    "mlx_lm_lora": ("mlx_losses", "mlx_lm_lora"),
    "oxrl": ("oxrl_losses", "oxrl"),
}


def load_peer(name: str) -> Any:
    """The module of a peer.

    Raises:
        UserError: an unknown name, or a library that is not installed.
    """
    known = name.lower().replace("-", "_")
    if known not in PEERS:
        raise UserError(f"no adapter for {name!r}{nearest(known, PEERS)}; there are: {', '.join(PEERS)}")
    module, package = PEERS[known]
    if find_spec(package) is None:
        raise UserError(f"{package} is not installed: install it, then run `prefopt referee {known}` again")
    if known == "trl" and tuple(int(part) for part in version("trl").split(".")[:2]) < (0, 29):
        module = "trl_old_losses"  # each loss was a method of its trainer
    return import_module(f"{__name__}.{module}")
