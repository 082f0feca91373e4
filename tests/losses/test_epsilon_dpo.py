"""Proofs of `epsilon_dpo`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from prefopt.losses.registry import load
from prefopt.plugin import Logps, LossOutput, PairLogps
from prefopt.testing import evaluate
from prefopt.testing.numbers import build, call, to_tensor
from tests.losses.hand import LOG2, PAIR, close, softplus
from tests.losses.identities import Sides, identity, pairs, replaced, uniform_statistic, values
from tests.losses.step_0 import at_reference

NOT_TESTED = {
    "epsilon_dpo parity": "not in TRL; the authors' arithmetic on whole logits is written out below",
}
# Sums of log_away 0.1 and 0.2, of log_toward -0.05 and -0.1. Delta is 3, so that with epsilon 0.1 the margin grows by
# 0.3 + 0.1 on the way away, and shrinks by 0.3 - 0.05 on the way back.
STATISTICS = {
    "chosen_log_away": [[0.05, 0.05]],
    "rejected_log_away": [[0.05, 0.05, 0.05, 0.05]],
    "chosen_log_toward": [[-0.025, -0.025]],
    "rejected_log_toward": [[-0.025, -0.025, -0.025, -0.025]],
}
AWAY = {"chosen_log_away": [[0.4, 0.2]], "chosen_log_toward": [[-0.4, -0.2]]}  # the margin shrinks, then grows


@pytest.mark.parametrize(
    ("changed", "step"),
    [({}, 1), (AWAY, -1), ({"chosen_log_away": AWAY["chosen_log_away"]}, 0), ({"chosen": [-7.0]}, -1)],
)
def test_epsilon_dpo_by_hand(changed: dict[str, Any], step: int) -> None:
    """0.3 against 0.1 - 0.2 = -0.1 and 0.05 - 0.1 = -0.05; then against 0.6 - 0.2 = 0.4 and 0.6 - 0.1 = 0.5; then
    between -0.05 and 0.4; then -0.2 (Delta -2), below -0.1 and -0.05."""
    loss: Any = load("epsilon_dpo", beta=0.5, epsilon=0.1)
    numbers = {name: to_tensor(name, value) for name, value in (PAIR | STATISTICS | changed).items()}
    ratio = -4.0 if "chosen" in changed else 1.0
    found = call(loss, build(loss.needs, numbers))
    beta = 0.5 / (1 + 0.1 * step)
    assert found.loss.tolist() == close([softplus(-beta * (ratio + 2.0))])
    assert found.chosen_reward is not None
    assert found.chosen_reward.item() == close(beta * ratio)
    assert found.state is not None
    assert found.state["beta"].item() == close(beta)  # the mean of one step
    assert found.metrics["steps/away"].item() == (step == 1)
    assert found.metrics["steps/toward"].item() == (step == -1)


def test_epsilon_dpo_at_reference() -> None:
    assert at_reference("epsilon_dpo") == close(LOG2)


def test_epsilon_dpo_leaves_beta_alone_at_step_0() -> None:
    same = PAIR | {"chosen": PAIR["ref_chosen"], "rejected": PAIR["ref_rejected"]}
    same |= {name: [[0.0] * len(row) for row in value] for name, value in STATISTICS.items()}
    loss: Any = load("epsilon_dpo", beta=0.5)
    output = call(loss, build(loss.needs, {name: to_tensor(name, value) for name, value in same.items()}))
    assert output.state is not None
    assert output.state["beta"].item() == 0.5


@identity("epsilon_dpo(epsilon=0.0) = dpo")
def test_epsilon_dpo_is_dpo(seed: int) -> Sides:
    return values("epsilon_dpo", pairs(seed), beta=0.1, epsilon=0.0), values("dpo", pairs(seed))


@identity(
    "epsilon_dpo in the first batch where the statistics are 0 = dpo(beta=beta / (1 + epsilon)) on pairs with a "
    "positive margin"
)
def test_epsilon_dpo_with_a_smaller_beta(seed: int) -> Sides:
    numbers = pairs(seed)
    for name in ("log_away", "log_toward"):
        numbers = uniform_statistic(numbers, name, 0.0)
    numbers = replaced(numbers, chosen=numbers["ref_chosen"] + numbers["rejected"] - numbers["ref_rejected"] + 0.5)
    return values("epsilon_dpo", numbers, beta=0.2, epsilon=0.25), values("dpo", numbers, beta=0.2 / 1.25)


def test_epsilon_dpo_follows_its_beta_through_batches() -> None:
    """Three pairs of which two step away: beta shrinks by 1 + epsilon (2 - 1) / 3, batch for batch."""
    loss: Any = load("epsilon_dpo", beta=0.1, epsilon=0.3)
    numbers = {
        "chosen": [-1.0, -1.0, -3.0], "ref_chosen": [-2.0, -2.0, -2.0], "rejected": [-2.0] * 3,
        "ref_rejected": [-2.0] * 3, "chosen_num_tokens": [1] * 3, "rejected_num_tokens": [1] * 3,
    }  # fmt: skip
    numbers |= {name: [[0.0]] * 3 for name in STATISTICS}
    batch = build(loss.needs, {name: to_tensor(name, value) for name, value in numbers.items()})
    state = loss.initial_state()
    for number in range(3):
        base = 0.1 / 1.1**number
        output = loss(batch, state)
        assert output.metrics["beta"].item() == close(base)
        assert output.loss.tolist() == close([softplus(-base / 1.3), softplus(-base / 1.3), softplus(base / 0.7)])
        assert state["beta"].item() == close(base)  # what was passed in stays
        state = output.state
        assert not state["beta"].requires_grad


def test_epsilon_dpo_starts_anew_and_goes_on_from_a_state() -> None:
    state = {"beta": torch.tensor(0.25, dtype=torch.float64)}
    unmoved = PAIR | {name: [[0.0] * len(row) for row in value] for name, value in STATISTICS.items()}
    assert evaluate(load("epsilon_dpo", epsilon=0.1), **unmoved, state=state) == close([softplus(-0.25 / 1.1 * 3)])
    assert evaluate(load("epsilon_dpo", beta=0.25, epsilon=0.1), **unmoved) == close([softplus(-0.25 / 1.1 * 3)])


def moved(logits: Tensor, ref_logits: Tensor, tokens: Tensor, step: float) -> Tensor:
    """(B,) log-probs under the policy moved by a step of the temperature, from whole logits."""
    return ((1 + step) * logits - step * ref_logits).log_softmax(-1).gather(-1, tokens[..., None])[..., 0].sum(-1)


@pytest.mark.parametrize("epsilon", [0.01, 0.2])
def test_epsilon_dpo_decides_as_log_probs_of_the_moved_policies_do(epsilon: float) -> None:
    """On whole logits, as the authors' code has it: d under both moved policies against d under the policy."""
    generator = torch.Generator().manual_seed(4)
    size, width, vocab = 64, 5, 12

    def side() -> tuple[Logps, dict[float, Tensor]]:
        policy, ref = torch.randn(2, size, width, vocab, generator=generator, dtype=torch.float64)
        tokens = torch.randint(vocab, (size, width), generator=generator)
        logp, ref_logp = policy.log_softmax(-1), ref.log_softmax(-1)
        away, toward = ((logp + e * (logp - ref_logp)).logsumexp(-1) for e in (epsilon, -epsilon))
        figures = {step: moved(policy, ref, tokens, step) for step in (0.0, epsilon, -epsilon)}
        plain = Logps(
            sum=figures[0.0],
            num_tokens=torch.full((size,), width),
            ref_sum=moved(ref, ref, tokens, 0.0),
            token=torch.zeros(size, width, dtype=torch.float64),
            log_away=away,
            log_toward=toward,
        )
        return plain, figures

    (chosen, of_chosen), (rejected, of_rejected) = side(), side()
    own, away, toward = (of_chosen[step] - of_rejected[step] for step in (0.0, epsilon, -epsilon))
    step = ((away > own) & (own > toward)).double() - ((toward > own) & (own > away)).double()
    assert {-1.0, 1.0} <= set(step.tolist())
    loss: Any = load("epsilon_dpo", epsilon=epsilon)
    output: LossOutput = loss(PairLogps(chosen=chosen, rejected=rejected), loss.initial_state())
    beta = 0.01 / (1 + epsilon * step)
    torch.testing.assert_close(output.loss, torch.log1p(torch.exp(-beta * (chosen.ratio - rejected.ratio))))
    assert output.state is not None
    assert output.state["beta"].item() == close(0.01 / (1 + epsilon * step.mean().item()))


def test_epsilon_dpo_ignores_what_lies_past_the_end() -> None:
    loss: Any = load("epsilon_dpo", beta=0.5, epsilon=0.1)
    numbers = {name: to_tensor(name, value) for name, value in (PAIR | STATISTICS).items()}
    batch: Any = build(loss.needs, numbers)
    filled = {
        name: torch.nn.functional.pad(getattr(batch.chosen, name), (0, 2), value=7.0)
        for name in ("token", "log_away", "log_toward")
    }
    assert torch.equal(call(loss, replace(batch, chosen=replace(batch.chosen, **filled))).loss, call(loss, batch).loss)


@pytest.mark.parametrize(("settings", "name"), [({"epsilon": 1.0}, "epsilon"), ({"beta": math.inf}, "beta")])
def test_epsilon_dpo_refuses(settings: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        load("epsilon_dpo", **settings)
