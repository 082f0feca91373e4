"""The cache with room gives the keys and values of transformers' own, whatever is appended and dropped."""

from __future__ import annotations

import torch
from transformers import DynamicCache, Gemma3TextConfig, LlamaConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from prefopt.engine.kv_cache import ROOM, RoomyLayer, roomy_cache

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "vocab_size": 8}


def states(rows: int, tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 2, tokens, 4, generator=random), torch.randn(rows, 2, tokens, 6, generator=random)


def test_it_is_the_cache_of_transformers() -> None:
    roomy, plain = RoomyLayer(), DynamicLayer()
    rows = 3
    for step in range(2 * ROOM):
        if step in (1, 7, 8, ROOM):
            kept = torch.arange(rows).repeat_interleave(2) if step == 1 else torch.arange(1, rows)
            rows = len(kept)
            for layer in (roomy, plain):
                layer.batch_select_indices(kept)
        given = states(rows, 5 if step == 0 else 1 + step % 2, step)
        for ours, theirs in zip(roomy.update(*given), plain.update(*given), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        assert roomy.get_seq_length() == plain.get_seq_length()
    roomy.reset()
    assert roomy.get_seq_length() == 0
    first = states(1, 2, 99)
    torch.testing.assert_close(roomy.update(*first)[0], first[0])


def test_a_step_copies_no_more_than_its_own() -> None:
    layer = RoomyLayer()
    layer.update(*states(2, 5, 0))
    places = {layer.update(*states(2, 1, step))[0].data_ptr() for step in range(ROOM)}
    assert len(places) == 1


def test_layers_that_forget_are_those_of_transformers() -> None:
    config = Gemma3TextConfig(**SIZES, head_dim=8, num_key_value_heads=2, sliding_window=4,
                              layer_types=["sliding_attention", "full_attention"])  # fmt: skip
    sliding, whole = roomy_cache(config).layers
    assert type(sliding) is DynamicSlidingWindowLayer
    assert type(whole) is RoomyLayer
    layers = roomy_cache(LlamaConfig(**SIZES)).layers
    assert len(layers) == len(DynamicCache(config=LlamaConfig(**SIZES)).layers)
