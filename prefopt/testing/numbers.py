"""Builds batches from named numbers, for the kit, the tests and interactive use.

Names by shape of data (B examples, K completions, T tokens; every `ref_` name is the reference's figure):

    pairs           chosen rejected ref_chosen ref_rejected         (B,) log-probs, nats
                    margin probability tied                         (B,) facts of each pair
                    chosen_num_tokens rejected_num_tokens           (B,) tokens
                    chosen_score rejected_score                     (B,)
                    opponent                                        (B,) bool: the chosen side is the opponent's
                    chosen_token ref_chosen_token ...               (B, T) per token, nats; may be ragged
                    chosen_log_sum_sq chosen_ref_entropy chosen_kl chosen_log_away chosen_log_toward
                                                                    (B, T), and the same for rejected
    unpaired        completion ref_completion num_tokens desirable mismatched ref_mismatched mismatched_num_tokens
    lists           completions ref_completions num_tokens scores   (B, K); may be ragged
                    old_completions old_completions_token ended     of the policy's own samples
                    completions_value old_completions_value         (B, K, T) estimates of a value model
                    old_completions_value_after                     (B, K) behind the last token
    demonstrations  chosen ref_chosen chosen_num_tokens chosen_token ref_chosen_token
    any             ids                                             (B,) ints; by default 0 to B - 1

Sums and lengths follow from per-token lists where those are given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prefopt.plugin import (
    AnyLogps,
    Data,
    DemoLogps,
    ListLogps,
    Logps,
    Loss,
    LossOutput,
    Needs,
    PairLogps,
    State,
    UnpairedLogps,
    Vocab,
    with_targets,
)

Numbers = Mapping[str, Tensor]

# (name of the sums, name of the lengths) of each side
SIDES: dict[Data, tuple[tuple[str, str], ...]] = {
    Data.PAIRS: (("chosen", "chosen_num_tokens"), ("rejected", "rejected_num_tokens")),
    Data.UNPAIRED: (("completion", "num_tokens"), ("mismatched", "mismatched_num_tokens")),
    Data.LISTS: (("completions", "num_tokens"),),
    Data.DEMONSTRATIONS: (("chosen", "chosen_num_tokens"),),
}
_PER_TOKEN = ("token", *(v.value for v in Vocab), "value")
OLD_VALUES = ("old_completions_value", "old_completions_value_after")
_INTEGERS = ("num_tokens", "ids")
_LABELS = ("desirable", "ended", "tied", "opponent")
_OF_PAIRS = ("margin", "probability", "tied")


def evaluate(loss: Loss, /, **numbers: Any) -> list[float]:
    """Evaluate a loss on plain numbers in float64: one value per example.

    >>> evaluate(load("dpo", beta=0.5), chosen=[-2.0], rejected=[-3.0], ref_chosen=[-2.0], ref_rejected=[-2.0])
    [0.47407...]

    Args:
        loss: any plugin. One with running state starts from its initial state, or from `state=`.
        numbers: lists by the names above; only what the loss needs is required.

    Raises:
        ValueError: a name that this shape of data does not have, or a missing number that the loss needs.
    """
    state = numbers.pop("state", None)
    tensors = {name: to_tensor(name, value) for name, value in numbers.items()}
    values: list[float] = call(loss, build(loss.needs, tensors), state).loss.tolist()
    return values


def call(loss: Loss, logps: AnyLogps, state: State | None = None) -> LossOutput:
    """`loss(logps)`, or `loss(logps, state)` for one with running state, from its initial state unless one is given.

    The batch of an on-policy loss counts as a whole rollout, unless it has targets already.
    """
    logps = whole(loss, logps)
    if loss.needs.state:
        return loss(logps, loss.initial_state() if state is None else state)  # type: ignore[attr-defined]
    return loss(logps)


def whole(loss: Loss, logps: AnyLogps) -> AnyLogps:
    """The batch with the targets of an on-policy loss, as if it were a whole rollout, unless it has them already."""
    if loss.needs.on_policy and isinstance(logps, ListLogps) and not logps.targets:
        return with_targets(loss, logps)
    return logps


def value_of(loss: Loss, numbers: Numbers, state: State | None = None) -> Tensor:
    """(B,) the loss's values on named tensors, detached."""
    return call(loss, build(loss.needs, numbers), state).loss.detach()


def to_tensor(name: str, value: Any) -> Tensor:
    """A named list (nested, maybe ragged) as a tensor: bool for labels, int64 for counts and ids, else float64."""
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, Sequence):
        raise ValueError(f"{name} must be a list with one entry per example, got {value!r}")
    dtype = torch.bool if name in _LABELS else torch.int64 if name.endswith(_INTEGERS) else torch.float64
    if value and isinstance(value[0], Sequence):
        width = max(len(row) for row in value)
        fill = float("nan") if dtype == torch.float64 else 0
        return torch.tensor([[*row, *[fill] * (width - len(row))] for row in value], dtype=dtype)
    return torch.tensor(value, dtype=dtype)


