"""Figures of a batch, under names that mean the same for every method, as exact sums that any split adds up to.

`loss` is what is optimised, record weights included; every other figure counts each record once.
`logps/*` are sums in nats, `logps_mean/*` per token, `ratios/*` sums less the reference's (where a moving reference
stands now), `lengths/*` tokens, `rewards/*` the method's own implicit reward.
A reward model has no log-probs: `rewards/*` are its scores, and of the others only `lengths/*` are there.
`accuracies/{logps,logps_mean,ratios}` is the share of pairs whose chosen side is the likelier one by that measure,
whatever the loss; `rewards/accuracies` is the same by the method's own reward. A tie is half right: `rewards/ties`
counts them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from prefopt.plugin import Data, Logps, Loss, Needs, Vocab
from prefopt.train.examples import BatchLoss, Facts, examples_of
from prefopt.train.sources.feed import ALSO_TAKES

Sums = dict[str, tuple[float, int]]


class Tally:
    """Sums and counts by name; the mean of each is exact whatever the batches were."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # kept on the device: reading one waits for it
        self._counts: dict[str, int] = {}

    @classmethod
    def of(cls, sums: Iterable[Sums], device: torch.device) -> Tally:
        """From what `sums` of one or several gave."""
        tally = cls()
        for part in sums:
            for name, (total, count) in part.items():
                wide = torch.tensor(total, dtype=_wide(device), device=device)
                tally._sums[name] = tally._sums[name] + wide if name in tally._sums else wide
                tally._counts[name] = tally._counts.get(name, 0) + count
        return tally

    def add(self, name: str, values: Tensor) -> None:
        """Take in the elements of `values`."""
        if values.numel():
            values = values.detach()
            wide = values.to(_wide(values.device))
            self._sums[name] = self._sums[name] + wide.sum() if name in self._sums else wide.sum()
            self._counts[name] = self._counts.get(name, 0) + values.numel()

    def sums(self) -> Sums:
        """(sum, count) by name; the device is waited for once."""
        totals = torch.stack(list(self._sums.values())).tolist() if self._sums else []
        return {name: (total, self._counts[name]) for name, total in zip(self._sums, totals, strict=True)}


class Unlogged:
    """What this process has summed up since the last log of training.

    Args:
        device: of the loss.
        after: the step of that log.
        earlier: the sum of the losses of all steps up to it.
    """

    def __init__(self, device: torch.device, *, after: int = 0, earlier: float = 0.0) -> None:
        self.after, self.earlier = after, earlier
        self.tokens = 0
        self.since = time.perf_counter()
        self._loss = torch.zeros((), dtype=torch.float32, device=device)
        self._uncounted = 0

    def add(self, loss: Tensor, tokens: int) -> None:
        """Take in a step."""
        self._loss += loss
        self.tokens += tokens
        self._uncounted += tokens

    def loss_value(self) -> float:
        """The sum of the losses."""
        return self._loss.item()

    def take_tokens(self) -> int:
        """The tokens since this was last asked."""
        taken, self._uncounted = self._uncounted, 0
        return taken


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def means(tallies: Iterable[Sums], prefix: str = "") -> dict[str, float]:
    """The figures of all processes, in alphabetical order.

    Where no record has two sides, the margin of the rewards is the difference of the sides' means, which is what the
    mean margin is where records do.
    """
    merged: Sums = {}
    for sums in tallies:
        for name, (total, count) in sums.items():
            before = merged.get(name, (0.0, 0))
            merged[name] = before[0] + total, before[1] + count
    figures = {name: total / count for name, (total, count) in merged.items()}
    if {"rewards/chosen", "rewards/rejected"} <= figures.keys():
        figures.setdefault("rewards/margins", figures["rewards/chosen"] - figures["rewards/rejected"])
    return {prefix + name: figures[name] for name in sorted(figures)}


def tally_batch(tally: Tally, outcome: BatchLoss, needs: Needs) -> None:
    """Add the figures of some records: those of the loss, which has these needs, and those that any method has."""
    tally.add("loss", outcome.weighted)
    for name, value in outcome.output.metrics.items():
        tally.add(name, value if value.ndim else value.expand(len(outcome.output.loss)))
    _tally_rewards(tally, outcome)
    _tally_logps(tally, outcome.facts, outcome.logps, scores=needs.reward_model)


