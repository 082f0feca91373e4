"""A key-value cache with room for the next tokens: a step of sampling writes its own, and copies nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 64  # tokens beyond those at hand, at least; a quarter of long texts


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Holds keys and values (B, heads, tokens, d) as views into larger buffers."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)  # type: ignore[no-untyped-call]
        self.buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **given: Any) -> tuple[Tensor, Tensor]:
        """Append the keys and values of new tokens; gives those of all."""
        before = self.get_seq_length()
        if before == 0:
            self.buffers = None
            found: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **given)
            return found
        assert self.keys is not None
        assert self.values is not None
        after = before + key_states.shape[-2]
        if self.buffers is None or self.buffers[0].shape[-2] < after:
            self.buffers = _with_room(self.keys, after), _with_room(self.values, after)
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[..., before:after, :] = states
        self.keys, self.values = self.buffers[0][..., :after, :], self.buffers[1][..., :after, :]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows only."""
        super().batch_select_indices(indices)
        self.buffers = None


def roomy_cache(config: Any) -> DynamicCache:
    """The cache of a model's layers; those that forget (sliding windows) or share are transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _with_room(states: Tensor, tokens: int) -> Tensor:
    """A copy of (..., T, d) in a buffer for more than `tokens`, of which the first T are written."""
    shape = *states.shape[:-2], tokens + max(ROOM, tokens // 4), states.shape[-1]
    buffer = torch.empty(shape, dtype=states.dtype, device=states.device)
    buffer[..., : states.shape[-2], :] = states
    return buffer
