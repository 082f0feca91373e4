"""The planner's invariants, on any lengths."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.data.tokens import TokenRecord
from prefopt.engine.packing import Cost, EpochPlan, Lengths, prompt_keys, row_tokens, same_prompt
from prefopt.errors import UserError
from prefopt.plugin import Data


def lengths_of(records: list[tuple[int, list[int]]], keys: list[int] | None = None) -> Lengths:
    return Lengths(
        prompt=np.array([p for p, _ in records]),
        completions=np.array([n for _, completions in records for n in completions]),
        offsets=np.cumsum([0, *(len(completions) for _, completions in records)]),
        prompt_key=None if keys is None else np.array(keys),
    )


def records_strategy(min_completions: int = 1) -> st.SearchStrategy[list[tuple[int, list[int]]]]:
    completions = st.lists(st.integers(1, 40), min_size=min_completions, max_size=4)
    return st.lists(st.tuples(st.integers(1, 60), completions), min_size=1, max_size=60)


@st.composite
def plans(draw: st.DrawFn) -> EpochPlan:
    records = draw(records_strategy())
    keys = None
    if draw(st.booleans()):  # records of one key have one prompt
        keys = [draw(st.integers(0, 5)) for _ in records]
        prompt_of = dict(zip(keys, (p for p, _ in records), strict=True))
        records = [(prompt_of[key], completions) for key, (_, completions) in zip(keys, records, strict=True)]
    layout: Any = draw(st.sampled_from(["tree", "padded"]))
    lengths = lengths_of(records, keys)
    return EpochPlan(
        lengths,
        seed=draw(st.integers(0, 3)),
        epoch=draw(st.integers(0, 3)),
        records=draw(st.integers(1, 70)),
        max_tokens=int(lengths.tokens(layout).max()) + draw(st.integers(0, 300)),
        processes=draw(st.integers(1, 6)),
        shuffle=draw(st.booleans()),
        cost=Cost(attention=draw(st.sampled_from([0.0, 1e-3, 0.1])), head=draw(st.sampled_from([0.0, 0.3]))),
        layout=layout,
    )


@given(plans())
def test_every_record_is_planned_exactly_once(plan: EpochPlan) -> None:
    seen = [r for i in range(len(plan)) for process in plan.step(i) for micro in process for r in micro.tolist()]
    assert sorted(seen) == list(range(len(plan.lengths)))


@given(plans())
def test_a_step_holds_its_global_batch_and_all_are_full_but_the_last(plan: EpochPlan) -> None:
    sizes = []
    for i in range(len(plan)):
        held = [r for process in plan.step(i) for micro in process for r in micro.tolist()]
        assert sorted(held) == sorted(plan.global_batch(i).tolist())
        sizes.append(len(held))
    assert sizes[:-1] == [plan.records] * (len(plan) - 1)
    assert 1 <= sizes[-1] <= plan.records


@given(plans())
def test_no_micro_batch_is_over_the_limit(plan: EpochPlan) -> None:
    for i in range(len(plan)):
        for process in plan.step(i):
            assert all(plan.tokens(micro) <= plan.max_tokens for micro in process)


@given(plans())
def test_every_process_gets_as_many_micro_batches(plan: EpochPlan) -> None:
    for i in range(len(plan)):
        step = plan.step(i)
        assert len(step) == plan.processes
        assert len({len(process) for process in step}) == 1
        assert any(len(process[0]) for process in step)


@given(plans())
def test_the_plan_is_a_function_of_its_key(plan: EpochPlan) -> None:
    index = len(plan) - 1
    first, second = plan.step(index), plan.step(index)
    assert [[m.tolist() for m in p] for p in first] == [[m.tolist() for m in p] for p in second]


@given(plans())
def test_the_last_tree_dealt_bounds_the_imbalance(plan: EpochPlan) -> None:
    """Graham's argument: when the most loaded process got its last tree it was the least loaded, hence at the mean."""
    for i in range(len(plan)):
        batch = plan.global_batch(i)
        single = max(plan.work(np.array([r])) for r in batch)
        heaviest_tree = (
            max(single, plan.work(batch) / plan.processes) if plan.lengths.prompt_key is not None else single
        )
        loads = [sum(plan.work(m) for m in process) for process in plan.step(i)]
        assert max(loads) <= np.mean(loads) + heaviest_tree + 1e-6 * max(loads)


