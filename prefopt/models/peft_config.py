"""Defines the settings of the Hydra group `peft`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from prefopt.common.option_limits import Limits, at_least, check_limits, one_of
from prefopt.errors import UserError

ALL_LINEAR = "all-linear"  # every linear layer but the output embedding


@dataclass(kw_only=True)
class PeftConfig:
    """Which weights are trained: all of the model's, or an adapter's. The defaults of the group `peft`."""

    LIMITS: ClassVar[Limits] = {
        "method": one_of("none", "lora", "dora"), "r": at_least(1), "alpha": at_least(1),
    }  # fmt: skip

    method: str = "none"  # none: all weights; lora (Hu et al., 2021); dora (Liu et al., 2024)
    r: int = 16  # rank of the update of each matrix
    alpha: int = 32  # the update is alpha / r * B A
    target_modules: list[str] = field(default_factory=lambda: [ALL_LINEAR])  # names of layers, or all-linear

    def check(self) -> None:
        """Raise UserError for a value that cannot be used."""
        check_limits(self.LIMITS, self, "peft")
        if not self.target_modules:
            raise UserError("peft.target_modules is empty: name layers, or leave it out for all linear ones")
        if ALL_LINEAR in self.target_modules and len(self.target_modules) > 1:
            raise UserError(f"peft.target_modules: {ALL_LINEAR} already has every linear layer; give it alone")
