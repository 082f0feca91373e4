"""The mistakes of published code: each broken copy fails the kit, or the law that it breaks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from prefopt.losses import DPOP, RDPO, AlphaDPO, MinorDPO, SimPO, load_class
from prefopt.losses.registry import load
from prefopt.plugin import Data, Loss
from prefopt.testing import check_loss, evaluate, example
from prefopt.testing.numbers import build, call
from prefopt.testing.samples import at_reference, declared, random_numbers
from tests.losses import claim_mutants, mutants

CAUGHT_BY_THE_KIT = [
    (mutants.LengthByNonZeroIPO, "value at reference", "nan"),
    (mutants.BroadcastDPO, "runs", "one value per example"),
    (mutants.BroadcastMeanDPO, "batch laws", "declare `coupled`"),
    (mutants.JumpingDPO, "rounding at reference", "up to rounding, stated"),
    (mutants.SilentDPOP, "rounding at reference", "must say what happens at step 0"),
    (mutants.ReferenceSimPO, "needs", "reference is declared, but"),
    (mutants.WrongSignKTO, "direction", "the wrong way"),
    (mutants.PlusRobustDPO, "value at reference", "stated"),
    (mutants.DeafCDPO, "hyperparameters", "label_smoothing changes nothing"),
    (mutants.SumWPO, "needs", "lengths is declared, but"),
    (mutants.DeafGPO, "hyperparameters", "f changes nothing"),
    (mutants.MicroBatchBCO, "batch laws", "another order"),
    (mutants.UnguardedAlphaDPO, "value at reference", "nan"),
    (mutants.PaddedSFT, "batch laws", "padding changes the value"),
    (mutants.BothOrdersLiPO, "direction", "no gradient"),
    (mutants.AttachedRewardDPO, "runs", "must be detached"),
    (mutants.OverflowingDPO, "extremes", "not finite"),
    (mutants.HeadOfBatchDPO, "batch laws", "declare `coupled`"),
    (mutants.FalselyCoupledDPO, "batch laws", "coupled is declared, but"),
    (mutants.FalselyPointwiseDPO, "ranking", "the value compares completions"),
    (mutants.FalselyPairwiseBCO, "ranking", "declare `ranking` as pointwise"),
    (mutants.SecretLengthDPO, "needs", "lengths is not declared, but"),
    (mutants.HalfGradientDPO, "gradient", "by differences"),
    (mutants.UncheckedDPO, "hyperparameters", "beta=nan is not refused"),
    (mutants.MutatingBCO, "state", "was changed"),
    (mutants.ForgetfulBCO, "state", "does not depend on it"),
    (mutants.PlainRewardTDPO, "rewards", "chosen_reward does not move with chosen_kl"),
    (mutants.SwappedRewardDPO, "rewards", "of the other side"),
    (mutants.ShiftedDPO, "rewards", "the docstring must say what the reward is"),
    (mutants.AbsoluteGammaSimPO, "units", "gamma_beta_ratio is in nats by its comment, but acts as a number without"),
    (claim_mutants.MisstatedHinge, "stated in words", "the docstring says 'log 2.'"),
    (claim_mutants.FarDPO, "ranges", "outside its useful range 0.01 to 1"),
    (claim_mutants.OverreachingDPO, "ranges", "which the plugin refuses"),
    (claim_mutants.ColdBCO, "state", "must start from its statistics"),
    (claim_mutants.NoBaselineRLOO, "targets", "shift_invariant is declared, but"),
    (claim_mutants.PooledRLOO, "targets", "not one value for each sample"),
    (claim_mutants.UnmovedDPO, "needs", "there is no `epsilon`"),
    (mutants.StaleExceptionDPO, "direction", "passes, although"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("mutant", "check", "detail"), CAUGHT_BY_THE_KIT, ids=lambda x: getattr(x, "__name__", ""))
def test_the_kit_catches(mutant: type[Any], check: str, detail: str) -> None:
    found = {result.name: result for result in check_loss(example(mutant))}
    assert not found[check].ok
    assert detail in found[check].detail


def test_every_mutant_is_caught_somewhere() -> None:
    by_law = {mutants.MinusRDPO, mutants.ClampDPOP, mutants.ClampMinorDPO}
    made = {
        v
        for module in (mutants, claim_mutants)
        for v in vars(module).values()
        if dataclasses.is_dataclass(v) and v.__module__ == module.__name__
    }
    assert made == by_law | {mutant for mutant, _, _ in CAUGHT_BY_THE_KIT}


# --- laws of one loss


def weight_of_gradient(loss: Loss, chosen_num_tokens: int) -> float:
    """|d loss / d log pi(y_w)| of one pair at policy = reference, whose rejected side has 4 tokens."""
    chosen = torch.tensor([-3.0], dtype=torch.float64, requires_grad=True)
    same = {"ref_chosen": chosen.detach(), "rejected": torch.tensor([-4.0]), "ref_rejected": torch.tensor([-4.0])}
    lengths = {"chosen_num_tokens": torch.tensor([chosen_num_tokens]), "rejected_num_tokens": torch.tensor([4])}
    call(loss, build(loss.needs, {"chosen": chosen, **same, **lengths})).loss.sum().backward()
    assert chosen.grad is not None
    return float(chosen.grad.abs())


def a_longer_winner_teaches_less(cls: type[Any]) -> bool:
    return weight_of_gradient(cls(), 8) < weight_of_gradient(cls(), 4) < weight_of_gradient(cls(), 2)


def test_r_dpo_prices_length() -> None:
    assert a_longer_winner_teaches_less(RDPO)
    assert not a_longer_winner_teaches_less(mutants.MinusRDPO)


def margin_is_a_ratio(cls: type[Any]) -> bool:
    """With gamma = beta * gamma_beta_ratio the loss is log 2 where the margin per token is the ratio, at any beta."""
    numbers = {"chosen": [-1.0], "rejected": [-3.0], "chosen_num_tokens": [2], "rejected_num_tokens": [3]}
    values = [evaluate(cls(beta=beta, gamma_beta_ratio=0.5), **numbers)[0] for beta in (2.0, 10.0)]
    return values == pytest.approx([0.6931471805599453] * 2)


def test_gamma_means_the_same_everywhere() -> None:
    assert margin_is_a_ratio(SimPO)
    assert margin_is_a_ratio(AlphaDPO_without_alpha)
    assert margin_is_a_ratio(CPOSimPO_without_nll)
    assert not margin_is_a_ratio(mutants.AbsoluteGammaSimPO)


def AlphaDPO_without_alpha(**settings: float) -> Any:
    inner = AlphaDPO(alpha=0.0, **settings)
    return _WithZeroReference(inner)


def CPOSimPO_without_nll(**settings: float) -> Any:
    return load_class("cpo_simpo")(alpha=0.0, **settings)


class _WithZeroReference:
    """A loss given a reference of 0, for laws that are about the policy alone."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.needs = dataclasses.replace(inner.needs, reference=False, state=False)

    def __call__(self, logps: Any, /) -> Any:
        sides = {
            side: dataclasses.replace(getattr(logps, side), ref_sum=torch.zeros_like(getattr(logps, side).sum))
            for side in ("chosen", "rejected")
        }
        return self.inner(dataclasses.replace(logps, **sides), self.inner.initial_state())


