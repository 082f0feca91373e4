"""Defines what the author of a loss plugin imports: needs, log-probs, outputs, traits and `require`.

A plugin is a frozen dataclass of hyper-parameters, callable on log-probs, with declared needs. The rest of prefopt
reads needs and traits and never branches on a loss's name.

Legend: B examples, K completions of a list, T tokens of the longest completion. Tensors are (B,) unless a field says
otherwise; log-probs are in nats; lengths are in tokens and count the closing end-of-turn token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from prefopt.plugin.hyperparameters import comments as comments
from prefopt.plugin.hyperparameters import require as require
from prefopt.plugin.needs import BESIDE_REFERENCE as BESIDE_REFERENCE
from prefopt.plugin.needs import PERTURBED as PERTURBED
from prefopt.plugin.needs import Data as Data
from prefopt.plugin.needs import Needs as Needs
from prefopt.plugin.needs import Vocab as Vocab

if TYPE_CHECKING:  # options are checked before torch is loaded
    from torch import Tensor

State = Mapping[str, "Tensor"]
SearchSpace = Mapping[str, tuple[float, ...]]  # one hyper-parameter -> four values to try, in rising order


class Ranking(Enum):
    """How a loss compares completions."""

    POINTWISE = "pointwise"  # no term compares two completions: each is judged on its own
    PAIRWISE = "pairwise"  # terms compare two completions
    LISTWISE = "listwise"  # terms compare a whole list


class Level(Enum):
    """The strongest kind of source that a loss was checked against."""

    SECONDARY = "secondary"  # another library, or somebody else's account of the paper
    DERIVED = "derived"  # the paper's equations, derived again
    AUTHORS_CODE = "authors' code"
    CONFIRMED = "confirmed"  # an author confirmed it


@dataclass(frozen=True)
class Audit:
    """The claim that a loss was checked: against what kind of source, which one exactly, and when."""

    level: Level
    source: str  # "owner/repository path@commit", or the paper and its equation
    date: str  # year-month-day

    def __post_init__(self) -> None:
        if not self.source.strip():
            raise ValueError("an audit without a source is not a check: name the file and commit, or the equation")
        date.fromisoformat(self.date)


@dataclass(frozen=True)
class LearningRates:
    """Published learning rates of full tuning with Adam or RMSprop, for models of one to nine billion weights."""

    low: float
    high: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What reports, comparisons and planning know of a method; `traits` reads it from the plugin.

    A plugin declares a trait as a class variable of the same name and leaves out what does not apply.

    Attributes:
        ranking: by default, the usual one of its shape of data.
        chosen_rises: True where a likelihood term raises the chosen completion's own log-prob, False where the loss
            lowers it by design, None where it only asks for a gap.
        finite_optimum: of losses on pairs and labels: where one side always wins, the loss is least at a finite margin,
            so that labels without noise do not drive it ever further.
        target_margin: the reward margin at which the loss is least, where one number holds for every pair.
        learning_rates: those that were published with the method.
        audit: what its formula and defaults were checked against, and when; None for no claim.
        updates: steps that learn from the same own samples, by default.
        shift_invariant: a constant that is added to all rewards of a rollout changes nothing.
        scores_cut_off: it reads the scores of texts that were cut off, with `rollout.missing_end_penalty` in them.
    """

    needs: Needs = field(default_factory=lambda: Needs(data=Data.PAIRS, reference=True))
    ranking: Ranking = Ranking.PAIRWISE
    chosen_rises: bool | None = None
    finite_optimum: bool = False
    target_margin: float | None = None
    learning_rates: LearningRates | None = None
    audit: Audit | None = None
    updates: int = 1
    shift_invariant: bool = False
    scores_cut_off: bool = True


_RANKING = {Data.PAIRS: Ranking.PAIRWISE, Data.LISTS: Ranking.LISTWISE}  # of single completions: pointwise


def traits(loss: Any, /) -> Traits:
    """The traits of a plugin (instance or class), neutral where the plugin declares nothing."""
    own = {f.name: getattr(loss, f.name) for f in dataclasses.fields(Traits) if hasattr(loss, f.name)}
    return Traits(**{"ranking": _RANKING.get(loss.needs.data, Ranking.POINTWISE), **own})


