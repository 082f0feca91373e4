"""Calls OpenRLHF's loss classes, from models/loss.py alone: the rest of the package needs libraries for GPUs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from prefopt.testing.peers.shared import OVER_SAMPLES, Options, of_ours, over_samples, pair_sums, per_token, renamed
from prefopt.testing.referee import Case, UnsupportedError, Way


def _losses() -> Any:
    """models/loss.py without models/__init__.py, which imports flash-attn, and with an empty deepspeed."""
    spec = find_spec("openrlhf")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    package = ModuleType("openrlhf.models")
    package.__path__ = [str(Path(spec.submodule_search_locations[0]) / "models")]
    with patch.dict(sys.modules, {"openrlhf.models": package, "deepspeed": ModuleType("deepspeed")}):
        return import_module("openrlhf.models.loss")


LOSSES = _losses()


def version() -> str:
    return f"OpenRLHF {version_of('openrlhf')}"


def _pairs(options: Callable[[Options], Options] = dict, **way: Any) -> Way:
    def call(case: Case) -> Tensor:
        return LOSSES.DPOLoss(**options(case.hyperparameters))(*pair_sums(case.inputs))[0]  # type: ignore[no-any-return]

    return Way(call, **way)


def _sft(*, token_level_loss: bool) -> Way:
    def call(case: Case) -> Tensor:
        lengths = case.inputs["chosen_num_tokens"]
        tokens = per_token(case.inputs, "chosen", "chosen_num_tokens", int(lengths.max()))
        inside = (torch.arange(tokens.shape[-1]) < lengths.unsqueeze(-1)).to(tokens)
        return LOSSES.SFTLoss(token_level_loss=token_level_loss)(tokens, inside)  # type: ignore[no-any-return]

    return Way(call)


def _policy(case: Case) -> Tensor:
    """The mean over samples; the K samples of every prompt must be there, since it is a mean over all of them."""
    if case.hyperparameters["kl"] == "loss_k3":
        raise UnsupportedError("the trainer adds the KL to the loss")
    lengths = case.inputs["num_tokens"].flatten()
    tokens, old = (case.inputs[f"{prefix}completions_token"].flatten(0, 1) for prefix in ("", "old_"))
    inside = (torch.arange(tokens.shape[-1]) < lengths.unsqueeze(-1)).to(tokens)
    advantage = case.targets["advantage"].flatten().unsqueeze(-1).expand_as(tokens)
    epsilon = case.hyperparameters["epsilon"]
    loss = LOSSES.PolicyLoss(epsilon, epsilon, token_level_loss=False)
    return loss(tokens, old, advantage, action_mask=inside)[0]  # type: ignore[no-any-return]


def _ipo(given: Options) -> Options:
    return {"ipo": True, **renamed(given, tau="beta")}


PEER: dict[str, tuple[Way, ...]] = {
    "dpo": (_pairs(),),
    "cdpo": (_pairs(),),
    "ipo_sum": (_pairs(_ipo),),
    "ipo": (_pairs(_ipo, convention="not divided by lengths", expected=lambda case: of_ours("ipo_sum", case)),),
    "sft": (_sft(token_level_loss=False),),
    "sft_token_mean": (_sft(token_level_loss=True),),
    "grpo": (Way(_policy), Way(_policy, OVER_SAMPLES, partial(over_samples, "grpo"))),
}
