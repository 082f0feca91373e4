"""The head against a dense float64 log-softmax: values, gradients, memory, both of its paths."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prefopt.engine import head as heads
from prefopt.engine.head import Head, Reference, TokenStats, token_stats
from prefopt.plugin import Vocab
from tests.engine import families

N, H, V = 23, 12, 301
EVERYTHING = frozenset(Vocab) - {Vocab.REF_ENTROPY}
EPSILON = 0.3
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 2.0},
    "temperature": {"temperature": 0.6},
    "all": {"bias": True, "scale": 1.7, "softcap": 2.5, "temperature": 1.4},
}


def make(
    seed: int,
    *,
    bias: bool = False,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    dtype: Any,
) -> tuple[Tensor, Head]:
    """Hidden states (N, H) and a head whose logits are a few nats wide."""
    torch.manual_seed(seed)
    layer = nn.Linear(H, V, bias=bias, dtype=dtype)
    nn.init.normal_(layer.weight)
    return torch.randn(N, H, dtype=dtype), Head(layer, scale, softcap, temperature)


def targets() -> Tensor:
    """Token ids, the first and the last of the vocabulary among them."""
    found = torch.randint(V, (N,), generator=torch.Generator().manual_seed(5))
    found[0], found[1] = 0, V - 1
    return found


def dense(hidden: Tensor, head: Head, reference: Reference) -> TokenStats:
    """Everything written out over the whole vocabulary, in float64."""

    def logp_of(h: Tensor, of: Head) -> Tensor:
        assert isinstance(of.module, nn.Linear)
        logits = h.double() @ of.module.weight.double().T
        if of.module.bias is not None:
            logits = logits + of.module.bias.double()
        logits = logits * of.scale
        if of.softcap is not None:
            logits = of.softcap * torch.tanh(logits / of.softcap)
        logits = logits / of.temperature
        return logits - torch.log(torch.exp(logits).sum(-1, keepdim=True))

    logp, ref = logp_of(hidden, head), logp_of(*reference)
    p, q = logp.exp(), ref.exp()
    return TokenStats(
        logp=logp[torch.arange(N), targets()],
        log_sum_sq=torch.log((p * p).sum(-1)),
        entropy=-(p * logp).sum(-1),
        kl=(q * (ref - logp)).sum(-1),
        log_away=torch.log((p ** (1 + EPSILON) * q**-EPSILON).sum(-1)),
        log_toward=torch.log((p ** (1 - EPSILON) * q**EPSILON).sum(-1)),
    )


def by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the path that calls the head's own forward, a few rows at a time."""
    monkeypatch.setattr(Head, "plain", property(lambda self: False))
    monkeypatch.setattr(heads, "KEPT", 4 * V)


