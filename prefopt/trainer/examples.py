"""From scored completions to what a loss is called on: the one place that knows how records become examples.

Legend: C completions of some records in order (each record's own, then its mismatched ones), N their tokens laid end
to end, B examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from prefopt.batch import AnyLogps, DemoLogps, ListLogps, Logps, PairLogps, UnpairedLogps
from prefopt.engine.scoring import pad_tokens
from prefopt.errors import UserError
from prefopt.plugin import Data, Needs


@dataclass(frozen=True, slots=True)
class Facts:
    """What a loss may know of a record besides its tokens."""

    id: str
    key: int  # the id as an integer
    kind: Data
    own: int  # own completions
    mismatched: int  # completions of another record
    desirable: bool | None
    scores: tuple[float, ...] | None
    weight: float

    @property
    def completions(self) -> int:
        return self.own + self.mismatched


@dataclass(frozen=True, eq=False)
class Flat:
    """Per completion, (C,): policy and reference sums and lengths; per token, (N,): what was asked for."""

    sum: Tensor
    num_tokens: Tensor
    ref_sum: Tensor | None = None
    token: Tensor | None = None
    ref_token: Tensor | None = None
    log_sum_sq: Tensor | None = None
    ref_entropy: Tensor | None = None
    kl: Tensor | None = None

    def logps(self) -> Logps:
        """As `Logps` over all C completions, per-token fields padded."""
        given: dict[str, Tensor] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None:
                per_token = f.name not in ("sum", "num_tokens", "ref_sum")
                given[f.name] = pad_tokens(value, self.num_tokens) if per_token else value
        return Logps(**given)


@dataclass(frozen=True, eq=False)
class Examples:
    """The call of a loss: `logps`, and the record (by place) that each of its B examples came from."""

    logps: AnyLogps
    record: Tensor  # (B,) int64


def examples_of(facts: Sequence[Facts], flat: Flat, needs: Needs) -> Examples:
    """The examples that a loss with these needs sees in these records.

    Raises:
        UserError: scores or labels that the loss needs are missing.
    """
    every = flat.logps()
    device = flat.sum.device
    starts: list[int] = []
    at = 0
    for f in facts:
        starts.append(at)
        at += f.completions

    def pick(indices: Sequence[int]) -> Logps:
        return _take(every, torch.tensor(indices, dtype=torch.long, device=device))

    def column(values: Sequence[Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    keys = [f.key for f in facts]
    records = list(range(len(facts)))
    floats = flat.sum.dtype
    if needs.scores:
        for f in facts:
            if f.scores is None and f.kind is not Data.PAIRS:
                raise UserError(f"record {f.id} has no scores, which this loss needs")
    if needs.data is Data.PAIRS:
        scores = [f.scores for f in facts]
        if needs.scores and any(s is None for s in scores):
            missing = next(f.id for f in facts if f.scores is None)
            raise UserError(f"record {missing} has no scores, which this loss needs: give the data a score per side")
        both = [s for s in scores if s is not None]
        return Examples(
            PairLogps(
                chosen=pick(starts),
                rejected=pick([s + 1 for s in starts]),
                ids=column(keys, torch.long),
                chosen_score=column([s[0] for s in both], floats) if len(both) == len(facts) else None,
                rejected_score=column([s[1] for s in both], floats) if len(both) == len(facts) else None,
            ),
            column(records, torch.long),
        )
    if needs.data is Data.DEMONSTRATIONS:
        return Examples(DemoLogps(chosen=pick(starts), ids=column(keys, torch.long)), column(records, torch.long))
    if needs.data is Data.UNPAIRED:
        items = [(r, k) for r, f in enumerate(facts) for k in range(f.own)]
        return Examples(
            UnpairedLogps(
                completion=pick([starts[r] + k for r, k in items]),
                desirable=column([_desirable(facts[r], k) for r, k in items], torch.bool),
                mismatched=pick([starts[r] + facts[r].own + k for r, k in items]) if needs.mismatched else None,
                ids=column([facts[r].key + k for r, k in items], torch.long),
            ),
            column([r for r, _ in items], torch.long),
        )
    width = max(f.own for f in facts)
    # An absent entry points at the list's first completion and is masked.
    grid = column(
        [[s + (k if k < f.own else 0) for k in range(width)] for s, f in zip(starts, facts, strict=True)], torch.long
    )
    mask = column([[k < f.own for k in range(width)] for f in facts], torch.bool)
    scores_of = [f.scores if f.scores is not None else (1.0, 0.0) for f in facts]  # a pair is a list of two
    padded = [[*s, *[min(s)] * (width - len(s))] for s in scores_of]
    return Examples(
        ListLogps(
            completions=_take(every, grid), scores=column(padded, floats), mask=mask, ids=column(keys, torch.long)
        ),
        column(records, torch.long),
    )


def count_examples(facts_own: int, needs: Needs) -> int:
    """Examples that a record with this many own completions makes."""
    return facts_own if needs.data is Data.UNPAIRED else 1


def _desirable(facts: Facts, item: int) -> bool:
    if facts.kind is Data.PAIRS:
        return item == 0
    assert facts.desirable is not None
    return facts.desirable


def _take(logps: Logps, index: Tensor) -> Logps:
    given = {f.name: getattr(logps, f.name) for f in fields(logps)}
    return Logps(**{name: value[index] for name, value in given.items() if value is not None})
