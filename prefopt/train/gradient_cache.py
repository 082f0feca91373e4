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

from prefopt.train.examples import Facts, Flat
from prefopt.train.sources.offline import Work

DIFFERENTIABLE = ("sum", "token", "kl")


@dataclass(frozen=True, eq=False)
class Whole:
    """A global batch, in the order of the data, on every process: no split of it shows in the loss."""

    index: Sequence[int]
    facts: Sequence[Facts]
    flat: Flat

    @classmethod
    def gather(cls, works: Sequence[Work], flats: Sequence[Flat], processes: int) -> Whole:
        """From what this process scored (`flats[i]` for `works[i]`) and what the others did."""
        mine = [
            entry
            for work, flat in zip(works, flats, strict=True)
            if work.real
            for entry in zip(work.index, work.facts, flat.map(_plain).split(work.completions), strict=True)
        ]
        everyone = sorted(gather_object(mine) if processes > 1 else mine, key=lambda entry: entry[0])
        index, facts, parts = zip(*everyone, strict=True)
        device = flats[0].sum.device
        return cls(index, facts, Flat.cat(parts).map(lambda value: value.to(device)))

    def leaves(self) -> Flat:
        """The same numbers, with gradient asked for where log-probs can have one."""
        asked = {n: v.clone().requires_grad_() for n, v in self.flat.given().items() if n in DIFFERENTIABLE}
        return replace(self.flat, **asked)

    def pulls(self, objective: Tensor, leaves: Flat) -> Mapping[int, Flat]:
        """The objective's gradient by the log-probs of each record (`num_tokens` keeps its place)."""
        names = [n for n in DIFFERENTIABLE if n in leaves.given()]
        values = [leaves.given()[n] for n in names]
        gradients = torch.autograd.grad(objective, values, allow_unused=True, materialize_grads=True)
        pull = Flat(num_tokens=leaves.num_tokens, **dict(zip(names, gradients, strict=True)))
        return dict(zip(self.index, pull.split([f.completions for f in self.facts]), strict=True))


def pulled(flat: Flat, parts: Sequence[Flat]) -> Tensor:
    """() the number whose gradient by `flat` is what `parts` hold: backward from it carries them back."""
    given = flat.given()
    names = [name for name in DIFFERENTIABLE if name in given]
    if not parts:  # a filler
        return flat.sum.sum() * 0.0
    pull = Flat.cat(parts).given()
    return torch.stack([(given[name] * pull[name]).sum() for name in names]).sum()


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Of this process's generators, so that a second pass draws the same dropout."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    """Go back to `random_state`."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


def _plain(value: Tensor) -> Tensor:
    return value.detach().cpu()
