"""Deliberately broken copies of losses: mistakes found in published code."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.losses import (
    BCO,
    CDPO,
    DPO,
    DPOP,
    GPO,
    IPO,
    KTO,
    RDPO,
    SFT,
    TDPO1,
    WPO,
    AlphaDPO,
    BCOPair,
    LiPO,
    MinorDPO,
    RobustDPO,
    SimPO,
)
from prefopt.losses._lists import better_pairs
from prefopt.plugin import (
    Data,
    DemoLogps,
    ListLogps,
    LossOutput,
    Needs,
    PairLogps,
    Ranking,
    State,
    UnpairedLogps,
    require,
)
from prefopt.testing.numbers import map_batch

mutant = dataclass(frozen=True, kw_only=True)


def pair_output(loss: Tensor, logps: PairLogps) -> LossOutput:
    return LossOutput(loss=loss, chosen_reward=logps.chosen.sum.detach(), rejected_reward=logps.rejected.sum.detach())


@mutant
class LengthByNonZeroIPO(IPO):
    """1. The length counted as the number of non-zero log-ratios: none at step 0."""

    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, lengths=True, tokens=True)

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        sides = []
        for side in (logps.chosen, logps.rejected):
            ratios = side.per_token - side.ref_per_token
            sides.append(ratios.sum(-1) / (ratios != 0).sum(-1))
        return pair_output((sides[0] - sides[1] - 1 / (2 * self.tau)) ** 2, logps)


@mutant
class BroadcastDPO(DPO):
    """2. (B, 1) against (B,): every chosen side against every rejected one."""

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        margin = logps.chosen.ratio.unsqueeze(-1) - logps.rejected.ratio
        return pair_output(-F.logsigmoid(self.beta * margin), logps)


@mutant
class BroadcastMeanDPO(DPO):
    """2. The same, reduced to the right shape."""

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        margin = logps.chosen.ratio.unsqueeze(-1) - logps.rejected.ratio
        return pair_output(-F.logsigmoid(self.beta * margin).mean(-1), logps)


@mutant
class JumpingDPO(DPO):
    """The value jumps where policy = reference, so that rounding decides it."""

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        loss = super().__call__(logps).loss
        return pair_output(torch.where(logps.chosen.ratio < 0, loss + 0.5, loss), logps)


@mutant
class SilentDPOP(DPOP):
    """A kink where every run starts, and no word about it."""


@mutant
class ReferenceSimPO(SimPO):
    """3. A reference declared, loaded and run, and never used."""

    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, lengths=True)


@mutant
class WrongSignKTO(KTO):
    """4. The second term pushes the undesirable side up."""

    def __call__(self, logps: UnpairedLogps, /) -> LossOutput:
        assert logps.mismatched is not None
        z0 = logps.mismatched.ratio.mean().clamp(min=0).detach()
        return LossOutput(loss=torch.sigmoid(self.beta * (z0 - logps.completion.ratio)))


@mutant
class PlusRobustDPO(RobustDPO):
    """8. A plus between the terms."""

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        z = self.beta * (logps.chosen.ratio - logps.rejected.ratio)
        e = self.label_smoothing
        return pair_output((-(1 - e) * F.logsigmoid(z) - e * F.logsigmoid(-z)) / (1 - 2 * e), logps)


@mutant
class MinusRDPO(RDPO):
    """9. A minus before the price."""

    def _price(self, logps: PairLogps) -> Tensor:
        return -super()._price(logps)


@mutant
class DeafCDPO(CDPO):
    """10. `label_smoothing` accepted and ignored."""

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        return pair_output(-F.logsigmoid(self.beta * (logps.chosen.ratio - logps.rejected.ratio)), logps)


@mutant
class SumWPO(WPO):
    """11. The weight as exp(sum) instead of exp(mean)."""

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        return pair_output(-_sum_weight(logps) * F.logsigmoid(self.beta * _margin(logps)), logps)

    def at_reference(self, logps: PairLogps, /) -> Tensor:
        return math.log(2) * _sum_weight(logps)


def _sum_weight(logps: PairLogps) -> Tensor:
    sides = [side.sum - side.vocab("log_sum_sq").sum(-1) for side in (logps.chosen, logps.rejected)]
    return (sides[0] + sides[1]).clamp(max=0).exp().detach()


def _margin(logps: PairLogps) -> Tensor:
    return logps.chosen.ratio - logps.rejected.ratio


@mutant
class DeafGPO(GPO):
    """12. The name of the method itself accepted and ignored."""

    def _f(self, z: Tensor) -> Tensor:
        return F.relu(1 - z) ** 2

    def at_reference(self, logps: PairLogps, /) -> float:
        return 1.0


@mutant
class MicroBatchBCO(BCO):
    """19. The running baseline updated per micro-batch of two."""

    def __call__(self, logps: UnpairedLogps, state: State, /) -> LossOutput:
        outputs = []
        for start in range(0, len(logps.desirable), 2):
            part = map_batch(logps, lambda values, start=start: values[start : start + 2])
            outputs.append(super().__call__(part, outputs[-1].state if outputs else state))
        return LossOutput(loss=torch.cat([output.loss for output in outputs]), state=outputs[-1].state)


@mutant
class AbsoluteGammaSimPO(SimPO):
    """20. The ratio taken as the absolute margin."""

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        margin = self.beta * (logps.chosen.mean - logps.rejected.mean)
        return pair_output(-F.logsigmoid(margin - self.gamma_beta_ratio), logps)


@mutant
class UnguardedAlphaDPO(AlphaDPO):
    """21. A z-score of a constant batch: 0/0 at step 0."""

    def __call__(self, logps: PairLogps, state: State, /) -> LossOutput:
        d = logps.chosen.mean - logps.rejected.mean
        moved = (d - logps.chosen.ref_mean + logps.rejected.ref_mean).detach()
        mean = 0.9 * state["mean"] + 0.1 * moved.mean().double()
        deviation = 0.9 * state["deviation"] + 0.1 * moved.std().double()
        z = ((moved - mean) / deviation).to(d.dtype)
        output = pair_output(-F.logsigmoid(self.beta * (d - self.gamma_beta_ratio - self.alpha * z)), logps)
        return LossOutput(**(vars(output) | {"state": {"mean": mean, "deviation": deviation}}))


@mutant
class ClampDPOP(DPOP):
    """22. `clamp` at the kink of step 0, whose subgradient there is 1."""

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        penalty = (-logps.chosen.ratio).clamp(min=0)
        return pair_output(-F.logsigmoid(self.beta * (_margin(logps) - self.lam * penalty)), logps)


@mutant
class ClampMinorDPO(MinorDPO):
    """22. The same on the rejected side."""

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        kept = logps.rejected.ratio.clamp(min=0)
        return pair_output(-F.logsigmoid(self.beta * (logps.chosen.ratio - kept)), logps)


@mutant
class PaddedSFT(SFT):
    """23. The mean taken over padding as well."""

    needs: ClassVar[Needs] = Needs(data=Data.DEMONSTRATIONS, reference=False, tokens=True)

    def __call__(self, logps: DemoLogps, /) -> LossOutput:
        return LossOutput(loss=-logps.chosen.per_token.mean(-1))


@mutant
class BothOrdersLiPO(LiPO):
    """24. Each pair of a list counted in both orders, with opposing gradients."""

    def __call__(self, logps: ListLogps, /) -> LossOutput:
        reward = self.beta * logps.completions.ratio
        pairs = better_pairs(logps)
        both = (pairs | pairs.transpose(-1, -2)).to(reward.dtype)
        loss = (both * -F.logsigmoid(reward.unsqueeze(-1) - reward.unsqueeze(-2))).sum((-1, -2))
        return LossOutput(loss=loss, reward=reward.detach())


# --- further ways to be wrong that the kit must see


@mutant
class AttachedRewardDPO(DPO):
    """Rewards that still carry gradient."""

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        reward = self.beta * logps.chosen.ratio
        loss = -F.logsigmoid(self.beta * _margin(logps))
        return LossOutput(loss=loss, chosen_reward=reward, rejected_reward=reward.detach())


@mutant
class OverflowingDPO(DPO):
    """log(1 + e^-z) as it is written."""

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        return pair_output(torch.log(1 + torch.exp(-self.beta * _margin(logps))), logps)


@mutant
class HeadOfBatchDPO(DPO):
    """The mean of the batch taken off, without saying so."""

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        margin = _margin(logps)
        return pair_output(-F.logsigmoid(self.beta * (margin - margin.mean().detach())), logps)


@mutant
class FalselyCoupledDPO(DPO):
    """Coupling declared, and none there."""

    needs: ClassVar[Needs] = Needs(data=Data.PAIRS, reference=True, coupled=True)


@mutant
class FalselyPointwiseDPO(DPO):
    """A comparison of two completions declared as two judgements."""

    ranking: ClassVar[Ranking] = Ranking.POINTWISE


@mutant
class FalselyPairwiseBCO(BCOPair):
    """Two judgements declared as a comparison."""

    ranking: ClassVar[Ranking] = Ranking.PAIRWISE


@mutant
class SecretLengthDPO(DPO):
    """Lengths read, and not declared."""

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        return pair_output(-F.logsigmoid(self.beta * (logps.chosen.mean - logps.rejected.mean)), logps)


@mutant
class HalfGradientDPO(DPO):
    """A gradient that is not that of the value."""

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        return pair_output(_Half.apply(-F.logsigmoid(self.beta * _margin(logps))), logps)


class _Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] / 2


@mutant
class UncheckedDPO(DPO):
    """No hyper-parameter refused."""

    def __post_init__(self) -> None:
        require(self)


@mutant
class MutatingBCO(BCO):
    """A state changed in place."""

    def __call__(self, logps: UnpairedLogps, state: State, /) -> LossOutput:
        output = super().__call__(logps, state)
        assert output.state is not None
        state["means"].copy_(output.state["means"])
        return output


@mutant
class ForgetfulBCO(BCO):
    """A state declared, and never read."""

    def __call__(self, logps: UnpairedLogps, state: State, /) -> LossOutput:
        return super().__call__(logps, self.initial_state())


@mutant
class PlainRewardTDPO(TDPO1):
    """Logs beta * rho, which is not the argument of its loss."""

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        sides = {f"{s}_reward": (self.beta * getattr(logps, s).ratio).detach() for s in ("chosen", "rejected")}
        return replace(super().__call__(logps), **sides)


@mutant
class SwappedRewardDPO(DPO):
    """Logs each side's figure as the other's."""

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        output = super().__call__(logps)
        return replace(output, chosen_reward=output.rejected_reward, rejected_reward=output.chosen_reward)


@mutant
class ShiftedDPO(DPO):
    """Logs beta * rho + 1, and does not say so."""

    def __call__(self, logps: PairLogps, /) -> LossOutput:
        output = super().__call__(logps)
        assert output.chosen_reward is not None
        return replace(output, chosen_reward=output.chosen_reward + 1)


@mutant
class StaleExceptionDPO(DPO):
    """An exception whose reason no longer holds."""

    exceptions: ClassVar[dict[str, str]] = {"direction": "it rises"}
