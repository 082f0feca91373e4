"""From scored completions to what a loss is called on: the one place that knows how records become examples.

Legend: C completions of some records in order (each record's own, then its mismatched ones), B examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from prefopt.data.record import is_tie
from prefopt.data.tokens import TokenRecord
from prefopt.engine.values import Estimates
from prefopt.errors import UserError
from prefopt.plugin import AnyLogps, Data, DemoLogps, ListLogps, Logps, LossOutput, Needs, PairLogps, UnpairedLogps

OWN_SAMPLES = "this loss learns from the policy's own samples: train with source=rollouts and a reward"


@dataclass(frozen=True, eq=False)
class Drawn:
    """What is known of the completions of a record that the policy wrote.

    Attributes:
        logps: of each completion the log-prob of every token, as it was drawn.
        ended: whether each ended by itself.
        targets: what an on-policy loss made of the rollout for this record, (K,) or (K, T) each.
        values: the value model's estimates of each, where the loss reads them.
        opponent: whether each is an opponent's text; none where all are the policy's.
    """

    logps: tuple[NDArray[np.floating[Any]], ...]
    ended: tuple[bool, ...]
    targets: Mapping[str, NDArray[np.floating[Any]]] = field(default_factory=dict)
    values: Estimates | None = None
    opponent: tuple[bool, ...] = ()

    @property
    def sums(self) -> list[float]:
        """The log-prob of each completion."""
        return [float(tokens.sum(dtype=np.float64)) for tokens in self.logps]


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
    margin: float | None = None
    probability: float | None = None
    drawn: Drawn | None = None

    @classmethod
    def of(cls, record: TokenRecord, own: int, drawn: Drawn | None = None) -> Facts:
        """The facts of a record as it is fed, of whose completions the first `own` are its own."""
        return cls(
            id=record.id,
            key=record.stable_int,
            kind=record.kind,
            own=own,
            mismatched=len(record.completions) - own,
            desirable=record.desirable,
            scores=record.scores,
            weight=record.weight,
            margin=record.margin,
            probability=record.probability,
            drawn=drawn,
        )

    @property
    def completions(self) -> int:
        return self.own + self.mismatched

    def of_pair(self, name: str) -> float | None:
        """The `margin` of a pair, else the gap of its scores; its `probability`, else by Bradley-Terry; or `tied`."""
        if name == "tied":
            return is_tie(self.scores, self.margin, self.probability)
        if name == "probability" and self.probability is not None:
            return self.probability
        gap = self.scores[0] - self.scores[1] if self.margin is None and self.scores is not None else self.margin
        return gap if name == "margin" or gap is None else 0.5 * (1 + math.tanh(gap / 2))

    def unknown(self, needs: Needs) -> list[str]:
        """What a loss reads of a pair that is not known of this one."""
        return [name for name in needs.of_pairs if self.of_pair(name) is None]


def given(logps: Logps) -> dict[str, Tensor]:
    """The fields that are there."""
    return {name: value for name, value in vars(logps).items() if value is not None}


def change(logps: Logps, of: Callable[[Tensor], Tensor]) -> Logps:
    """`of` applied to every field."""
    return Logps(**{name: of(value) for name, value in given(logps).items()})


def split(logps: Logps, completions: Sequence[int]) -> list[Logps]:
    """Cut log-probs of C completions into parts of so many completions each."""
    parts = {name: torch.split(value, list(completions)) for name, value in given(logps).items()}
    return [Logps(**dict(zip(parts, part, strict=True))) for part in zip(*parts.values(), strict=True)]


def join(parts: Sequence[Logps]) -> Logps:
    """Parts end to end; fields per token are as wide as the widest part."""

    def joined(values: list[Tensor]) -> Tensor:
        if values[0].ndim == 1:
            return torch.cat(values)
        width = max(value.shape[1] for value in values)
        return torch.cat([F.pad(value, (0, width - value.shape[1])) for value in values])

    return Logps(**{name: joined([given(part)[name] for part in parts]) for name in given(parts[0])})


@dataclass(frozen=True, eq=False)
class Examples:
    """The call of a loss: `logps`, and the record (by place) that each of its B examples came from."""

    logps: AnyLogps
    record: Tensor  # (B,) int64


@dataclass(frozen=True, eq=False)
class BatchLoss:
    """Some records, scored, and the loss on them."""

    facts: Sequence[Facts]
    logps: Logps
    examples: Examples
    output: LossOutput

    @property
    def weighted(self) -> Tensor:
        """(B,) the loss times the weight of the record it belongs to: what is optimised and reported."""
        loss = self.output.loss
        weights = torch.tensor([f.weight for f in self.facts], dtype=loss.dtype, device=loss.device)
        return loss * weights[self.examples.record]


def examples_of(facts: Sequence[Facts], logps: Logps, needs: Needs) -> Examples:
    """The examples that a loss with these needs sees in these records.

    Args:
        facts: of the records.
        logps: of their C completions.
        needs: of the loss.

    Raises:
        UserError: scores, or facts of pairs, that the loss needs are missing.
    """
    starts = list(accumulate((f.completions for f in facts[:-1]), initial=0))
    build = {Data.PAIRS: _pairs, Data.UNPAIRED: _unpaired, Data.LISTS: _lists, Data.DEMONSTRATIONS: _demonstrations}
    return build[needs.data](facts, logps, starts, needs)


def _column(values: Sequence[Any], logps: Logps, dtype: torch.dtype = torch.long) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=logps.sum.device)


def _pick(logps: Logps, indices: Sequence[Any]) -> Logps:
    index = _column(indices, logps)
    return change(logps, lambda value: value[index])


def _each(facts: Sequence[Facts], logps: Logps) -> tuple[Tensor, Tensor]:
    """The records' ids as integers, and their places: of losses with one example a record."""
    return _column([f.key for f in facts], logps), _column(range(len(facts)), logps)