@dataclass(frozen=True, kw_only=True)
class Logps:
    """Log-probs of one completion per example, under the policy and, where needed, under the reference.

    Attributes:
        sum: (B,) sum over the completion's tokens; carries the gradient. (B, K) inside `ListLogps`.
        num_tokens: same shape, number of completion tokens, at least 1 (0 marks an absent list entry).
        ref_sum: same shape, the reference's sum.
        token: (B, T) per-token log-probs, 0 past the end.
        ref_token: (B, T) the reference's, 0 past the end.
        log_sum_sq, ref_entropy, kl, log_away, log_toward: (B, T) whole-vocabulary statistics, see
            `prefopt.plugin.Vocab`.
        value: (B, T) the value model's estimate before each token, 0 past the end; carries its gradient.
        value_after: same shape as `sum`, its estimate behind the last token; of `old` only.
    """

    sum: Tensor
    num_tokens: Tensor
    ref_sum: Tensor | None = None
    token: Tensor | None = None
    ref_token: Tensor | None = None
    log_sum_sq: Tensor | None = None
    ref_entropy: Tensor | None = None
    kl: Tensor | None = None
    log_away: Tensor | None = None
    log_toward: Tensor | None = None
    value: Tensor | None = None
    value_after: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("num_tokens", "ref_sum", "value_after"):
            _same_shape(self.sum, getattr(self, name), name)
        for name in ("ref_token", *(statistic.value for statistic in Vocab), "value"):
            _same_shape(self.token, getattr(self, name), name)

    @property
    def mean(self) -> Tensor:
        """Log-prob per token, `sum / num_tokens`, in at least float32."""
        return _precise(self.sum) / self.num_tokens.clamp(min=1)

    @property
    def ref_mean(self) -> Tensor:
        """The reference's log-prob per token, in at least float32."""
        return _precise(self.reference) / self.num_tokens.clamp(min=1)

    @property
    def reference(self) -> Tensor:
        """`ref_sum`; raises where the batch has no reference."""
        return self._given("ref_sum", "reference=True")

    @property
    def ratio(self) -> Tensor:
        """Log-ratio of policy to reference, `sum - ref_sum` (rho in the docs), in at least float32."""
        return _precise(self.sum) - _precise(self.reference)

    @property
    def per_token(self) -> Tensor:
        """(B, T) `token`; raises where the batch has none."""
        return self._given("token", "tokens=True")

    @property
    def ref_per_token(self) -> Tensor:
        """(B, T) `ref_token`; raises where the batch has none."""
        return self._given("ref_token", "tokens=True, reference=True")

    @property
    def values(self) -> Tensor:
        """(B, T) `value`; raises where the batch has none."""
        return self._given("value", "values=True")

    @property
    def mask(self) -> Tensor:
        """(B, T) bool, true on the completion's tokens."""
        given = (self.token, *(getattr(self, statistic.value) for statistic in Vocab))
        per_token: Tensor | None = next((value for value in given if value is not None), None)
        per_token = self.per_token if per_token is None else per_token
        positions = self.num_tokens.long().new_ones(per_token.shape[-1]).cumsum(-1)  # 1, 2, ..., T
        return positions <= self.num_tokens.unsqueeze(-1)

    def vocab(self, name: str) -> Tensor:
        """(B, T) a whole-vocabulary statistic by name; raises where the batch has none."""
        return self._given(name, "vocab=...")

    def _given(self, name: str, needs: str) -> Tensor:
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise ValueError(f"this batch has no {name}: declare `Needs({needs})`")
        return value


@dataclass(frozen=True, kw_only=True)
class PairLogps:
    """B pairs. `ids` are stable integers of the records, for draws that must not depend on order.

    Where the loss declares that it reads them: `margin`, by how much the chosen side is better; `probability`, that
    it is; `tied`, (B,) bool, whether neither side is; `opponent`, (B,) bool, whether the opponent wrote the chosen side
    and not the rejected one.
    """

    chosen: Logps
    rejected: Logps
    ids: Tensor | None = None
    chosen_score: Tensor | None = None
    rejected_score: Tensor | None = None
    margin: Tensor | None = None
    probability: Tensor | None = None
    tied: Tensor | None = None
    opponent: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("ids", "chosen_score", "rejected_score", "margin", "probability", "tied", "opponent"):
            _same_shape(self.chosen.sum, getattr(self, name), name)
        _same_shape(self.chosen.sum, self.rejected.sum, "rejected")

    @property
    def opponents(self) -> Tensor:
        """`opponent`; raises where the texts are not a sample of the policy and one of an opponent each."""
        if self.opponent is None:
            raise ValueError("this batch has no opponent's texts: declare `Needs(opponent=True)`")
        return self.opponent

    @property
    def score_gap(self) -> Tensor:
        """`chosen_score - rejected_score`; raises where the batch has no scores."""
        if self.chosen_score is None or self.rejected_score is None:
            raise ValueError("this batch has no scores: declare `Needs(scores=True)` and give records with scores")
        return self.chosen_score - self.rejected_score

    def fact(self, name: str) -> Tensor:
        """`margin`, `probability` or `tied`; raises where the batch has none."""
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise ValueError(f"this batch has no {name}: declare `Needs({'ties' if name == 'tied' else name}=True)`")
        return value