def step_0(loss: Loss) -> dict[str, torch.Tensor]:
    """The gradient on each side of a batch at policy = reference, relative to beta."""
    numbers = declared(loss.needs, at_reference(random_numbers(Data.PAIRS, seed=0)))
    tracked = dict(numbers) | {side: numbers[side].clone().requires_grad_() for side in ("chosen", "rejected")}
    call(loss, build(loss.needs, tracked)).loss.sum().backward()
    # type: ignore[attr-defined, operator]
    return {side: tracked[side].grad / loss.beta for side in ("chosen", "rejected")}


@pytest.mark.parametrize(("cls", "is_dpo"), [(DPOP, True), (mutants.ClampDPOP, False)])
def test_step_0_of_dpop_is_a_step_of_dpo(cls: type[Any], is_dpo: bool) -> None:
    ours, dpo = step_0(cls()), step_0(load("dpo"))
    assert all(torch.allclose(ours[side], dpo[side]) for side in ours) is is_dpo
    if not is_dpo:  # 1 + lambda = 51 times the force on the chosen side
        torch.testing.assert_close(ours["chosen"], 51 * dpo["chosen"])


@pytest.mark.parametrize(("cls", "still"), [(MinorDPO, True), (mutants.ClampMinorDPO, False)])
def test_minor_dpo_leaves_the_rejected_side_alone_at_step_0(cls: type[Any], still: bool) -> None:
    assert bool((step_0(cls())["rejected"] == 0).all()) is still
