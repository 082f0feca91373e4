"""From rewards to records."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from prefopt.errors import UserError
from prefopt.losses import registry
from prefopt.losses.registry import load
from prefopt.plugin import Data, Logps, PairLogps
from prefopt.train.on_policy import prompts_of
from prefopt.train.sources.labels import LabelRule, SampledPrompt, check_samples, labelled, win_rates
from prefopt.train.sources.rollout_config import RolloutConfig
from prefopt.train.sources.rollouts import Rollouts
from tests.train import own_texts, tiny


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


def test_samples_are_scored_by_how_often_they_beat_the_opponent() -> None:
    """The policy's are the first and third of the four, the opponent's the second and fourth."""
    found = win_rates([group([0.0, 2.0, 1.0, 0.0])], 2.0)
    assert found.members == [(0, 2)]
    assert sides(found) == [(0, 2)]
    first, second = (0.26894142 + 0.5) / 2, (0.37754067 + 0.62245933) / 2  # sigmoid of -1, 0; of -1/2, 1/2
    assert found.records[0].scores == pytest.approx((first, second))


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


# ---- labels that are certain


FINITE = [name for name in registry.names() if getattr(registry.loss_class(name), "finite_optimum", False)]


@pytest.mark.parametrize("name", FINITE)
def test_a_finite_optimum_is_one(name: str) -> None:
    """Far beyond it, the loss no longer falls as the rejected side gets less likely."""

    def side(total: torch.Tensor) -> Logps:
        zeros = torch.zeros(2, dtype=torch.float64)
        return Logps(sum=total, num_tokens=torch.full((2,), 10), ref_sum=zeros)

    rejected = torch.full((2,), -3000.0, dtype=torch.float64, requires_grad=True)
    ones = torch.ones(2, dtype=torch.float64)
    pairs = PairLogps(chosen=side(0 * ones), rejected=side(rejected), ids=torch.arange(2), chosen_score=ones,
                      rejected_score=0 * ones)  # fmt: skip
    load(name)(pairs).loss.sum().backward()  # type: ignore[no-untyped-call]
    assert rejected.grad is not None
    assert (rejected.grad <= 0).all()


@pytest.mark.parametrize("name", ["dpo", "simpo", "orpo", "kto_zero"])
def test_labels_that_are_certain_are_refused_where_they_drive_a_loss_ever_further(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    sure = RolloutConfig(label=LabelRule.ARGMAX)
    with pytest.raises(UserError, match=r"ARGMAX: this loss has no finite optimum .* rollout\.allow_argmax=true"):
        sure.check(load(name))
    dataclasses.replace(sure, allow_argmax=True).check(load(name))
    assert "the policy drifts" in caplog.text
    sure.check(load("ipo_sum"))
    sure.check(load("plackett_luce"))


@pytest.mark.parametrize("data", [Data.PAIRS, Data.LISTS, Data.DEMONSTRATIONS, Data.UNPAIRED])
@pytest.mark.parametrize("rule", list(LabelRule))
def test_the_weight_of_a_prompt_is_that_of_its_records(data: Data, rule: LabelRule) -> None:
    plain = labelled([group([0.0, 1.0])], data, rule, 1.0).records
    heavy = labelled([dataclasses.replace(group([0.0, 1.0]), weight=3.0)], data, rule, 1.0).records
    assert [r.weight for r in heavy] == [3.0 * r.weight for r in plain]


def test_prompts_bring_their_weights(tmp_path: Path) -> None:
    """From the records of the data to those of a rollout, and into what a run is known by."""
    weighted = [dataclasses.replace(record, weight=2.0) for record in own_texts.PROMPTS]
    made = [tiny.make(load("rloo"), data, tmp_path, **own_texts.options()).sources["train"]
            for data in (own_texts.PROMPTS, weighted)]  # fmt: skip
    assert all(isinstance(one, Rollouts) for one in made)
    batches = [one.step(0) for one in made]
    assert [[batch.feed[i].weight for i in batch.index] for batch in batches] == [[1.0] * 3, [2.0] * 3]
    assert made[0].fingerprint() != made[1].fingerprint()


def test_records_of_one_prompt_with_different_weights_are_refused() -> None:
    one = own_texts.PROMPTS[0]
    other = dataclasses.replace(one, id="other", weight=2.0)
    assert len(prompts_of([one, one])) == 1
    with pytest.raises(
        UserError, match=rf"the records {one.id} and other have the same prompt.*\(1, 2\).*data\.ignore"
    ):
        prompts_of([one, other])