def in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the blocked path, in five blocks of the vocabulary of which two are kept."""
    monkeypatch.setitem(heads.BLOCK, "cpu", 64 * N)
    monkeypatch.setattr(heads, "KEPT", 2 * 64 * N)


@pytest.fixture(params=[in_blocks, by_rows], ids=["blocked", "rows"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    choose: Callable[[pytest.MonkeyPatch], None] = request.param
    choose(monkeypatch)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_values(shape: str, dtype: torch.dtype) -> None:
    hidden, head = make(0, dtype=dtype, **SHAPES[shape])
    reference = Reference(*make(1, dtype=dtype, **SHAPES[shape]))
    want = dense(hidden, head, reference)
    for graph in (False, True):
        with torch.set_grad_enabled(graph):
            got = token_stats(hidden, targets(), head, EVERYTHING, entropy=True, reference=reference, epsilon=EPSILON)
        # Sums over 301 terms of logits up to 20: 40 ulp of 20 in float32.
        slack = 1e-12 if dtype == torch.float64 else 40 * 20 * torch.finfo(dtype).eps
        for value, expected in zip(got[:6], want[:6], strict=True):
            assert value is not None
            assert value.dtype == dtype
            torch.testing.assert_close(value.double(), expected, rtol=0, atol=slack)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_equal_the_dense_ones(shape: str) -> None:
    hidden, head = make(0, dtype=torch.float64, **SHAPES[shape])
    reference = Reference(*make(1, dtype=torch.float64, **SHAPES[shape]))
    inputs = [hidden.requires_grad_(), *head.module.parameters()]
    one, two = torch.randn(2, N, dtype=torch.float64)
    want = dense(hidden, head, reference)
    got = token_stats(hidden, targets(), head, EVERYTHING, entropy=True, reference=reference, epsilon=EPSILON)
    assert got.kl is not None
    assert want.kl is not None
    for objective in (
        lambda s: (one * s.logp).sum(),
        lambda s: (two * s.kl).sum(),
        lambda s: (one * s.logp + two * s.kl).sum(),
    ):
        found = torch.autograd.grad(objective(got), inputs, retain_graph=True)
        expected = torch.autograd.grad(objective(want), inputs, retain_graph=True)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    for constant in (got.log_sum_sq, got.entropy, got.log_away, got.log_toward):
        assert constant is not None
        assert not constant.requires_grad


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("shape", ["plain", "all"])
def test_gradcheck(shape: str) -> None:
    hidden, head = make(0, dtype=torch.float64, **SHAPES[shape])
    few = 5
    ref_hidden, ref_head = make(1, dtype=torch.float64, **SHAPES[shape])
    reference = Reference(ref_hidden[:few], ref_head)
    weight, *bias = head.module.parameters()

    def stats(h: Tensor, w: Tensor, *b: Tensor) -> tuple[Tensor, Tensor | None]:
        layer = nn.Linear(H, V, bias=bool(b), dtype=torch.float64)
        del layer.weight
        layer.weight = w  # type: ignore[assignment]
        if b:
            del layer.bias
            layer.bias = b[0]  # type: ignore[assignment]
        found = token_stats(
            h, targets()[:few], Head(layer, head.scale, head.softcap), EVERYTHING, reference=reference, epsilon=EPSILON
        )
        return found.logp, found.kl

    inputs = [t.detach().clone().requires_grad_() for t in (hidden[:few], weight, *bias)]
    assert torch.autograd.gradcheck(stats, inputs, fast_mode=True)


@pytest.mark.parametrize("frozen", ["weight", "hidden"])
def test_frozen_sides(frozen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_blocks(monkeypatch)
    hidden, head = make(0, dtype=torch.float64, bias=True)
    for parameter in head.module.parameters():
        parameter.requires_grad_(frozen != "weight")
    hidden.requires_grad_(frozen != "hidden")
    stats = token_stats(hidden, targets(), head)
    stats.logp.sum().backward()
    assert (hidden.grad is None) == (frozen == "hidden")
    assert all((p.grad is None) == (frozen == "weight") for p in head.module.parameters())
    want_hidden, want_head = make(0, dtype=torch.float64, bias=True)
    want_hidden.requires_grad_()
    want_head.module.requires_grad_(True)
    dense(want_hidden, want_head, Reference(want_hidden.detach(), want_head)).logp.sum().backward()
    pairs = [(hidden, want_hidden), *zip(head.module.parameters(), want_head.module.parameters(), strict=True)]
    for got, want in pairs:
        if got.grad is not None:
            torch.testing.assert_close(got.grad, want.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("path")
def test_step_zero_has_no_divergence() -> None:
    """Policy and reference equal: the KL is 0 to the last digits, and so is its gradient; what a moved policy's
    probabilities sum to is 1 to the bit, so that no rounding decides which way it goes."""
    hidden, head = make(0, dtype=torch.float32, softcap=3.0)
    hidden.requires_grad_()
    reference = Reference(hidden.detach(), head)
    stats = token_stats(hidden, targets(), head, EVERYTHING, reference=reference, epsilon=EPSILON)
    for moved in (stats.log_away, stats.log_toward):
        assert moved is not None
        assert (moved == 0).all()
    kl = stats.kl
    assert kl is not None
    assert kl.abs().max() < 1e-6
    kl.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.abs().max() < 1e-5


def test_known_distributions() -> None:
    """Uniform over V tokens: log-prob -log V, entropy log V, log of the sum of squares -log V; logits that are almost
    one-hot: 0, 0 and 0."""
    flat = Head(nn.Linear(H, V, bias=False))
    nn.init.zeros_(flat.module.weight)  # type: ignore[arg-type]
    got = token_stats(torch.randn(N, H), targets(), flat, frozenset({Vocab.LOG_SUM_SQ}), entropy=True)
    for value, want in zip(got[:3], (-math.log(V), -math.log(V), math.log(V)), strict=True):
        assert value is not None
        torch.testing.assert_close(value, torch.full((N,), want), atol=1e-5, rtol=0)
    sharp = Head(nn.Linear(V, V, bias=False))
    sharp.module.weight.data = 200 * torch.eye(V)
    got = token_stats(torch.eye(V)[targets()], targets(), sharp, frozenset({Vocab.LOG_SUM_SQ}), entropy=True)
    for value in got[:3]:
        assert value is not None
        torch.testing.assert_close(value, torch.zeros(N), atol=1e-5, rtol=0)


def test_huge_logits_do_not_overflow() -> None:
    hidden, head = make(0, dtype=torch.float32, scale=1e4)
    other = Reference(make(1, dtype=torch.float32)[0], head)
    stats = token_stats(hidden, targets(), head, EVERYTHING, entropy=True, reference=other, epsilon=EPSILON)
    for value in stats[:6]:
        assert value is not None
        assert torch.isfinite(value).all()


@pytest.mark.usefixtures("path")
def test_a_log_prob_is_never_above_zero() -> None:
    """Not even by rounding, where a token is all but certain: log(1 - p) must stay a number."""
    hidden, head = make(0, dtype=torch.float32, scale=200.0)
    with torch.no_grad():
        certain = head.logits(hidden).argmax(-1)
        logp = token_stats(hidden, certain, head).logp
    assert (logp > -1e-6).sum() > N / 2
    assert (logp <= 0).all()


def test_kl_without_a_reference_is_an_error() -> None:
    hidden, head = make(0, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"^kl over the vocabulary: give the reference's hidden states"):
        token_stats(hidden, targets(), head, frozenset({Vocab.KL}))
    with pytest.raises(ValueError, match=r"^log_away over the vocabulary: give `epsilon`"):
        token_stats(hidden, targets(), head, frozenset({Vocab.LOG_AWAY}), reference=Reference(hidden, head))


def test_second_derivatives_are_refused_not_wrong() -> None:
    hidden, head = make(0, dtype=torch.float64)
    hidden.requires_grad_()
    (first,) = torch.autograd.grad(token_stats(hidden, targets(), head).logp.sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        first.sum().backward()


# ---- memory


class Largest(TorchDispatchMode):
    """The largest tensor, in elements, that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
        for out in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in given:
                self.elements = max(self.elements, out.numel())
        return made


