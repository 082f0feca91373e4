"""From scored completions to what a loss is called on: the one place that knows how records become examples.

Legend: C completions of some records in order (each record's own, then its mismatched ones), N their tokens laid end
to end, B examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from prefopt.engine.scoring import pad_tokens
from prefopt.errors import UserError
from prefopt.plugin import AnyLogps, Data, DemoLogps, ListLogps, Logps, LossOutput, Needs, PairLogps, UnpairedLogps


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

    def given(self) -> dict[str, Tensor]:
        """The fields that are there."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def map(self, of: Callable[[Tensor], Tensor]) -> Flat:
        """`of` applied to every field."""
        return Flat(**{name: of(value) for name, value in self.given().items()})

    def split(self, completions: Sequence[int]) -> list[Flat]:
        """Cut into parts of so many completions each."""
        tokens = [int(n.sum()) for n in torch.split(self.num_tokens, list(completions))]
        parts = {
            name: torch.split(value, list(completions) if name in PER_COMPLETION else tokens)
            for name, value in self.given().items()
        }
        return [Flat(**dict(zip(parts, part, strict=True))) for part in zip(*parts.values(), strict=True)]

    @staticmethod
    def cat(parts: Sequence[Flat]) -> Flat:
        """Parts end to end."""
        return Flat(**{name: torch.cat([part.given()[name] for part in parts]) for name in parts[0].given()})

    def logps(self) -> Logps:
        """As `Logps` over all C completions, per-token fields padded."""
        return Logps(**{
            name: value if name in PER_COMPLETION else pad_tokens(value, self.num_tokens)
            for name, value in self.given().items()
        })  # fmt: skip


PER_COMPLETION = ("sum", "num_tokens", "ref_sum")


@dataclass(frozen=True, eq=False)
class Examples:
    """The call of a loss: `logps`, and the record (by place) that each of its B examples came from."""

    logps: AnyLogps
    record: Tensor  # (B,) int64


@dataclass(frozen=True, eq=False)
class Outcome:
    """Some records, scored, and the loss on them."""

    facts: Sequence[Facts]
    flat: Flat
    examples: Examples
    output: LossOutput

    @property
    def weighted(self) -> Tensor:
        """(B,) the loss times the weight of the record it belongs to: what is optimised and reported."""
        loss = self.output.loss
        weights = torch.tensor([f.weight for f in self.facts], dtype=loss.dtype, device=loss.device)
        return loss * weights[self.examples.record]


def examples_of(facts: Sequence[Facts], flat: Flat, needs: Needs) -> Examples:
    """The examples that a loss with these needs sees in these records.

    Raises:
        UserError: scores that the loss needs are missing.
    """
    every = flat.logps()
    starts = list(accumulate((f.completions for f in facts[:-1]), initial=0))

    def column(values: Sequence[Any], dtype: torch.dtype = torch.long) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=flat.sum.device)

    def pick(indices: Sequence[Any]) -> Logps:
        index = column(indices)
        return Logps(**{name: value[index] for name, value in vars(every).items() if value is not None})

    keys = [f.key for f in facts]
    places = list(range(len(facts)))
    floats = flat.sum.dtype
    if needs.data is Data.PAIRS:
        scores = [f.scores for f in facts if f.scores is not None]
        if needs.scores and len(scores) < len(facts):
            missing = next(f.id for f in facts if f.scores is None)
            raise UserError(f"record {missing} has no scores, which this loss needs: give the data a score per side")
        scored = len(scores) == len(facts)
        pairs = PairLogps(
            chosen=pick(starts),
            rejected=pick([s + 1 for s in starts]),
            ids=column(keys),
            chosen_score=column([s[0] for s in scores], floats) if scored else None,
            rejected_score=column([s[1] for s in scores], floats) if scored else None,
        )
        return Examples(pairs, column(places))
    if needs.data is Data.DEMONSTRATIONS:
        return Examples(DemoLogps(chosen=pick(starts), ids=column(keys)), column(places))
    if needs.data is Data.UNPAIRED:
        items = [(place, k) for place, f in enumerate(facts) for k in range(f.own)]
        unpaired = UnpairedLogps(
            completion=pick([starts[p] + k for p, k in items]),
            desirable=column([_desirable(facts[p], k) for p, k in items], torch.bool),
            mismatched=pick([starts[p] + facts[p].own + k for p, k in items]) if needs.mismatched else None,
            ids=column([facts[p].key + k for p, k in items]),
        )
        return Examples(unpaired, column([p for p, _ in items]))
    width = max(f.own for f in facts)
    grid = [[s + (k if k < f.own else 0) for k in range(width)] for s, f in zip(starts, facts, strict=True)]
    mask = column([[k < f.own for k in range(width)] for f in facts], torch.bool)
    ranks = [f.scores if f.scores is not None else (1.0, 0.0) for f in facts]  # a pair is a list of two
    lists = ListLogps(
        completions=_blank(pick(grid), mask),
        scores=column([[*s, *[min(s)] * (width - len(s))] for s in ranks], floats),
        mask=mask,
        ids=column(keys),
    )
    return Examples(lists, column(places))


def _blank(logps: Logps, mask: Tensor) -> Logps:
    """Zeros, without gradient, where a list has no completion."""

    def blank(value: Tensor) -> Tensor:
        there = mask if value.ndim == mask.ndim else mask.unsqueeze(-1)
        return torch.where(there, value, torch.zeros_like(value))

    return Logps(**{name: blank(value) for name, value in vars(logps).items() if value is not None})


def _desirable(facts: Facts, item: int) -> bool:
    return item == 0 if facts.kind is Data.PAIRS else bool(facts.desirable)
