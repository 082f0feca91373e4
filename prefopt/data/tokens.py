"""Defines `TokenRecord`: a record in tokens, as planner, engine and trainer use it.

A completion is a sequence of spans: trained ones, which the assistant said, and given ones (turns of tools and users,
headers of the template), which the model reads and which no loss sees. A given token with the id t stands in it as ~t,
that is -1 - t: whatever stores, compares or hashes the ids of a completion has its spans with them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.plugin import Data

Ids = NDArray[np.int32]


def as_given(ids: Ids) -> Ids:
    """The ids of trained tokens as those of given ones, and the other way round."""
    return ~ids


def token_ids(completion: NDArray[Any]) -> NDArray[Any]:
    """(n,) the ids that the model reads."""
    return np.where(completion < 0, ~completion, completion)


def num_trained(completion: Ids) -> int:
    """The number of trained tokens."""
    return int(np.count_nonzero(completion >= 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRecord:
    """One record in tokens: the shared prompt once, then its completions.

    Attributes:
        id: the record's id.
        kind: the shape of the record.
        prompt: (P,) int32, P >= 1: the longest common token prefix of prompt and every completion.
        completions: one (n,) int32 per completion, n >= 1, the closing end-of-turn token included; the ids of
            given tokens are below 0. The last token is trained.
        desirable: the label of an UNPAIRED record.
        scores: one per completion, higher is better.
        weight: factor of this record's term in the loss, at least 0.
        margin: by how much the chosen side of a pair is better, in the data's own unit.
        probability: that the chosen side of a pair is the better one.
    """

    id: str
    kind: Data
    prompt: Ids
    completions: tuple[Ids, ...]
    desirable: bool | None = None
    scores: tuple[float, ...] | None = None
    weight: float = 1.0
    margin: float | None = None
    probability: float | None = None

    @property
    def stable_int(self) -> int:
        """The id as a non-negative 63-bit integer, a seed for draws that must not depend on the order of records."""
        return int.from_bytes(hashlib.blake2b(self.id.encode(), digest_size=8).digest(), "little") >> 1