@pytest.mark.parametrize("want", [frozenset(), EVERYTHING], ids=["log-probs", "statistics"])
@pytest.mark.parametrize("vocab", [2_000, 20_000])
def test_the_logits_are_never_held(vocab: int, want: frozenset[Vocab], monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor beyond a block but the weight's gradient; between forward and backward at most KEPT elements; the
    hidden size is small, so that tokens x vocabulary would stand out."""
    tokens, hidden_size = 400, 4
    monkeypatch.setattr(heads, "KEPT", 2**17)
    monkeypatch.setitem(heads.BLOCK, "cpu", 2**15)
    layer = nn.Linear(hidden_size, vocab, bias=False)
    hidden = torch.randn(tokens, hidden_size, requires_grad=True)
    target = torch.randint(vocab, (tokens,))
    reference = Reference(hidden.detach(), Head(layer))
    held: list[Tensor] = []
    real = heads._block_maker

    def watched(*args: Any) -> Any:
        block = real(*args)

        def keep(start: int, stop: int) -> Tensor:
            logits = block(start, stop)
            held.append(logits)
            return logits

        return keep

    with Largest() as seen:
        given: dict[str, Any] = {"entropy": True, "reference": reference, "epsilon": EPSILON} if want else {}
        stats = token_stats(hidden, target, Head(layer), want, **given)
        assert seen.elements <= 2**15
        kept = sum(k.numel() for k in stats.logp.grad_fn.kept)  # type: ignore[union-attr]
        assert kept <= 2**17 < tokens * vocab
        stats.logp.sum().backward()
    assert seen.elements <= max(2**15, vocab * hidden_size)  # the weight's gradient
    monkeypatch.setattr(heads, "_block_maker", watched)
    with torch.no_grad():
        token_stats(hidden, target, Head(layer), want, **given)
    assert len(held) * 2**15 >= tokens * vocab  # it did run over the whole vocabulary
    assert not any(b.numel() > 2**15 for b in held)


def test_nothing_is_kept_without_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head = make(0, dtype=torch.float32)
    seen: list[Any] = []
    real = heads._Blocked.forward

    def spy(ctx: Any, *args: Any) -> Any:
        seen.append(ctx)
        return real(ctx, *args)

    monkeypatch.setattr(heads._Blocked, "forward", staticmethod(spy))
    with torch.no_grad():
        token_stats(hidden, targets(), head)
    assert seen[0].kept == []


def test_the_head_of_each_scaled_family() -> None:
    assert Head.of(families.model("cohere")).scale == 0.0625
    assert Head.of(families.model("granite")).scale == 1 / 8
    assert Head.of(families.model("hyperclovax")).scale == 0.125
    assert Head.of(families.model("falcon_h1")).scale == 0.5
    assert Head.of(families.model("gemma2")).softcap == 3.0
    assert Head.of(families.model("recurrent_gemma")).softcap == 3.0
