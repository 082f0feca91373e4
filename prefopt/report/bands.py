"""Lists the bands in which the figures of a healthy run lie, each with its reason and source.

Bands apply to held-out records. They warn and prove nothing: a run inside every band can be useless for your task, and
one outside can be what you want. For each figure the first band that applies to the method is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from prefopt.common.estimate import Estimate
from prefopt.plugin import Data, Traits

INF = math.inf
OF_SCORES = ("margin", "ties", "memorised")  # the figures that a reward model has, too


class State(Enum):
    """The state of a figure; the value is a mark that works without colour."""

    GOOD = "✓"
    LOOK = "!"
    BAD = "✗"


@dataclass(frozen=True, kw_only=True)
class Band:
    """Limits of one figure.

    Attributes:
        figure: its key among the figures of a run.
        title: its name on the page.
        unit: "%" (a share), "points" (a difference of shares), "nats", "nats per token", "x" (a ratio) or "".
        healthy: inside is fine.
        bearable: outside is trouble; between the two is worth a look.
        low, high: what a figure below or above means, and what to do.
        why: the reason for the limits.
        source: the source of the reason.
        applies: whether it applies to a method.
    """

    figure: str
    title: str
    unit: str
    healthy: tuple[float, float]
    bearable: tuple[float, float]
    low: str = ""
    high: str = ""
    why: str
    source: str
    applies: Callable[[Traits], bool] = lambda method: True

    def state(self, figure: Estimate) -> State:
        """Return the state of a figure; outside a limit means outside by more than two standard errors."""
        slack = figure.half_width if math.isfinite(figure.se) else 0.0
        if not self.bearable[0] - slack <= figure.value <= self.bearable[1] + slack:
            return State.BAD
        return State.GOOD if self.healthy[0] - slack <= figure.value <= self.healthy[1] + slack else State.LOOK

    def advice(self, figure: Estimate) -> str:
        """Return what a figure outside the healthy band means, and what to do; empty inside."""
        if self.state(figure) is State.GOOD:
            return ""
        return self.low if figure.value < self.healthy[0] else self.high


def _pairs(method: Traits) -> bool:
    return method.needs.data is not Data.DEMONSTRATIONS


BANDS = (
    Band(
        figure="grew", title="Pairs whose margin grew", unit="%", healthy=(0.55, 0.95), bearable=(0.5, 1.0),
        low="The model did not learn a preference that generalises to new pairs: use more data, more steps, or a "
            "higher learning rate.",
        high="The margin grew on nearly every pair: look for a giveaway in the data, such as length or a fixed "
             "opening, with `prefopt data check`.",
        why="Half is chance. Trained labellers agree with each other on 73 % of pairs, so honest labels cannot teach "
            "nearly all of them.",
        source="https://arxiv.org/abs/2203.02155", applies=_pairs,
    ),
    Band(
        figure="margin", title="Reward margin", unit="", healthy=(0.0, 5.0), bearable=(-INF, 10.0),
        low="The rejected answers earn more than the chosen ones.",
        high="Most pairs no longer teach anything: use fewer steps, or a lower learning rate.",
        why="In a logistic loss the gradient of a pair with margin m has the weight σ(−m): 50 % at 0, 0.7 % at 5, "
            "0.005 % at 10.",
        source="https://arxiv.org/abs/2305.18290", applies=_pairs,
    ),
    Band(
        figure="kl", title="Distance to the base model (KL)", unit="nats", healthy=(0.05, 10.0), bearable=(0.0, 40.0),
        low="The model writes what the base model writes: use more steps, or a higher learning rate.",
        high="The model has moved far from the base model and may have lost abilities: read the texts below; a larger "
             "beta, a lower learning rate or fewer steps keep it closer.",
        why="Drawing 1,000 texts and keeping the best costs at most log 1000 − 0.999 = 5.9 nats, so a run with many "
            "times that moves for other reasons than preference. True quality falls at a large KL.",
        source="https://arxiv.org/abs/2210.10760", applies=_pairs,
    ),
    Band(
        figure="chosen", title="Change of the chosen answers' log-prob", unit="nats per token",
        healthy=(0.0, INF), bearable=(-0.02, INF),
        low="This method has a term that should raise the chosen answers, and they fell: lower the learning rate, or "
            "give that term more weight.",
        why="The formula contains the chosen answers' own log-prob.",
        source="https://arxiv.org/abs/2403.07691", applies=lambda m: bool(m.chosen_rises),
    ),
    Band(
        figure="chosen", title="Change of the chosen answers' log-prob", unit="nats per token",
        healthy=(-0.1, INF), bearable=(-0.5, INF),
        low="Even the chosen answers became less likely: probability moved to texts on neither side. A term on the "
            "chosen side (loss=rpo_sft, dpop, cpo), a larger beta or fewer steps prevent that.",
        why="Contrastive losses only widen the gap and often lower both sides. At −0.5 nats per token each token of a "
            "chosen answer is 0.6 times as likely as before.",
        source="https://arxiv.org/abs/2410.08847",
    ),
    Band(
        figure="length", title="Length of what it writes", unit="x", healthy=(0.75, 1.33), bearable=(0.5, 2.0),
        low="Answers became much shorter than the base model's: check whether they still say enough.",
        high="Answers became much longer than the base model's, a common side effect of preference tuning: compare "
             "the lengths in the data card; length-normalised methods (loss=simpo, ipo, r_dpo) resist it.",
        why="Preference tuning lengthens answers even where people did not prefer length.",
        source="https://arxiv.org/abs/2403.19159",
    ),
    Band(
        figure="ties", title="Pairs with equal rewards", unit="%", healthy=(0.0, 0.01), bearable=(0.0, 0.1),
        high="Equal rewards come from rounding, clipping or equal texts: check trainer.bf16, model.dtype and the data.",
        why="Two different texts have different log-probs; a tie to the last bit has a technical cause.",
        source="https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html", applies=_pairs,
    ),
    Band(
        figure="memorised", title="Accuracy in training minus held out", unit="points",
        healthy=(-INF, 0.15), bearable=(-INF, 0.3),
        high="It ranks its training pairs much better than new ones: use fewer epochs, or more data.",
        why="In the first epoch every pair is new when it is trained on; a large gap means memorising, or held-out "
            "pairs of another kind.",
        source="https://arxiv.org/abs/2203.02155", applies=_pairs,
    ),
)  # fmt: skip


def _margin_with_target(target: float) -> Band:
    return Band(
        figure="margin", title="Reward margin", unit="", healthy=(0.0, 2 * target), bearable=(-INF, 4 * target),
        low="The rejected answers earn more than the chosen ones.",
        high=f"The margin has overshot its target of {'½' if target == 0.5 else f'{target:g}'}: lower the learning "
             "rate.",
        why="The loss pulls the reward margin to a target; twice that is as wrong as not having moved.",
        source="https://arxiv.org/abs/2310.12036", applies=_pairs,
    )  # fmt: skip


def bands_of(method: Traits) -> dict[str, Band]:
    """Return the band of each figure for a method, in the order of the table."""
    found: dict[str, Band] = {}
    for band in BANDS:
        if band.applies(method) and (band.figure in OF_SCORES or not method.needs.reward_model):
            found.setdefault(band.figure, band)
    if method.target_margin is not None and "margin" in found:
        found["margin"] = _margin_with_target(method.target_margin)
    return found
