"""Attention by plain products against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.engine.cpu import dense_attention


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()


def mask_of(kind: str, b: int, n: int, m: int) -> Tensor | None:
    if kind == "causal":
        return None
    seen = (torch.rand(b, 1, n, m, generator=torch.Generator().manual_seed(0)) < 0.6).tril_(m - n)
    seen[..., 0] = True
    return seen if kind == "bool" else torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)


@pytest.mark.parametrize("kind", ["causal", "bool", "added"])
@pytest.mark.parametrize(
    ("b", "heads", "groups", "n", "size"),
    [(1, 6, 2, 130, 16), (2, 3, 3, 300, 16), (1, 4, 1, 600, 16), (1, 4, 4, 200, 8)],
)
def test_values_and_gradients(kind: str, b: int, heads: int, groups: int, n: int, size: int) -> None:
    """Values may be of another size than queries (DeepSeek).

    Both sum at most 600 terms of order 1 in float32: 600 * 6e-8 = 4e-5 of the largest, at worst.
    """
    m = n if kind == "causal" else n + 7
    q, k, v = draw(b, heads, n, 16), draw(b, groups, m, 16), draw(b, groups, m, size) * 1.0
    v.retain_grad()
    mask = mask_of(kind, b, n, m)
    pull = torch.randn(b, heads, n, size, generator=torch.Generator().manual_seed(5))

    def run(own: bool) -> list[Tensor]:
        q.grad = k.grad = None
        values = v.detach().requires_grad_()
        if own:
            out = dense_attention.attend(q, k, values, mask, 0.3)
        else:
            repeat = heads // groups
            ks, vs = k.repeat_interleave(repeat, 1), values.repeat_interleave(repeat, 1)
            out = F.scaled_dot_product_attention(q, ks, vs, mask, is_causal=mask is None, scale=0.3)
        out.backward(pull)
        assert q.grad is not None
        assert k.grad is not None
        assert values.grad is not None
        return [out.detach(), q.grad.clone(), k.grad.clone(), values.grad]

    for got, expected in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=4e-5 * float(expected.abs().max()))


def test_gradients_against_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_attention, "_BLOCK", 3)
    q, k, v = (draw(1, heads, 7, 4, dtype=torch.float64) for heads in (4, 2, 2))
    assert torch.autograd.gradcheck(lambda q, k, v: dense_attention.attend(q, k, v, None, None), (q, k, v))


def test_what_it_is_not_for() -> None:
    q = torch.zeros(1, 2, 256, 8)
    assert not dense_attention.is_faster(q, dropout=0.1)
    assert not dense_attention.is_faster(q[:, :, :8], dropout=0.0)
    assert not dense_attention.is_faster(q.double(), dropout=0.0)