@given(records_strategy())
def test_lengths_against_their_definition(records: list[tuple[int, list[int]]]) -> None:
    lengths, cost = lengths_of(records), Cost(attention=0.25, head=0.5)
    for i, (p, completions) in enumerate(records):
        fed = [n - 1 for n in completions]
        assert lengths.tokens()[i] == p + sum(fed)
        filled = len(fed) * (p + max(fed))
        assert lengths.tokens("padded")[i] == filled
        pairs = p * p / 2 + sum(n * p + n * n / 2 for n in fed)
        assert lengths.work(cost)[i] == pytest.approx(p + sum(fed) + 0.25 * pairs + 0.5 * sum(completions))
        pairs = sum((p + n) ** 2 / 2 for n in fed)
        expected = filled + 0.25 * pairs + 0.5 * sum(completions)
        assert lengths.work(cost, "padded")[i] == pytest.approx(expected)


def test_padded_micro_batches_count_their_filling_and_keep_similar_widths_together() -> None:
    """Rows of 2 x 20, 2 x 6, 2 x 19 positions: the first and the last together make 4 x 20 = 80, all three 6 x 20."""
    lengths = lengths_of([(10, [11, 3]), (3, [4, 4]), (10, [10, 2])])
    plan = EpochPlan(lengths, seed=0, epoch=0, records=3, max_tokens=80, shuffle=False, layout="padded")
    assert [m.tolist() for m in plan.step(0)[0]] == [[0, 2], [1]]
    assert [plan.tokens(m) for m in plan.step(0)[0]] == [80, 12]
    whole = EpochPlan(lengths, seed=0, epoch=0, records=3, max_tokens=120, shuffle=False, layout="padded")
    assert [plan.tokens(m) for m in whole.step(0)[0]] == [120]


def test_the_epoch_and_the_seed_change_the_order_and_nothing_else_does() -> None:
    lengths = lengths_of([(1 + i % 7, [3, 4]) for i in range(64)])
    orders = {
        tuple(EpochPlan(lengths, seed=s, epoch=e, records=r, max_tokens=m, processes=w).order.tolist())
        for s, e in ((0, 0), (0, 1), (1, 0))
        for r, m, w in ((8, 100, 1), (16, 200, 4))
    }
    assert len(orders) == 3


def test_the_order_is_pinned() -> None:
    """A resumed run, on any machine and numpy, must draw what the first one drew."""
    plan = EpochPlan(lengths_of([(2, [2])] * 8), seed=3, epoch=1, records=4, max_tokens=100)
    assert plan.order.tolist() == [5, 6, 3, 7, 0, 1, 2, 4]


def test_work_is_balanced_between_processes_and_micro_batches() -> None:
    rng = np.random.default_rng(0)
    records = [(int(p), rng.integers(2, 80, 2).tolist()) for p in rng.integers(20, 300, 512)]
    plan = EpochPlan(lengths_of(records), seed=0, epoch=0, records=256, max_tokens=1500, processes=8)
    for i in range(len(plan)):
        loads = np.array([[plan.work(m) for m in process] for process in plan.step(i)])
        assert loads.sum(1).max() <= 1.02 * loads.sum(1).mean()  # 32 trees for each process
        assert loads.max() <= 1.25 * loads.mean()  # about 4 trees for each micro-batch


def test_the_last_global_batch_leaves_processes_idle_rather_than_unequal() -> None:
    plan = EpochPlan(lengths_of([(5, [3])] * 5), seed=0, epoch=0, records=4, max_tokens=7, processes=4, shuffle=False)
    assert [[m.tolist() for m in p] for p in plan.step(1)] == [[[4]], [[]], [[]], [[]]]


def test_records_of_one_prompt_share_a_tree() -> None:
    """Records 0, 2, 3: the prompt of 10 tokens once and 1 + 1 + 1 fed: 13 tokens. Record 1: 10 + 1 = 11."""
    lengths = lengths_of([(10, [2]), (10, [2]), (10, [2]), (10, [2])], keys=[7, 8, 7, 7])
    plan = EpochPlan(lengths, seed=0, epoch=0, records=4, max_tokens=13, shuffle=False)
    assert [m.tolist() for m in plan.step(0)[0]] == [[0, 2, 3], [1]]
    assert [plan.tokens(m) for m in plan.step(0)[0]] == [13, 11]
    cut = EpochPlan(lengths, seed=0, epoch=0, records=4, max_tokens=12, shuffle=False)
    assert sorted(m.tolist() for m in cut.step(0)[0]) == [[0, 2], [1], [3]]


def test_a_shared_tree_is_cut_rather_than_left_to_one_process() -> None:
    lengths = lengths_of([(1, [10])] * 4, keys=[0] * 4)  # 10 tokens each, 40 alone, 20 a process; two together 19
    plan = EpochPlan(lengths, seed=0, epoch=0, records=4, max_tokens=100, processes=2, shuffle=False)
    assert sorted(len(process[0]) for process in plan.step(0)) == [2, 2]


