"""Defines `TokenRecord`: a record in tokens, as planner, engine and trainer use it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefopt.plugin import Data

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRecord:
    """One record in tokens: the shared prompt once, then its completions.

    Attributes:
        id: the record's id.
        kind: the shape of the record.
        prompt: (P,) int32, P >= 1: the longest common token prefix of prompt and every completion.
        completions: one (n,) int32 per completion, n >= 1, the closing end-of-turn token included.
        desirable: the label of an UNPAIRED record.
        scores: one per completion, higher is better.
        weight: factor of this record's loss.
    """

    id: str
    kind: Data
    prompt: Ids
    completions: tuple[Ids, ...]
    desirable: bool | None = None
    scores: tuple[float, ...] | None = None
    weight: float = 1.0

    @property
    def stable_int(self) -> int:
        """The id as a non-negative 63-bit integer, a seed for draws that must not depend on the order of records."""
        return int.from_bytes(hashlib.blake2b(self.id.encode(), digest_size=8).digest(), "little") >> 1
