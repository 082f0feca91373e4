"""From rewards to records."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from prefopt.errors import UserError
from prefopt.plugin import Data
from prefopt.train.sources.labels import LabelRule, SampledPrompt, check_samples, labelled


def group(rewards: Sequence[float], draws: Sequence[float] = (0.5, 0.5), name: str = "p") -> SampledPrompt:
    texts = tuple(np.array([k, 2], np.int32) for k in range(10, 10 + len(rewards)))
    return SampledPrompt(
        name, np.array([1, 5], np.int32), texts, np.array(rewards), np.array(draws[: len(rewards) // 2])
    )


def sides(found: object) -> list[tuple[int, ...]]:
    return [tuple(int(c[0]) - 10 for c in record.completions) for record in found.records]  # type: ignore[attr-defined]


def test_pairs_are_the_first_two_texts_and_the_next_two() -> None:
    found = labelled([group([0.0, 1.0, 3.0, 2.0])], Data.PAIRS, LabelRule.ARGMAX, 1.0)
    assert sides(found) == [(1, 0), (2, 3)]
    assert found.members == [(1, 0), (2, 3)]
    assert found.records[0].scores == (1.0, 0.0)
    assert [record.id for record in found.records] == ["p:1>0", "p:2>3"]


@pytest.mark.parametrize(("draw", "chosen"), [(0.26, 0), (0.28, 1)])
def test_bradley_terry_draws_with_the_probability_of_the_gap(draw: float, chosen: int) -> None:
    # sigmoid(-2 / 2) = 0.269
    found = labelled([group([0.0, 2.0], [draw])], Data.PAIRS, LabelRule.BT, 2.0)
    assert sides(found)[0][0] == chosen


def test_soft_labels_weigh_both_orders() -> None:
    found = labelled([group([0.0, 2.0])], Data.PAIRS, LabelRule.SOFT, 2.0)
    assert sides(found) == [(0, 1), (1, 0)]
    assert [record.weight for record in found.records] == pytest.approx([2 * 0.26894142, 2 * 0.73105858])


def test_equal_rewards_are_no_win() -> None:
    """Trained as wins, they would teach the order in which the texts were drawn."""
    found = labelled([group([1.0, 1.0]), group([0.0, 1.0], name="q")], Data.PAIRS, LabelRule.ARGMAX, 1.0)
    assert sides(found) == [(0, 1), (1, 0), (1, 0)]
    assert [record.weight for record in found.records] == pytest.approx([0.75, 0.75, 1.5])  # a mean over the two pairs


def test_lists_have_every_text_and_demonstrations_the_best() -> None:
    groups = [group([0.0, 2.0, 2.0])]
    (lists,) = labelled(groups, Data.LISTS, LabelRule.BT, 1.0).records
    assert (lists.kind, lists.scores, len(lists.completions)) == (Data.LISTS, (0.0, 2.0, 2.0), 3)
    best = labelled(groups, Data.DEMONSTRATIONS, LabelRule.BT, 1.0)
    assert (best.records[0].kind, best.members) == (Data.DEMONSTRATIONS, [(1,)])


@pytest.mark.parametrize(
    ("data", "count", "fine"),
    [(Data.LISTS, 1, False), (Data.LISTS, 3, True), (Data.PAIRS, 3, False), (Data.UNPAIRED, 2, True),
     (Data.DEMONSTRATIONS, 1, True)],
)  # fmt: skip
def test_numbers_of_samples(data: Data, count: int, fine: bool) -> None:
    if fine:
        check_samples(data, count)
    else:
        with pytest.raises(UserError, match=rf"rollout\.num_generations={count}"):
            check_samples(data, count)