def figure_names(loss: Loss) -> set[str]:
    """The names of an evaluation's figures, from made-up records of each kind that the loss takes.

    Empty where it cannot take them, as one that refuses such scores.
    """
    needs, found = loss.needs, set[str]()
    for kind in {needs.data, *ALSO_TAKES[needs.data]}:
        own = {Data.PAIRS: 2, Data.LISTS: 3}.get(kind, 1)
        facts = [
            Facts(
                id=str(key), key=key, kind=kind, own=own, mismatched=own if needs.mismatched else 0,
                desirable=key == 0, scores=(0.75, 0.5, 0.25)[:own] if own > 1 else None, weight=1.0,
            )
            for key in range(2)
        ]  # fmt: skip
        tokens = -torch.ones(sum(f.completions for f in facts), 2)
        logps = Logps(sum=tokens.sum(1), num_tokens=torch.full((len(tokens),), 2), ref_sum=tokens.sum(1), token=tokens,
                      ref_token=tokens, **{statistic.value: tokens for statistic in Vocab})  # fmt: skip
        tally = Tally()
        try:
            examples = examples_of(facts, logps, needs)
            output = loss(examples.logps, *((loss.initial_state(),) if needs.state else ()))  # type: ignore[attr-defined]
            tally_batch(tally, BatchLoss(facts, logps, examples, output), needs)
            found |= means([tally.sums()]).keys()
        except Exception:  # a plugin may be anybody's
            return set()
    return found


def _tally_rewards(tally: Tally, outcome: BatchLoss) -> None:
    output, logps, kind = outcome.output, outcome.examples.logps, outcome.facts[0].kind
    chosen, rejected, reward = output.chosen_reward, output.rejected_reward, output.reward
    if reward is not None and kind is Data.PAIRS and reward.numel() == 2 * len(outcome.facts):
        chosen, rejected = reward.reshape(-1, 2).unbind(1)  # the two items of each pair, or a list of two
    elif reward is not None and reward.ndim == 2:
        scores, mask = logps.scores, logps.mask  # type: ignore[union-attr]
        best = scores.masked_fill(~mask, -torch.inf).argmax(1, keepdim=True)
        worst = scores.masked_fill(~mask, torch.inf).argmin(1, keepdim=True)
        chosen, rejected = reward.gather(1, best)[:, 0], reward.gather(1, worst)[:, 0]
    elif reward is not None:
        desirable = getattr(logps, "desirable", torch.ones_like(reward, dtype=torch.bool))
        tally.add("rewards/chosen", reward[desirable])
        tally.add("rewards/rejected", reward[~desirable])
    if chosen is not None:
        tally.add("rewards/chosen", chosen)
    if rejected is not None:
        tally.add("rewards/rejected", rejected)
    if chosen is not None and rejected is not None:
        tally.add("rewards/margins", chosen - rejected)
        tally.add("rewards/accuracies", _wins(chosen - rejected))
        tally.add("rewards/ties", chosen == rejected)


def _tally_logps(tally: Tally, facts: Sequence[Facts], logps: Logps, *, scores: bool) -> None:
    """Figures of the completions themselves: by side where there are sides. Of `scores` only the lengths."""
    chosen, rejected = _sides(facts)
    columns = {}
    if not scores:
        columns = {"logps": logps.sum.detach(), "logps_mean": (logps.sum / logps.num_tokens).detach()}
    if logps.ref_sum is not None:
        columns["ratios"] = (logps.sum - logps.ref_sum).detach()
    sides = {"chosen": chosen, "rejected": rejected}
    index = {side: torch.tensor(at, dtype=torch.long, device=logps.sum.device) for side, at in sides.items() if at}
    for side, at in index.items():
        tally.add(f"lengths/{side}", logps.num_tokens[at])
        for name, values in columns.items():
            tally.add(f"{name}/{side}", values[at])
    if len(chosen) == len(rejected) == len(facts):
        for name, values in columns.items():
            margin = values[index["chosen"]] - values[index["rejected"]]
            tally.add(f"accuracies/{name}", _wins(margin))
            tally.add(f"margins/{name}", margin)


def _wins(margin: Tensor) -> Tensor:
    """`prefopt.common.estimate.shares_won` of a tensor, on its device."""
    return torch.heaviside(margin, margin.new_tensor(0.5))


def _sides(facts: Sequence[Facts]) -> tuple[list[int], list[int]]:
    """Places of the completions that are the better and the worse side of their record."""
    chosen, rejected = [], []
    at = 0
    for f in facts:
        if f.kind is Data.PAIRS:
            chosen.append(at)
            if f.own > 1:
                rejected.append(at + 1)
        elif f.kind is Data.LISTS:
            assert f.scores is not None
            chosen.append(at + max(range(f.own), key=f.scores.__getitem__))
            rejected.append(at + min(range(f.own), key=f.scores.__getitem__))
        elif f.kind is Data.DEMONSTRATIONS or f.desirable:
            chosen.append(at)
        else:
            rejected.append(at)
        at += f.completions
    return chosen, rejected
