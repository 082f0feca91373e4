"""Lines through measurements, and the bytes that a row keeps."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt.engine.cpu import available
from prefopt.engine.policy import Policy
from prefopt.engine.scoring import Branch, MicroBatch
from prefopt.planning.probe import Line, kept_bytes
from prefopt.planning.shape import Shape


def test_a_line_through_two_measurements() -> None:
    assert Line.through([1.0, 3.0], [3.0, 7.0]) == Line(fixed=1.0, slope=2.0)
    assert Line.through([2.0], [6.0])(4.0) == 12.0
    assert Line.through([1.0, 2.0], [5.0, 4.0])(2.0) >= 4.0  # noise: through the origin, never below


def test_kept_bytes_grow_with_the_tokens_and_are_those_of_the_formula() -> None:
    """A layer more keeps what the formula says of one, 704 here, and the scale of both norms: 2 / 704 = 0.003.

    Where attention is computed as plain products (`available`), also a copy of keys, values and output behind a long
    prompt: (2 K + A) / 704 = 128 / 704 = 0.18. Rows, rotary tables and the head are the same for both models.
    """
    ids = torch.arange(400, dtype=torch.int32).numpy() % 64
    batch = MicroBatch.of([Branch(ids[:-8], ids[-8:])], "tree")
    kept, shapes = [], []
    for layers in (1, 3):
        config = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=layers,
                             num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
        model = Policy(LlamaForCausalLM(config), "tree")
        kept.append(kept_bytes(model, lambda b, m=model: b.forward(m).sum.sum(), batch))  # type: ignore[misc]
        shapes.append(Shape.of(config))
    layer = (kept[1] - kept[0]) / 2 / batch.row.tokens_fed / 4  # elements of a token
    assert layer == pytest.approx(shapes[0].kept_elements(fused=True), rel=0.25 if available() else 0.01)