def build(needs: Needs, numbers: Numbers) -> AnyLogps:
    """Build the batch for a loss with these needs. NaN in ragged lists marks positions past the end.

    Raises:
        ValueError: as `evaluate`.
    """
    known = names(needs.data)
    for name in numbers:
        if name not in known:
            raise ValueError(f"{name!r} is not a number of {needs.data.value} data; these are: {', '.join(known)}")
    ids = numbers.get("ids")
    if needs.data is Data.PAIRS:
        chosen, rejected = (_side(needs, numbers, side) for side in ("chosen", "rejected"))
        return PairLogps(
            chosen=chosen,
            rejected=rejected,
            ids=_ids(ids, chosen),
            chosen_score=numbers.get("chosen_score"),
            rejected_score=numbers.get("rejected_score"),
            **{name: _given(numbers, name) if name in needs.of_pairs else numbers.get(name) for name in _OF_PAIRS},
            opponent=_given(numbers, "opponent") if needs.opponent else numbers.get("opponent"),
        )
    if needs.data is Data.UNPAIRED:
        completion = _side(needs, numbers, "completion")
        mismatched = _side(needs, numbers, "mismatched") if needs.mismatched or "mismatched" in numbers else None
        desirable = _given(numbers, "desirable")
        return UnpairedLogps(
            completion=completion, desirable=desirable, mismatched=mismatched, ids=_ids(ids, completion)
        )
    if needs.data is Data.LISTS:
        completions = _side(needs, numbers, "completions")
        scores = _given(numbers, "scores")
        return ListLogps(
            completions=completions,
            scores=scores.nan_to_num(),
            mask=completions.num_tokens > 0,
            ids=_ids(ids, completions),
            old=_old(needs, numbers, completions) if needs.on_policy else None,
            ended=numbers.get("ended"),
        )
    chosen = _side(needs, numbers, "chosen")
    return DemoLogps(chosen=chosen, ids=_ids(ids, chosen))


def names(data: Data) -> list[str]:
    """List every name that numbers of this shape of data can have."""
    found = []
    for side, lengths in SIDES[data]:
        found += [side, f"ref_{side}", lengths, f"ref_{side}_token", *(f"{side}_{name}" for name in _PER_TOKEN)]
    extra = {
        Data.PAIRS: ["chosen_score", "rejected_score", *_OF_PAIRS, "opponent"],
        Data.UNPAIRED: ["desirable"],
        Data.LISTS: ["scores", "old_completions", "old_completions_token", "ended", *OLD_VALUES],
    }
    return [*found, *extra.get(data, []), "ids"]


def map_batch(logps: Any, of: Callable[[Tensor], Tensor]) -> Any:
    """Apply `of` to every tensor of a batch."""
    if isinstance(logps, Tensor):
        return of(logps)
    if logps is None:
        return None
    if isinstance(logps, Mapping):
        return {name: map_batch(value, of) for name, value in logps.items()}
    return type(logps)(**{name: map_batch(value, of) for name, value in vars(logps).items()})


def _side(needs: Needs, numbers: Numbers, side: str) -> Logps:
    per_token = {name: numbers.get(f"{side}_{name}") for name in _PER_TOKEN}
    ref_token = numbers.get(f"ref_{side}_token")
    if needs.tokens:
        _given(numbers, f"{side}_token")
        if needs.reference:
            _given(numbers, f"ref_{side}_token")
    for statistic in needs.vocab:
        _given(numbers, f"{side}_{statistic.value}")
    for name in (f"{side}_value", *OLD_VALUES) if needs.values else ():
        _given(numbers, name)
    lengths_name = dict(SIDES[needs.data])[side]
    lengths = numbers.get(lengths_name)
    token = per_token["token"]
    if lengths is None and token is not None:
        lengths = (~token.isnan()).sum(-1)
    sums = token.nan_to_num().sum(-1) if token is not None and side not in numbers else _given(numbers, side)
    if lengths is None and needs.lengths:
        _given(numbers, lengths_name)
    if lengths is None:
        lengths = (~sums.isnan()).long()
    ref = numbers.get(f"ref_{side}")
    if ref is None and ref_token is not None:
        ref = ref_token.nan_to_num().sum(-1)
    if ref is None and needs.reference:
        _given(numbers, f"ref_{side}")
    if token is None:  # statistics can come without log-probs; the mask then still needs their width
        width = next((value.shape for value in per_token.values() if value is not None), None)
        token = None if width is None else sums.new_zeros(width)
    return Logps(
        sum=sums.nan_to_num(),
        num_tokens=lengths,
        ref_sum=_filled(ref),
        token=_filled(token),
        ref_token=_filled(ref_token),
        **{name: _filled(value) for name, value in per_token.items() if name != "token"},
    )


def _old(needs: Needs, numbers: Numbers, completions: Logps) -> Logps:
    """The log-probs that the completions were drawn with, beside the reference's."""
    token = _given(numbers, "old_completions_token") if needs.tokens else numbers.get("old_completions_token")
    sums = numbers.get("old_completions")
    if sums is None:
        sums = token.nan_to_num().sum(-1) if token is not None else _given(numbers, "old_completions")
    return Logps(
        sum=sums.nan_to_num(),
        num_tokens=completions.num_tokens,
        ref_sum=completions.ref_sum,
        token=_filled(token),
        ref_token=completions.ref_token if token is not None else None,
        value=_filled(numbers.get(OLD_VALUES[0])),
        value_after=numbers.get(OLD_VALUES[1]),
    )


def _given(numbers: Numbers, name: str) -> Tensor:
    if name not in numbers:
        raise ValueError(f"this loss needs {name}: a list with one entry per example")
    return numbers[name]


def _filled(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.nan_to_num()


def _ids(ids: Tensor | None, like: Logps) -> Tensor:
    return torch.arange(len(like.sum)) if ids is None else ids


def shown(values: Tensor) -> str:
    """A tensor in a message: its numbers to six digits, or the one number that all of them are."""
    numbers = [f"{value:.6g}" for value in values.detach().flatten().tolist()]
    return numbers[0] if len(set(numbers)) == 1 else f"[{', '.join(numbers)}]"
