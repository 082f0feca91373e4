"""Defines what a loss reads: the shape of its data, and of each record and token what beside the policy's log-probs."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Data(Enum):
    """The shapes of a record, and of the log-probs that a loss is called on."""

    PAIRS = "pairs"  # a chosen and a rejected completion       -> PairLogps
    UNPAIRED = "unpaired"  # one completion, desirable or not   -> UnpairedLogps
    LISTS = "lists"  # K >= 2 completions with scores           -> ListLogps
    DEMONSTRATIONS = "demonstrations"  # one good completion    -> DemoLogps
    PROMPTS = "prompts"  # no completion: the policy writes them, and no loss is defined on it


class Vocab(Enum):
    """Whole-vocabulary statistics at each completion token, in nats; fields of `Logps`, (B, T) each."""

    LOG_SUM_SQ = "log_sum_sq"  # log sum_v pi(v)^2, no gradient
    REF_ENTROPY = "ref_entropy"  # entropy of the reference, no gradient
    KL = "kl"  # KL(reference || policy), with gradient
    LOG_AWAY = "log_away"  # log sum_v pi(v)^(1 + epsilon) pi_ref(v)^-epsilon, no gradient; epsilon is the loss's
    LOG_TOWARD = "log_toward"  # log sum_v pi(v)^(1 - epsilon) pi_ref(v)^epsilon, no gradient


BESIDE_REFERENCE = frozenset({Vocab.KL, Vocab.LOG_AWAY, Vocab.LOG_TOWARD})  # of both models' whole distributions
PERTURBED = frozenset({Vocab.LOG_AWAY, Vocab.LOG_TOWARD})


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a loss reads. The conformance kit checks that each declared need is used, and that nothing else is.

    Attributes:
        data: the shape of record that the loss is defined on.
        reference: reads reference log-probs.
        lengths: reads `num_tokens` (or anything derived from it, such as `mean`).
        tokens: reads per-token log-probs.
        scores: reads scores of completions.
        margin: reads by how much the chosen side of a pair is better, by default the gap of its scores.
        probability: reads the probability that the chosen side is better, by default Bradley-Terry's on the margin.
        ties: reads which pairs are ties, and learns from them (`data.ties=auto` keeps them).
        vocab: whole-vocabulary statistics it reads.
        mismatched: reads completions scored after another record's prompt (KTO's KL term).
        coupled: an example's value depends on the other examples; the engine passes the whole global batch.
        state: carries running state from one global batch to the next.
        moving_reference: the reference follows the policy (`reference_update` says how).
        control_text: trains after a text that marks a completion as good or bad: `control_text`, a pair (good, bad).
        on_policy: learns from lists of the policy's own samples, and reads their `old` and `targets`.
        ended: reads whether each of these samples ended by itself.
        values: reads the estimates of a value model, which is then trained beside the policy.
        reward_model: trains a reward model, not a policy: `sum` is its score of a completion, read at the last token.
        opponent: half of a prompt's samples are an opponent's, of whose next tokens the reference has the share
            `mixture_coef`.
    """

    data: Data
    reference: bool
    lengths: bool = False
    tokens: bool = False
    scores: bool = False
    margin: bool = False
    probability: bool = False
    ties: bool = False
    vocab: frozenset[Vocab] = field(default_factory=frozenset)
    mismatched: bool = False
    coupled: bool = False
    state: bool = False
    moving_reference: bool = False
    control_text: bool = False
    on_policy: bool = False
    ended: bool = False
    values: bool = False
    reward_model: bool = False
    opponent: bool = False

    @property
    def of_pairs(self) -> tuple[str, ...]:
        """The facts of pairs that it reads, as fields of `PairLogps`."""
        read = {"margin": self.margin, "probability": self.probability, "tied": self.ties}
        return tuple(name for name, wanted in read.items() if wanted)

    @property
    def only_own_samples(self) -> bool:
        """Whether it learns from nothing but the policy's own samples."""
        return self.on_policy or self.opponent

    @property
    def reads_reference(self) -> bool:
        """Whether it reads anything of a reference."""
        return self.reference or self.live_reference or Vocab.REF_ENTROPY in self.vocab

    @property
    def live_reference(self) -> bool:
        """Whether the reference runs beside the policy, because its stored log-probs do not say enough."""
        return self.moving_reference or bool(self.vocab & BESIDE_REFERENCE)

    def flags(self) -> dict[str, Any]:
        """The needs as plain JSON values: `data` by its name, `vocab` as a sorted list, the rest booleans."""
        plain: dict[str, Any] = {k: v for k, v in vars(self).items() if k not in ("data", "vocab")}
        return {"data": self.data.value, "vocab": sorted(v.value for v in self.vocab), **plain}