def _pairs(facts: Sequence[Facts], logps: Logps, starts: Sequence[int], needs: Needs) -> Examples:
    scores = [f.scores for f in facts if f.scores is not None]
    if needs.scores and len(scores) < len(facts):
        missing = next(f.id for f in facts if f.scores is None)
        raise UserError(f"record {missing} has no scores, which this loss needs: give the data a score per side")
    for f in facts:
        if unknown := f.unknown(needs):
            raise UserError(f"record {f.id} has no {unknown[0]} and no scores, and this loss needs either: name the "
                            f"column with 'data.fields={{{unknown[0]}: COLUMN}}'")  # fmt: skip
    of_pairs = {name: [f.of_pair(name) for f in facts] for name in needs.of_pairs}
    sides = [_column(side, logps, logps.sum.dtype) for side in zip(*scores, strict=True)]
    scored = len(scores) == len(facts)
    ids, places = _each(facts, logps)
    pairs = PairLogps(
        chosen=_pick(logps, starts),
        rejected=_pick(logps, [s + 1 for s in starts]),
        ids=ids,
        chosen_score=sides[0] if scored else None,
        rejected_score=sides[1] if scored else None,
        **{name: _column(v, logps, torch.bool if name == "tied" else logps.sum.dtype) for name, v in of_pairs.items()},
        opponent=_opponents(facts, logps) if needs.opponent else None,
    )
    return Examples(pairs, places)


def _opponents(facts: Sequence[Facts], logps: Logps) -> Tensor:
    """(B,) whether the chosen side is the opponent's."""
    found = [f.drawn.opponent[0] for f in facts if f.drawn is not None]
    if len(found) < len(facts):
        raise UserError(OWN_SAMPLES)
    return _column(found, logps, torch.bool)


def _demonstrations(facts: Sequence[Facts], logps: Logps, starts: Sequence[int], needs: Needs) -> Examples:
    ids, places = _each(facts, logps)
    return Examples(DemoLogps(chosen=_pick(logps, starts), ids=ids), places)


