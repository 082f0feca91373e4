"""A loss that couples the examples of a batch, over several micro-batches and processes: a gradient cache.

A first pass without graph scores the global batch; the loss on all of it gives its gradient by every log-prob; a second
pass with graph carries each micro-batch's part of that gradient back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from accelerate.utils import gather_object
from torch import Tensor

from prefopt.plugin import Logps
from prefopt.train.batches import Work
from prefopt.train.examples import Facts, change, given, join, split

DIFFERENTIABLE = ("sum", "token", "kl", "value")


@dataclass(frozen=True, eq=False)
class Whole:
    """A global batch, in the order of the data, on every process: no split of it shows in the loss."""

    index: Sequence[int]
    facts: Sequence[Facts]
    logps: Logps

    @classmethod
    def gather(cls, works: Sequence[Work], scored: Sequence[Logps], processes: int) -> Whole:
        """From what this process scored (`scored[i]` for `works[i]`) and what the others did."""
        mine = [
            entry
            for work, logps in zip(works, scored, strict=True)
            if work.real
            for entry in zip(work.index, work.facts, split(change(logps, _plain), work.completions), strict=True)
        ]
        everyone = sorted(gather_object(mine) if processes > 1 else mine, key=lambda entry: entry[0])
        index, facts, parts = zip(*everyone, strict=True)
        device = scored[0].sum.device
        return cls(index, facts, change(join(parts), lambda value: value.to(device)))

    def leaves(self) -> Logps:
        """The same numbers, with gradient asked for where log-probs can have one."""
        asked = {n: v.clone().requires_grad_() for n, v in given(self.logps).items() if n in DIFFERENTIABLE}
        return replace(self.logps, **asked)

    def gradients(self, objective: Tensor, leaves: Logps) -> Mapping[int, Logps]:
        """The objective's gradient by the log-probs of each record (`num_tokens` keeps its place)."""
        names = [n for n in DIFFERENTIABLE if n in given(leaves)]
        values = [given(leaves)[n] for n in names]
        found = torch.autograd.grad(objective, values, allow_unused=True, materialize_grads=True)
        gradient = Logps(num_tokens=leaves.num_tokens, **dict(zip(names, found, strict=True)))
        return dict(zip(self.index, split(gradient, [f.completions for f in self.facts]), strict=True))


def carried(logps: Logps, gradients: Sequence[Logps]) -> Tensor:
    """() the number whose gradient by `logps` is `gradients`: backward from it carries them back."""
    mine = given(logps)
    names = [name for name in DIFFERENTIABLE if name in mine]
    if not gradients:  # a filler
        return logps.sum.sum() * 0.0
    gradient = given(join(gradients))
    # A part of the global batch may be narrower than the whole.
    return torch.stack([(mine[name] * _as_wide(gradient[name], mine[name])).sum() for name in names]).sum()


def _as_wide(value: Tensor, like: Tensor) -> Tensor:
    return value if value.ndim == 1 else value[:, : like.shape[1]]


def _plain(value: Tensor) -> Tensor:
    return value.detach().cpu()
