"""epsilon-DPO: KL Penalty Control via Perturbation for Direct Preference Optimization (Lee et al., 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.plugin import (
    Audit,
    Data,
    LearningRates,
    Level,
    Logps,
    LossOutput,
    Needs,
    PairLogps,
    SearchSpace,
    State,
    Vocab,
    require,
)


@dataclass(frozen=True, kw_only=True)
class EpsilonDPO:
    r"""DPO whose beta falls or rises for each pair, by where the policy's margin would grow.

    L = -log sigmoid(beta_i * (rho_w - rho_l)),   beta_i = beta / (1 + epsilon * step),   rho = log pi - log pi_ref
    step = 1 where d grows from pi_toward to pi to pi_away, -1 where it falls, else 0,   d = log pi(y_w) - log pi(y_l)
    pi_away ~ pi^(1 + epsilon) pi_ref^-epsilon, pi_toward ~ pi^(1 - epsilon) pi_ref^epsilon, of each next token
    after each global batch: beta <- beta / (1 + epsilon * mean of step)

    Value at policy = reference: log 2.

    Identities: epsilon_dpo(epsilon=0.0) = dpo; epsilon_dpo in the first batch where the statistics are 0 =
    dpo(beta=beta / (1 + epsilon)) on pairs with a positive margin.

    Differences: none from the authors' code in the decision, the loss, the logged rewards (with beta_i) and the update
    of beta, which is one for each optimizer step there too; its mean of step is a mean of the means of micro-batches,
    ours is the mean over the global batch. Its `label_smoothing` changes nothing, and is left out. At step 0 the moved
    policies are the policy itself: no step is taken.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2502.13177"
    needs: ClassVar[Needs] = Needs(
        data=Data.PAIRS, reference=True, vocab=frozenset({Vocab.LOG_AWAY, Vocab.LOG_TOWARD}), state=True
    )
    search_space: ClassVar[SearchSpace] = {"beta": (0.003, 0.01, 0.03, 0.1)}
    audit: ClassVar[Audit] = Audit(Level.AUTHORS_CODE, "oddqueue/e-dpo trainer.py@268c7ad", "2026-11-30")
    learning_rates: ClassVar[LearningRates] = LearningRates(3e-7, 7e-7, "oddqueue/e-dpo configs, Mistral and Llama 3")
    exceptions: ClassVar[dict[str, str]] = {
        "rewards": "both sides decide about a pair's beta, and so about the reward of each",
        "state": "beta is no average: it moves with every batch, also when one comes again",
    }

    beta: float = 0.01  # in the first batch, reward per nat of log-ratio; useful range 0.003 to 0.1
    epsilon: float = 0.01  # by what share a step moves beta, no unit; useful range 0 (which is `dpo`) to 0.05

    def __post_init__(self) -> None:
        require(self, beta=0 < self.beta < math.inf, epsilon=0 <= self.epsilon < 1)

    def initial_state(self) -> State:
        return {"beta": torch.tensor(self.beta, dtype=torch.float64)}

    def __call__(self, logps: PairLogps, state: State, /) -> LossOutput:
        chosen, rejected = logps.chosen.ratio, logps.rejected.ratio
        step, base = self._step(logps), state["beta"].cpu()
        beta = (base / (1 + self.epsilon * step)).to(chosen)
        return LossOutput(
            loss=-F.logsigmoid(beta * (chosen - rejected)),
            chosen_reward=(beta * chosen).detach(),
            rejected_reward=(beta * rejected).detach(),
            metrics={
                "beta": base.to(chosen),
                "steps/away": (step > 0).to(chosen),
                "steps/toward": (step < 0).to(chosen),
            },
            state={"beta": base / (1 + self.epsilon * step.mean())},
        )

    def _step(self, logps: PairLogps) -> Tensor:
        """(B,) 1, 0 or -1 in float64 on the CPU.

        On the way away from the reference d changes by epsilon Delta less the difference of the two sides'
        log-normalisers, on the way toward it by -epsilon Delta less that of theirs.
        """
        gain = self.epsilon * (_exact(logps.chosen.ratio) - _exact(logps.rejected.ratio))
        away, toward = (_total(logps.chosen, s) - _total(logps.rejected, s) for s in (Vocab.LOG_AWAY, Vocab.LOG_TOWARD))
        grows = (gain > away) & (gain > -toward)
        falls = (gain < away) & (gain < -toward)
        return grows.double() - falls.double()

    def at_reference(self, logps: PairLogps, /) -> float:
        return math.log(2)


def _total(side: Logps, statistic: Vocab) -> Tensor:
    """(B,) the sum of a statistic over a completion's tokens."""
    return _exact(side.vocab(statistic.value) * side.mask).sum(-1)


def _exact(value: Tensor) -> Tensor:
    return value.detach().cpu().double()
