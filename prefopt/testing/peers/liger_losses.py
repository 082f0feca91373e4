"""Calls Liger-Kernel's fused losses: the hidden states are logits over two tokens, the output layer the identity."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version as version_of
from typing import Any

import torch
from liger_kernel.chunked_loss import (
    LigerFusedLinearCPOLoss,
    LigerFusedLinearDPOLoss,
    LigerFusedLinearKTOLoss,
    LigerFusedLinearORPOLoss,
    LigerFusedLinearSimPOLoss,
)
from torch import Tensor

from prefopt.testing.referee import Case, UnsupportedError, Way

Options = dict[str, Any]


def version() -> str:
    return f"Liger-Kernel {version_of('liger_kernel')}"


def _hidden(inputs: dict[str, Tensor], names: tuple[str, ...], lengths: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """(N, T, 2) logits under which token 1 has the log-probs of these sides, and (N, T) targets."""
    counts = torch.cat([inputs[name] for name in lengths])
    inside = torch.arange(int(counts.max())) < counts.unsqueeze(-1)
    tokens = torch.where(inside, (torch.cat([inputs[name] for name in names]) / counts).unsqueeze(-1), -0.5)
    return torch.stack([torch.log(-torch.expm1(tokens)), tokens], -1), torch.where(inside, 1, -100)


def _pairs(loss: Any, options: Callable[[Options], Options] = dict, **way: Any) -> Way:
    def call(case: Case) -> Tensor:
        lengths = ("chosen_num_tokens", "rejected_num_tokens")
        hidden, target = _hidden(case.inputs, ("chosen", "rejected"), lengths)
        identity = torch.eye(2, dtype=hidden.dtype)
        given: Options = {}
        if "ref_chosen" in case.inputs:
            reference, _ = _hidden(case.inputs, ("ref_chosen", "ref_rejected"), lengths)
            given = {"ref_input": reference, "ref_weight": identity}
        found, *_ = loss(compiled=False, **options(case.hyperparameters))(identity, hidden, target, **given)
        return found  # type: ignore[no-any-return]

    return Way(call, **way)


def _kto(case: Case) -> Tensor:
    if {case.hyperparameters[f"{side}_weight"] for side in ("desirable", "undesirable")} != {1.0}:
        raise UnsupportedError("it has no weights of labels")
    hidden, target = _hidden(case.inputs, ("completion",), ("num_tokens",))
    reference, _ = _hidden(case.inputs, ("ref_completion",), ("num_tokens",))
    identity = torch.eye(2, dtype=hidden.dtype)
    z0 = None
    if "mismatched" in case.inputs:  # the caller computes it
        z0 = (case.inputs["mismatched"] - case.inputs["ref_mismatched"]).mean().clamp(min=0).detach()
    loss = LigerFusedLinearKTOLoss(beta=case.hyperparameters["beta"], compiled=False, use_ref_model=True)
    found, *_ = loss(hidden, identity, target, None, case.inputs["desirable"], reference, identity, None, z0)
    return found  # type: ignore[no-any-return]


def _dpo(loss_type: str, **names: str) -> Way:
    loss = partial(LigerFusedLinearDPOLoss, loss_type=loss_type)
    return _pairs(loss, lambda given: {names.get(name, name): value for name, value in given.items()})


def _simpo(given: Options, *, absolute: bool) -> Options:
    gamma = given["gamma_beta_ratio"] * (given["beta"] if absolute else 1)
    likelihood = {"alpha": given["alpha"]} if "alpha" in given else {"compute_nll_loss": False}
    return {"beta": given["beta"], "gamma": gamma, **likelihood}


_EITHER_GAMMA = (
    _pairs(LigerFusedLinearSimPOLoss, partial(_simpo, absolute=False)),
    _pairs(LigerFusedLinearSimPOLoss, partial(_simpo, absolute=True), convention="γ absolute"),
)

PEER: dict[str, tuple[Way, ...]] = {
    "dpo": (_dpo("sigmoid"),),
    "hinge": (_dpo("hinge"),),
    "exo": (_dpo("exo_pair"),),
    "nca": (_dpo("nca_pair"),),
    "robust_dpo": (_dpo("robust"),),
    "bco_pair_zero": (_dpo("bco_pair"),),
    "sppo": (_dpo("sppo_hard"),),
    "apo_zero": (_dpo("apo_zero"),),
    "apo_down": (_dpo("apo_down"),),
    "discopop_lrml": (_dpo("discopop", tau="discopop_tau"),),
    "cpo": (_pairs(LigerFusedLinearCPOLoss),),
    "simpo": _EITHER_GAMMA,
    "cpo_simpo": _EITHER_GAMMA,
    "orpo": (_pairs(LigerFusedLinearORPOLoss, lambda given: {"beta": given["lam"]}),),
    "kto": (Way(_kto),),
    "kto_zero": (Way(_kto),),
}
