"""The next token: drawn by the inverse of the cumulative distribution, and scored to the precision of its logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prefopt.engine.next_token import BLOCK, draw

ENDS = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)  # the least and the largest number that is drawn


@pytest.mark.parametrize("vocabulary", [3, BLOCK, BLOCK + 1, 5 * BLOCK - 7])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_token_is_the_inverse_of_the_cumulative_distribution(vocabulary: int, temperature: float) -> None:
    random = torch.Generator().manual_seed(vocabulary)
    logits = 3 * torch.randn(64, vocabulary, generator=random, dtype=torch.float64)
    uniforms = torch.rand(64, generator=random, dtype=torch.float64)
    drawn, logps = draw(logits, uniforms, temperature, 1.0)
    cumulative = (logits / temperature).softmax(-1).cumsum(-1).numpy()
    expected = [np.searchsorted(row, u, side="right") for row, u in zip(cumulative, uniforms.numpy(), strict=True)]
    assert drawn.tolist() == expected
    assert logps is not None
    scored = logits.log_softmax(-1).gather(-1, drawn[:, None]).squeeze(1)
    torch.testing.assert_close(logps, scored, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kept", [[0], [BLOCK - 1], [BLOCK], [5, 2 * BLOCK + 3], [3 * BLOCK - 1]])
def test_a_token_that_is_ruled_out_is_never_drawn(kept: list[int]) -> None:
    """At the ends of the unit interval, in float32, with all of a block or its end ruled out."""
    logits = torch.full((2, 3 * BLOCK), -torch.inf)
    logits[:, kept] = torch.tensor([0.1 * place for place in range(len(kept))])
    drawn, _ = draw(logits, ENDS, 1.0, None)
    assert drawn.tolist() == [kept[0], kept[-1]]


def test_log_probs_are_those_of_float64() -> None:
    """But for the rounding of the result: float32 knows numbers below 16 to 2^-21."""
    logits = torch.randn(32, 50_000, generator=torch.Generator().manual_seed(0))
    drawn, logps = draw(logits, torch.rand(32, dtype=torch.float64), 1.0, 1.0)
    exact = logits.double().log_softmax(-1).gather(-1, drawn[:, None]).squeeze(1)
    assert logps is not None
    assert float((logps - exact).abs().max()) < 2**-21 + 32 * 2**-24  # and each exponential, to some units of 2^-24