@dataclass(frozen=True, kw_only=True)
class UnpairedLogps:
    """B single completions, each desirable or not; `mismatched` scores another record's completion, one per example."""

    completion: Logps
    desirable: Tensor  # (B,) bool
    mismatched: Logps | None = None
    ids: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("desirable", "ids"):
            _same_shape(self.completion.sum, getattr(self, name), name)


@dataclass(frozen=True, kw_only=True)
class ListLogps:
    """B lists of up to K completions: every field of `completions` is (B, K) (per-token ones (B, K, T)).

    `scores` is (B, K), higher is better; `mask` is (B, K) bool, false where a list is shorter than K. Own samples
    (`needs.on_policy`) also have log-probs of when they were drawn (`old`), (B, K) bool of whether they ended and were
    not cut off, and what the loss's `targets` gave, (B, K) or (B, K, T) each.
    """

    completions: Logps
    scores: Tensor
    mask: Tensor
    ids: Tensor | None = None
    old: Logps | None = None
    ended: Tensor | None = None
    targets: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("scores", "mask", "ended"):
            _same_shape(self.completions.sum, getattr(self, name), name)


@dataclass(frozen=True, kw_only=True)
class DemoLogps:
    """B demonstrations."""

    chosen: Logps
    ids: Tensor | None = None


AnyLogps = PairLogps | UnpairedLogps | ListLogps | DemoLogps


def _precise(value: Tensor) -> Tensor:
    """At least float32: bfloat16 has 8 bits, too few for differences and means of log-probs."""
    return value if value.element_size() == 8 else value.float()


def _same_shape(like: Tensor | None, value: Tensor | None, name: str) -> None:
    """Check for shapes that torch would broadcast: (B,) with (B, 1) gives a wrong number, not an error."""
    if like is not None and value is not None and value.shape != like.shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {tuple(like.shape)}")


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """What a loss returns for B examples.

    Attributes:
        loss: (B,) one value per example, with gradient; the trainer reduces.
        chosen_reward, rejected_reward: (B,) implicit reward of each side, detached (pairs only).
        reward: implicit reward per completion, detached: (B,) for unpaired and demonstrations, (B, K) for lists.
        metrics: further values to log, detached: (B,) per example, or () for the whole batch.
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

    A loss with a reference has `at_reference(logps)`, which returns the (B,) values, or one float for all, that it must
    have where policy equals reference. The trainer compares the first batch with it and stops a run that deviates.

    `search_space: ClassVar[SearchSpace]` is what a comparison tries: one hyper-parameter and four values of it. A loss
    without it is compared over learning rates alone. The class variables that `Traits` lists are optional too.

    A loss with `needs.moving_reference` has `reference_update`, (share, steps): every so many steps the reference takes
    that share of the policy's weights, those from before the step where `reference_lags: ClassVar[bool]` is true. One
    that reads `Vocab.LOG_AWAY` or `LOG_TOWARD` has `epsilon`, the exponent of both.

    A loss with `needs.state` is called as `loss(logps, state)` and also has `initial_state() -> State`.

    A loss with `needs.on_policy` has `targets(rollout: ListLogps) -> Mapping[str, Tensor]`, called on each whole
    rollout with the log-probs that its texts were drawn with: advantages do not depend on micro-batches or processes.
    """

    paper: ClassVar[str]

    @property
    def needs(self) -> Needs: ...

    def __call__(self, logps: Any, /, *state: Any) -> LossOutput: ...


def value_at_reference(loss: Loss, logps: AnyLogps) -> Tensor | float | None:
    """What a loss must be where policy equals reference; None for a loss without reference."""
    stated: Callable[[AnyLogps], Tensor | float | None] | None = getattr(loss, "at_reference", None)
    return None if stated is None else stated(logps)


def with_targets(loss: Any, logps: ListLogps) -> ListLogps:
    """The lists of a whole rollout with the targets of a loss that is on-policy, without gradient."""
    assert logps.old is not None, "the policy wrote these texts"
    drawn = dataclasses.replace(logps, completions=logps.old, old=None, targets={})
    return dataclasses.replace(logps, targets={name: t.detach() for name, t in loss.targets(drawn).items()})