def test_prompt_keys_and_groups() -> None:
    prompts = [np.array(p, dtype=np.int32) for p in ([1, 2], [1], [1, 2], [2, 1], [1])]
    assert prompt_keys(prompts).tolist() == [0, 1, 0, 3, 1]
    assert same_prompt(prompts) == [[0, 2], [1, 4], [3]]


def test_lengths_of_token_records() -> None:
    def record(name: str, prompt: list[int], *completions: list[int]) -> TokenRecord:
        ids = tuple(np.array(c, dtype=np.int32) for c in completions)
        return TokenRecord(id=name, kind=Data.PAIRS, prompt=np.array(prompt, dtype=np.int32), completions=ids)

    lengths = Lengths.of([record("a", [1, 2], [3], [4, 5]), record("b", [1, 2], [6, 7], [8])], share_prompts=True)
    assert lengths.prompt.tolist() == [2, 2]
    assert lengths.completions.tolist() == [1, 2, 2, 1]
    assert lengths.offsets.tolist() == [0, 2, 4]
    assert lengths.prompt_key is not None
    assert lengths.prompt_key.tolist() == [0, 0]
    with pytest.raises(UserError, match=r"record 'a' has 3 tokens, more than batch.max_tokens=2 \(2 records"):
        EpochPlan(lengths, seed=0, epoch=0, records=1, max_tokens=2)


def test_refusals() -> None:
    lengths = lengths_of([(5, [3])])
    with pytest.raises(
        UserError, match=r"record 0 has 7 tokens.*raise batch.max_tokens to 7, or lower data.max_length"
    ):
        EpochPlan(lengths, seed=0, epoch=0, records=1, max_tokens=6)
    with pytest.raises(UserError, match=r"batch.records must be at least 1"):
        EpochPlan(lengths, seed=0, epoch=0, records=0, max_tokens=7)
    with pytest.raises(UserError, match="no records"):
        EpochPlan(lengths_of([]), seed=0, epoch=0, records=1, max_tokens=7)
    with pytest.raises(UserError, match="not be negative"):
        EpochPlan(lengths, seed=-1, epoch=0, records=1, max_tokens=7)
    with pytest.raises(IndexError, match="step 1 of an epoch of 1"):
        EpochPlan(lengths, seed=0, epoch=0, records=1, max_tokens=7).step(1)
    with pytest.raises(ValueError, match="at least one token"):
        lengths_of([(5, [0])])
    with pytest.raises(ValueError, match="at least one token"):
        lengths_of([(5, []), (5, [1])])
    with pytest.raises(ValueError, match="offsets"):
        Lengths(np.array([1]), np.array([1]), np.array([0, 2]))
    with pytest.raises(ValueError, match="prompt_key must have one entry"):
        Lengths(np.array([1]), np.array([1]), np.array([0, 1]), prompt_key=np.array([1, 2]))


def test_costs_of_a_model() -> None:
    """Width 6, 5 layers, 720 words: a pair costs 4 h / (24 h^2) = 1/36, a word 2 h V / (24 h^2 L) = 720 / 360 = 2."""
    cost = Cost.of(hidden_size=6, num_layers=5, vocab_size=720)
    assert cost.attention == pytest.approx(1 / 36)
    assert cost.head == pytest.approx(2.0)


def test_given_tokens_cost_nothing_in_the_output_layer() -> None:
    cost = Cost(attention=0.0, head=10.0)
    plain = lengths_of([(4, [6, 2]), (4, [6, 2])])
    mixed = replace(plain, trained=np.array([1, 2, 6, 2]))
    assert plain.work(cost).tolist() == [4 + 6 + 80, 4 + 6 + 80]
    assert mixed.work(cost).tolist() == [4 + 6 + 30, 4 + 6 + 80]
    assert (plain.scored().tolist(), mixed.scored(np.array([0])).tolist()) == ([8, 8], [3])
    assert Lengths.of([record_with_given()]).scored().tolist() == [2]
    with pytest.raises(ValueError, match="trained must have one entry for each of the 4"):
        replace(plain, trained=np.array([1]))


def record_with_given() -> TokenRecord:
    return TokenRecord(
        id="a", kind=Data.DEMONSTRATIONS, prompt=np.array([1]), completions=(np.array([~1, ~2, 3, 4], np.int32),)
    )


def test_own_samples_have_the_shorter_rows_on_a_cpu_alone() -> None:
    assert row_tokens("cpu", own_samples=True) < row_tokens("cpu")
    assert row_tokens("cuda", own_samples=True) == row_tokens("cuda")
