"""Figures of a batch, under names that mean the same for every method, as exact sums that any split adds up to.

`logps/*` are sums in nats, `logps_mean/*` per token, `rewards/*` the method's own implicit reward, `lengths/*` tokens.
`accuracies/{logps,logps_mean,ratios}` is the share of pairs whose chosen side is the likelier one by that measure,
whatever the loss; `rewards/accuracies` is the same by the method's own reward. A tie is no win: `ties` counts them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prefopt.plugin import Data, LossOutput
from prefopt.trainer.examples import Examples, Facts, Flat


class Tally:
    """Sums and counts by name; the mean of each is exact whatever the batches were."""

    def __init__(self) -> None:
        self.total: dict[str, float] = {}
        self.count: dict[str, float] = {}

    def add(self, name: str, values: Tensor, weight: float = 1.0) -> None:
        """Add the mean of `values`, counted `weight` times its number of elements."""
        if values.numel():
            self.total[name] = self.total.get(name, 0.0) + weight * float(values.detach().double().sum())
            self.count[name] = self.count.get(name, 0.0) + weight * values.numel()

    def merge(self, others: Sequence[tuple[dict[str, float], dict[str, float]]]) -> Tally:
        """The tallies of all processes as one."""
        merged = Tally()
        for total, count in others:
            for name in total:
                merged.total[name] = merged.total.get(name, 0.0) + total[name]
                merged.count[name] = merged.count.get(name, 0.0) + count[name]
        return merged

    def means(self, prefix: str = "") -> dict[str, float]:
        """The figures, in alphabetical order."""
        return {prefix + name: self.total[name] / self.count[name] for name in sorted(self.total)}


def tally_batch(tally: Tally, facts: Sequence[Facts], flat: Flat, examples: Examples, output: LossOutput) -> None:
    """Add the figures of some records: those of the loss, and those that any method has."""
    tally.add("loss", output.loss)
    for name, value in output.metrics.items():
        tally.add(name, value if value.ndim else value.expand(len(output.loss)))
    _tally_rewards(tally, facts, examples, output)
    _tally_logps(tally, facts, flat)


def _tally_rewards(tally: Tally, facts: Sequence[Facts], examples: Examples, output: LossOutput) -> None:
    chosen, rejected = output.chosen_reward, output.rejected_reward
    reward = output.reward
    kind = facts[0].kind
    if reward is not None and kind is Data.PAIRS and reward.numel() == 2 * len(facts):
        pairs = reward.reshape(len(facts), 2)  # the two items of each pair, or a list of two
        chosen, rejected = pairs[:, 0], pairs[:, 1]
    elif reward is not None and reward.ndim == 2:
        scores, mask = examples.logps.scores, examples.logps.mask  # type: ignore[union-attr]
        best = scores.masked_fill(~mask, -torch.inf).argmax(1, keepdim=True)
        worst = scores.masked_fill(~mask, torch.inf).argmin(1, keepdim=True)
        chosen, rejected = reward.gather(1, best)[:, 0], reward.gather(1, worst)[:, 0]
    elif reward is not None:
        desirable = getattr(examples.logps, "desirable", torch.ones_like(reward, dtype=torch.bool))
        tally.add("rewards/chosen", reward[desirable])
        tally.add("rewards/rejected", reward[~desirable])
        return
    if chosen is None or rejected is None:
        if chosen is not None:
            tally.add("rewards/chosen", chosen)
        return
    tally.add("rewards/chosen", chosen)
    tally.add("rewards/rejected", rejected)
    tally.add("rewards/margins", chosen - rejected)
    tally.add("rewards/accuracies", (chosen > rejected).double())
    tally.add("rewards/ties", (chosen == rejected).double())


def _tally_logps(tally: Tally, facts: Sequence[Facts], flat: Flat) -> None:
    """Figures of the completions themselves: by side where there are sides, else over all of them."""
    chosen, rejected = _sides(facts)
    device = flat.sum.device
    columns = {"logps": flat.sum.detach(), "logps_mean": (flat.sum / flat.num_tokens).detach()}
    if flat.ref_sum is not None:
        columns["ratios"] = (flat.sum - flat.ref_sum).detach()
    sides = {"chosen": chosen, "rejected": rejected}
    index = {side: torch.tensor(at, dtype=torch.long, device=device) for side, at in sides.items() if at}
    for side, at in index.items():
        tally.add(f"lengths/{side}", flat.num_tokens[at])
        for name, values in columns.items():
            tally.add(f"{name}/{side}", values[at])
    if len(index) == 2 and len(chosen) == len(rejected) == len(facts):
        for name, values in columns.items():
            good, bad = values[index["chosen"]], values[index["rejected"]]
            tally.add(f"accuracies/{name}", (good > bad).double())
            tally.add(f"margins/{name}", good - bad)


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
