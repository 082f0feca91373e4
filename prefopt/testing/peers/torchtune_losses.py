"""Calls torchtune's preference losses, modules on the sums of the policy and of the reference."""

from __future__ import annotations

from importlib.metadata import version as version_of
from typing import Any

from torch import Tensor
from torchtune.rlhf.loss import DPOLoss, RSOLoss

from prefopt.testing.peers.shared import pair_sums, renamed
from prefopt.testing.referee import Case, Way


def version() -> str:
    return f"torchtune {version_of('torchtune')}"


def _pairs(loss: Any, **names: str) -> Way:
    def call(case: Case) -> Tensor:
        values, *_ = loss(**renamed(case.hyperparameters, **names))(*pair_sums(case.inputs))
        return values  # type: ignore[no-any-return]

    return Way(call)


PEER: dict[str, tuple[Way, ...]] = {
    "dpo": (_pairs(DPOLoss),),
    "cdpo": (_pairs(DPOLoss),),
    "hinge": (_pairs(RSOLoss, beta="gamma"),),
}
