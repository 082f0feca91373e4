"""What a loss plugin is: a frozen dataclass of hyper-parameters, callable on log-probs, with declared needs.

The trainer, the data layer and the engine read `needs` and nothing else: nobody outside a loss's own file branches
on its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

State = Mapping[str, Tensor]
SearchSpace = Mapping[str, tuple[float, ...]]  # the strength of a loss: four values to try, in rising order


class Data(Enum):
    """The four shapes of a record, and of the log-probs that a loss is called on."""

    PAIRS = "pairs"  # a chosen and a rejected completion       -> PairLogps
    UNPAIRED = "unpaired"  # one completion, desirable or not   -> UnpairedLogps
    LISTS = "lists"  # K >= 2 completions with scores           -> ListLogps
    DEMONSTRATIONS = "demonstrations"  # one good completion    -> DemoLogps


class Vocab(Enum):
    """Whole-vocabulary statistics at each completion token, in nats; fields of `Logps`, (B, T) each."""

    LOG_SUM_SQ = "log_sum_sq"  # log sum_v pi(v)^2, no gradient
    REF_ENTROPY = "ref_entropy"  # entropy of the reference, no gradient
    KL = "kl"  # KL(reference || policy), with gradient


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a loss reads. A declared need is a used need: the conformance kit perturbs each and watches the loss.

    Attributes:
        data: the shape of record it is defined on.
        reference: reads reference log-probs.
        lengths: reads `num_tokens` (or anything derived from it, such as `mean`).
        tokens: reads per-token log-probs.
        scores: reads scores of completions.
        vocab: whole-vocabulary statistics it reads.
        mismatched: reads completions scored behind another record's prompt (KTO's KL term).
        coupled: an example's value depends on the other examples; the engine hands over the whole global batch.
        state: carries running state from one global batch to the next.
        moving_reference: the reference follows the policy (`reference_update` says how).
        control_text: trains behind a text that tells good from bad; the loss's `control_text` is (good, bad).
    """

    data: Data
    reference: bool
    lengths: bool = False
    tokens: bool = False
    scores: bool = False
    vocab: frozenset[Vocab] = field(default_factory=frozenset)
    mismatched: bool = False
    coupled: bool = False
    state: bool = False
    moving_reference: bool = False
    control_text: bool = False

    def flags(self) -> dict[str, Any]:
        """The needs as plain JSON values: `data` by its name, `vocab` as a sorted list, the rest booleans."""
        plain: dict[str, Any] = {k: v for k, v in vars(self).items() if k not in ("data", "vocab")}
        return {"data": self.data.value, "vocab": sorted(v.value for v in self.vocab), **plain}


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """What a loss returns for B examples.

    Attributes:
        loss: (B,) one value per example, with gradient; the trainer reduces.
        chosen_reward: (B,) implicit reward of the chosen side, detached (pairs only).
        rejected_reward: (B,) implicit reward of the rejected side, detached (pairs only).
        reward: implicit reward per completion, detached: (B,) for unpaired and demonstrations, (B, K) for lists.
        metrics: further figures to log, detached: (B,) per example, or () for the whole batch.
        state: the running state after this batch (losses with `needs.state` only).
    """

    loss: Tensor
    chosen_reward: Tensor | None = None
    rejected_reward: Tensor | None = None
    reward: Tensor | None = None
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    state: State | None = None


@runtime_checkable
class Loss(Protocol):
    """The interface of a plugin. Concrete plugins are frozen, keyword-only dataclasses.

    `at_reference(logps)` gives the (B,) values (or one float for all) that the loss must have where policy equals
    reference, or None where there is no such value (a loss without reference). The trainer compares the first batch
    with it and stops a run that misses it.

    `search_space: ClassVar[SearchSpace]` is what a comparison tries: one hyper-parameter and four values of it, or
    nothing. A loss without it is compared over learning rates alone.

    A loss with `needs.state` is called as `loss(logps, state)` and also has `initial_state() -> State`.
    """

    paper: ClassVar[str]

    @property
    def needs(self) -> Needs: ...

    def __call__(self, logps: Any, /, *state: Any) -> LossOutput: ...

    def at_reference(self, logps: Any, /) -> Tensor | float | None: ...