def _unpaired(facts: Sequence[Facts], logps: Logps, starts: Sequence[int], needs: Needs) -> Examples:
    items = [(place, k) for place, f in enumerate(facts) for k in range(f.own)]
    mismatched = [starts[p] + facts[p].own + k for p, k in items]
    unpaired = UnpairedLogps(
        completion=_pick(logps, [starts[p] + k for p, k in items]),
        desirable=_column([_desirable(facts[p], k) for p, k in items], logps, torch.bool),
        mismatched=_pick(logps, mismatched) if needs.mismatched else None,
        ids=_column([facts[p].key + k for p, k in items], logps),
    )
    return Examples(unpaired, _column([p for p, _ in items], logps))


def _lists(facts: Sequence[Facts], logps: Logps, starts: Sequence[int], needs: Needs) -> Examples:
    width = max(f.own for f in facts)
    grid = [[s + (k if k < f.own else 0) for k in range(width)] for s, f in zip(starts, facts, strict=True)]
    mask = _column([[k < f.own for k in range(width)] for f in facts], logps, torch.bool)
    scores = [f.scores if f.scores is not None else (1.0, 0.0) for f in facts]  # a pair is a list of two
    ids, places = _each(facts, logps)
    completions = _blank(_pick(logps, grid), mask)
    lists = ListLogps(
        completions=completions,
        scores=_column([[*s, *[min(s)] * (width - len(s))] for s in scores], logps, logps.sum.dtype),
        mask=mask,
        ids=ids,
        **(_as_drawn(facts, completions) if needs.on_policy else {}),
    )
    return Examples(lists, places)


def _as_drawn(facts: Sequence[Facts], now: Logps) -> dict[str, Any]:
    """What an on-policy loss reads of lists beside their log-probs as they are `now`.

    Raises:
        UserError: texts that the policy did not write.
    """
    drawn = [f.drawn for f in facts if f.drawn is not None]
    if len(drawn) < len(facts):
        raise UserError(OWN_SAMPLES)
    shape, like = now.sum.shape, now.sum
    columns = {name: [d.targets[name] for d in drawn] for name in drawn[0].targets}
    width = 0 if now.token is None else now.token.shape[-1]

    def by_token(texts: Iterable[NDArray[np.floating[Any]]]) -> Tensor:
        found = np.stack([_as_wide_as(values, width) for values in texts])
        return torch.from_numpy(found).to(like).reshape(*shape, width)

    values = [d.values for d in drawn if d.values is not None]
    return {
        "old": Logps(
            sum=torch.tensor([d.sums for d in drawn]).to(like).reshape(shape),
            num_tokens=now.num_tokens,
            ref_sum=now.ref_sum,
            token=None if now.token is None else by_token(tokens for d in drawn for tokens in d.logps),
            ref_token=now.ref_token,
            value=by_token(text for v in values for text in v.before) if values else None,
            value_after=torch.tensor([v.after for v in values]).to(like) if values else None,
        ),
        "ended": torch.tensor([d.ended for d in drawn], device=like.device),
        "targets": {
            name: torch.from_numpy(np.stack([_as_wide_as(v, width) if v.ndim > 1 else v for v in values])).to(like)
            for name, values in columns.items()
        },
    }


def _as_wide_as(values: NDArray[np.floating[Any]], width: int) -> NDArray[np.floating[Any]]:
    """Cut, or filled with zeros, to the width of the tokens at hand."""
    cut = values[..., :width]
    return np.pad(cut, [(0, 0)] * (cut.ndim - 1) + [(0, width - cut.shape[-1])])


def _blank(logps: Logps, mask: Tensor) -> Logps:
    """Zeros, without gradient, where a list has no completion."""

    def blank(value: Tensor) -> Tensor:
        there = mask if value.ndim == mask.ndim else mask.unsqueeze(-1)
        return torch.where(there, value, torch.zeros_like(value))

    return change(logps, blank)


def _desirable(facts: Facts, item: int) -> bool:
    return item == 0 if facts.kind is Data.PAIRS else bool(facts.desirable)
