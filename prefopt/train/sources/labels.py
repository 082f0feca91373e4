"""Makes records of samples and their rewards: lists with scores, or pairs by an explicit rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from prefopt.data.tokens import Ids, TokenRecord
from prefopt.errors import UserError
from prefopt.plugin import Data


class LabelRule(Enum):
    """How the rewards of two samples become a preference."""

    BT = "bt"  # one of them is drawn as chosen, with the Bradley-Terry probability
    SOFT = "soft"  # both orders, each weighted by its probability
    ARGMAX = "argmax"  # the one with the larger reward; equal rewards give both orders half a weight


@dataclass(frozen=True, eq=False)
class SampledPrompt:
    """The K samples of one prompt.

    Attributes:
        id: of the prompt.
        prompt: token ids.
        completions: token ids of each sample.
        rewards: (K,).
        draws: (K // 2,) numbers in [0, 1) that labels are drawn with.
        weight: of the prompt's records in the loss.
    """

    id: str
    prompt: Ids
    completions: tuple[Ids, ...]
    rewards: NDArray[np.float64]
    draws: NDArray[np.float64]
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Labelled:
    """Records, and for each the samples that its completions are: the place of their group, and places in it."""

    records: list[TokenRecord]
    group: list[int]
    members: list[tuple[int, ...]]


def labelled(groups: Sequence[SampledPrompt], data: Data, label: LabelRule, temperature: float) -> Labelled:
    """The records that a loss on `data` learns from.

    Lists have all samples of a prompt with their rewards as scores, demonstrations the best one (the first of equal
    ones). Pairs, which losses on labels take too, are the first two samples, the next two, and so on; weights make each
    pair of samples count once, whatever the rule.

    Args:
        groups: samples of each prompt.
        data: what the loss is defined on.
        label: the rule of pairs.
        temperature: of the Bradley-Terry probability sigmoid((r_1 - r_2) / temperature), in units of reward.
    """
    found = Labelled([], [], [])
    for place, group in enumerate(groups):
        if data is Data.LISTS:
            _add(found, place, group, range(len(group.completions)), Data.LISTS)
        elif data is Data.DEMONSTRATIONS:
            _add(found, place, group, [int(group.rewards.argmax())], Data.DEMONSTRATIONS)
        else:
            for pair in range(len(group.completions) // 2):
                for members, weight in _preferences(group, pair, label, temperature):
                    _add(found, place, group, members, Data.PAIRS, weight)
    pairs = sum(len(group.completions) // 2 for group in groups)
    if data in (Data.PAIRS, Data.UNPAIRED) and len(found.records) != pairs:
        share = len(found.records) / pairs  # the loss is a mean over records, and is to be one over pairs of samples
        found.records[:] = [replace(record, weight=record.weight * share) for record in found.records]
    return found


def win_rates(groups: Sequence[SampledPrompt], temperature: float) -> Labelled:
    """Lists of the policy's samples, which are the first of each pair; each is scored by the mean probability that it
    beats the prompt's samples of the opponent, which are the second."""
    found = Labelled([], [], [])
    for place, group in enumerate(groups):
        gaps = group.rewards[::2, None] - group.rewards[None, 1::2]
        wins = np.repeat((0.5 * (1 + np.tanh(0.5 * gaps / temperature))).mean(1), 2)
        own = range(0, len(group.completions), 2)
        _add(found, place, replace(group, rewards=wins), own, Data.LISTS)
    return found


def check_samples(data: Data, count: int) -> None:
    """Raise UserError for a number of samples that a loss on `data` cannot use."""
    if data is Data.LISTS and count < 2:
        raise UserError(f"rollout.num_generations={count}: a group needs at least 2 samples to compare")
    if data in (Data.PAIRS, Data.UNPAIRED) and (count < 2 or count % 2):
        raise UserError(f"rollout.num_generations={count} must be even: samples of a prompt are labelled in pairs")


def _preferences(
    group: SampledPrompt, pair: int, label: LabelRule, temperature: float
) -> list[tuple[tuple[int, int], float]]:
    """(chosen, rejected) and weight of each record of a pair of samples."""
    one, two = 2 * pair, 2 * pair + 1
    gap = group.rewards[one] - group.rewards[two]
    # The sigmoid of the gap, safe from overflow, or its limit at temperature 0.
    first = 0.5 * (1 + (np.sign(gap) if label is LabelRule.ARGMAX else np.tanh(0.5 * gap / temperature)))
    if label is LabelRule.BT:
        first = float(group.draws[pair] < first)
    return [((a, b), float(p)) for a, b, p in ((one, two, first), (two, one, 1 - first)) if p > 0]


def _add(
    found: Labelled, place: int, group: SampledPrompt, members: Sequence[int], kind: Data, weight: float = 1.0
) -> None:
    several = kind is not Data.DEMONSTRATIONS
    found.records.append(
        TokenRecord(
            id=f"{group.id}:{'>'.join(map(str, members))}" if kind is Data.PAIRS else group.id,
            kind=kind,
            prompt=group.prompt,
            completions=tuple(group.completions[k] for k in members),
            scores=tuple(float(group.rewards[k]) for k in members) if several else None,
            weight=weight * group.weight,
        )
    )
    found.group.append(place)
    found.members.append(tuple(members))
