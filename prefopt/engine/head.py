"""Computes log-probs of tokens from hidden states, without ever holding all logits.

This is the only place that trains through a log-softmax over the vocabulary. What it computes, in five lines:

    logits = head.shape(hidden @ weight.T + bias)                        # (N, V), scaled and capped
    logp = logits.log_softmax(-1)
    entropy, log_sum_sq = -(logp.exp() * logp).sum(-1), (2 * logp).logsumexp(-1)
    away, toward = ((logp + e * (logp - ref_logp)).logsumexp(-1) for e in (epsilon, -epsilon))
    return logp.gather(-1, target[:, None])                              # (N,)

The projection runs in blocks of the vocabulary with a running logsumexp in float32, and the backward makes each block
again; a bounded part of the logits is kept, so that small batches recompute nothing. Memory does not grow with the
vocabulary.

Legend: N tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from prefopt.engine.cpu import is_bare, times_transposed
from prefopt.engine.router import RouterLoad
from prefopt.plugin import BESIDE_REFERENCE, PERTURBED, Vocab

# Elements of one block of logits: what a core's second-level cache holds, or enough to fill a GPU.
BLOCK = {"cpu": 2**18, "cuda": 2**26}
# Elements of logits kept between forward and backward (64 MiB in float32).
KEPT = 2**24


class TokenStats(NamedTuple):
    """Per scored token, (N,): its log-prob, and the requested statistics over the vocabulary, in nats.

    `router` is of the whole forward.
    """

    logp: Tensor
    log_sum_sq: Tensor | None = None
    entropy: Tensor | None = None
    kl: Tensor | None = None
    log_away: Tensor | None = None
    log_toward: Tensor | None = None
    value: Tensor | None = None  # a value model's estimate before the token
    router: RouterLoad | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> TokenStats:
        """The same with a function applied to every statistic."""
        changed: dict[str, Any] = {n: change(v) for n, v in self._asdict().items() if isinstance(v, Tensor)}
        return self._replace(**changed)


@dataclass(frozen=True)
class Head:
    """The output layer of a model as it is now: a projection, a scale, a softcap, and a temperature to divide by."""

    module: nn.Module
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    @classmethod
    def of(cls, model: Any) -> Head:
        """The head of a causal language model, with the logit scale or softcap that its family applies."""
        config = model.config.get_text_config()
        return cls(model.get_output_embeddings(), _scale(model, config), _softcap(config))

    @property
    def plain(self) -> bool:
        """Whether the projection is a bare matrix product; with LoRA, hooks or parametrizations it is not."""
        return type(self.module) is nn.Linear and is_bare(self.module)

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, V) logits of (N, H) hidden states, in at least float32."""
        return self.shape(self.module(hidden))

    def shape(self, raw: Tensor) -> Tensor:
        """Scale, softcap and temperature of raw logits, in at least float32."""
        logits = raw.to(torch.promote_types(raw.dtype, torch.float32))
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits if self.temperature == 1.0 else logits / self.temperature


def _scale(model: Any, config: Any) -> float:
    """The factor of a family's logits."""
    scale = 1.0
    own = getattr(model, "logit_scale", None)  # Cohere
    if isinstance(own, int | float):
        scale *= own
    scaling = getattr(config, "logits_scaling", None)  # Granite divides by it, HyperCLOVA X multiplies
    if isinstance(scaling, int | float):
        scale *= scaling if config.model_type.startswith("hyperclovax") else 1 / scaling
    multiplier = getattr(config, "lm_head_multiplier", None)  # Falcon-H1
    if isinstance(multiplier, int | float):
        scale *= multiplier
    return scale


def _softcap(config: Any) -> float | None:
    """The bound of a family's logits: Gemma 2 to 4, NanoChat; RecurrentGemma; xLSTM."""
    names = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    return next((float(cap) for name in names if (cap := getattr(config, name, None)) is not None), None)


class Reference(NamedTuple):
    """Hidden states (N, H) of a reference at the scored positions, and its head: for `BESIDE_REFERENCE`."""

    hidden: Tensor
    head: Head


def token_stats(
    hidden: Tensor,
    target: Tensor,
    head: Head,
    want: frozenset[Vocab] = frozenset(),
    *,
    entropy: bool = False,
    reference: Reference | None = None,
    epsilon: float | None = None,
) -> TokenStats:
    """Statistics of the tokens `target` (N,) predicted from `hidden` (N, H).

    Args:
        hidden: the model's last hidden states at the predicting positions.
        target: token ids.
        head: the output layer.
        want: statistics beyond the log-prob; those of `BESIDE_REFERENCE` need `reference`.
        entropy: also the entropy of the distribution.
        reference: the reference's hidden states and head.
        epsilon: the exponent of `PERTURBED`, which need it.
    """
    if want & BESIDE_REFERENCE and reference is None:
        raise ValueError(f"{_listed(want & BESIDE_REFERENCE)} over the vocabulary: give the reference's hidden states")
    if want & PERTURBED and epsilon is None:
        raise ValueError(f"{_listed(want & PERTURBED)} over the vocabulary: give `epsilon`")
    moved = epsilon if want & PERTURBED else None
    wanted = _Wanted(Vocab.LOG_SUM_SQ in want, entropy, Vocab.KL in want, moved, torch.is_grad_enabled())
    if head.plain and (reference is None or reference.head.plain):
        weights = _plain_weights(head)
        logp, kl, *constants = _Blocked.apply(hidden, *weights, target, head, wanted, reference)  # type: ignore[no-untyped-call]
        log_sum_sq, ent, away, toward = constants
        return TokenStats(logp, log_sum_sq, ent, kl, away, toward)
    return _by_rows(hidden, target, head, wanted, reference)


def _listed(statistics: frozenset[Vocab]) -> str:
    return ", ".join(sorted(statistic.value for statistic in statistics))


class _Wanted(NamedTuple):
    log_sum_sq: bool
    entropy: bool
    kl: bool
    epsilon: float | None
    graph: bool  # a backward may follow


def _by_rows(hidden: Tensor, target: Tensor, head: Head, wanted: _Wanted, reference: Reference | None) -> TokenStats:
    """The head's own forward, a few tokens at a time under checkpointing, for LoRA on the head and the like."""

    def rows(h: Tensor, t: Tensor, r: Tensor | None) -> tuple[Tensor | None, ...]:
        logits = head.logits(h)
        logp = logits.log_softmax(-1)
        p = logp.detach().exp()
        square = torch.logsumexp(2 * logp.detach(), -1) if wanted.log_sum_sq else None
        ent = -(p * logp.detach()).sum(-1) if wanted.entropy else None
        kl = away = toward = None
        if r is not None and reference is not None:
            with torch.no_grad():
                ref = reference.head.logits(r).log_softmax(-1)
                if wanted.epsilon is not None:
                    away, toward = _moved(logp.detach(), ref, wanted.epsilon)
            kl = (ref.exp() * (ref - logp)).sum(-1) if wanted.kl else None
        return logp.gather(-1, t[:, None]).squeeze(-1), square, ent, kl, away, toward

    size = max(1, KEPT // int(getattr(head.module, "out_features", 2**16)))
    parts = []
    for i in range(0, len(target), size):
        r = reference.hidden[i : i + size] if reference is not None else None
        args = (hidden[i : i + size], target[i : i + size], r)
        parts.append(checkpoint(rows, *args, use_reentrant=False) if wanted.graph else rows(*args))
    columns = ([x for x in column if x is not None] for column in zip(*parts, strict=True))
    logp, square, ent, kl, away, toward = (torch.cat(column) if column else None for column in columns)
    assert logp is not None
    return TokenStats(logp, square, ent, kl, away, toward)


def _moved(logp: Tensor, ref: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """(N,) the log-normalisers of the policy moved by epsilon, 0 to the bit where policy and reference are equal."""
    away, toward = (torch.logsumexp(logp + step * (logp - ref), -1) for step in (epsilon, -epsilon))
    own = torch.logsumexp(logp, -1)
    return away - own, toward - own


class _Running:
    """The logsumexp of (N, V) logits that come in blocks of the vocabulary; sums are float64, one for each token."""

    def __init__(self, n: int, logits: torch.dtype, device: torch.device) -> None:
        self.top = torch.full((n,), -torch.inf, dtype=logits, device=device)
        self.total = torch.zeros(n, dtype=_wide(device), device=device)

    def take(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The weights (N, block) of another block, and the factor (N,) by which all earlier weights shrink."""
        top = torch.maximum(self.top, logits.amax(1))
        weights, shrink = (logits - top[:, None]).exp_(), (self.top - top).to(self.total.dtype).exp()
        self.top, self.total = top, self.total * shrink + weights.sum(1)
        return weights, shrink

    @property
    def logsumexp(self) -> Tensor:
        return self.top + self.total.log()


class _Beside:
    """Statistics of policy and reference together, from blocks of both logits."""

    def __init__(self, epsilon: float | None, n: int, logits: torch.dtype, device: torch.device) -> None:
        steps = () if epsilon is None else (epsilon, -epsilon)
        self.moved = [(step, _Running(n, logits, device)) for step in steps]  # of pi^(1 + step) pi_ref^-step
        self.ref = _Running(n, logits, device)
        self.cross = torch.zeros_like(self.ref.total)

    def take(self, logits: Tensor, ref_logits: Tensor) -> None:
        """Another block; `ref_logits` is overwritten."""
        weights, shrink = self.ref.take(ref_logits)
        gap = ref_logits.sub_(logits)
        self.cross = self.cross * shrink + (weights * gap).sum(1)
        for step, running in self.moved:
            running.take(torch.sub(logits, gap, alpha=step))

    def kl(self, lse: Tensor) -> Tensor:
        """(N,) KL(reference || policy), from the logsumexp of the policy's logits."""
        return self.cross / self.ref.total - self.ref.logsumexp + lse

    def log_normalisers(self, lse: Tensor) -> list[Tensor]:
        """(N,) each, away and toward: 0 to the bit where policy and reference are equal."""
        ref = self.ref.logsumexp
        return [(running.logsumexp - lse) - step * (lse - ref) for step, running in self.moved]


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


class _Blocked(torch.autograd.Function):
    """Statistics from blocks of the vocabulary: each pass reads each row of the weight once."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        head: Head,
        wanted: _Wanted,
        reference: Reference | None,
    ) -> tuple[Tensor | None, ...]:
        work = _autocast(hidden)
        exact = torch.promote_types(hidden.dtype, torch.float32)  # of logits, and of what is returned
        ctx.hidden_dtype, hidden = hidden.dtype, hidden if work is None else hidden.to(work)
        block = _block_maker(hidden, weight, bias, head, work)
        n, vocab = len(target), weight.shape[0]
        size = max(64, BLOCK.get(hidden.device.type, BLOCK["cuda"]) // max(1, n))
        own, beside = _Running(n, exact, hidden.device), _Beside(wanted.epsilon, n, exact, hidden.device)
        ref_block = _reference_block(reference, work) if wanted.kl or beside.moved else None
        hit, square, spread = (torch.zeros_like(own.total) for _ in range(3))
        kept: list[Tensor] = []
        room = KEPT if wanted.graph and not wanted.kl else 0
        for start in range(0, vocab, size):
            logits = block(start, start + size)
            if room >= logits.numel() and start == len(kept) * size:
                kept.append(logits)
                room -= logits.numel()
            at, here = _within(target, start, logits.shape[1])
            hit = torch.where(here, logits.gather(1, at[:, None])[:, 0].to(hit.dtype), hit)
            weights, shrink = own.take(logits)
            if wanted.log_sum_sq:
                square = square * shrink.square() + weights.square().sum(1)
            if wanted.entropy:
                spread = spread * shrink + (weights * logits).sum(1)
            if ref_block is not None:
                beside.take(logits, ref_block(start, start + size))
        lse = own.logsumexp
        ctx.save_for_backward(hidden, weight, bias, target, lse.to(exact), beside.ref.logsumexp.to(exact))
        ctx.head, ctx.work, ctx.size, ctx.kept = head, work, size, kept
        ctx.ref_block = ref_block if wanted.kl else None
        log_sum_sq = (square.log() - 2 * own.total.log()).to(exact) if wanted.log_sum_sq else None
        entropy = (lse - spread / own.total).to(exact) if wanted.entropy else None
        kl = beside.kl(lse).to(exact) if wanted.kl else None
        away, toward = (value.to(exact) for value in beside.log_normalisers(lse)) if beside.moved else (None, None)
        constants = (log_sum_sq, entropy, away, toward)
        ctx.mark_non_differentiable(*(s for s in constants if s is not None))
        return (hit - lse).to(exact), kl, *constants

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_kl: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, lse, ref_lse = ctx.saved_tensors
        head: Head = ctx.head
        block = _block_maker(hidden, weight, bias, head, ctx.work)
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.zeros_like(hidden, dtype=lse.dtype) if want_hidden else None
        d_weight = torch.empty_like(weight) if want_weight else None
        d_bias = torch.empty_like(bias) if bias is not None and want_bias else None
        grad_logp = grad if grad_kl is None else grad - grad_kl
        kept: list[Tensor] = ctx.kept
        for i, start in enumerate(range(0, weight.shape[0], ctx.size)):
            stop = min(start + ctx.size, weight.shape[0])
            logits = kept[i] if i < len(kept) else block(start, stop)
            # d logp_t / d logit_v = [v = t] - p_v ;  d KL / d logit_v = p_v - p_ref,v
            d = (logits - lse[:, None]).exp_().mul_(grad_logp[:, None]).neg_()
            if ctx.ref_block is not None and grad_kl is not None:
                d -= (ctx.ref_block(start, stop) - ref_lse[:, None]).exp_().mul_(grad_kl[:, None])
            at, here = _within(target, start, stop - start)
            d.scatter_add_(1, at[:, None], torch.where(here, grad, 0)[:, None])
            if head.temperature != 1.0:
                d /= head.temperature
            if head.softcap is not None:
                d *= 1 - (logits * (head.temperature / head.softcap)).square()
            if head.scale != 1.0:
                d *= head.scale
            d = d.to(hidden.dtype)
            w = weight[start:stop] if ctx.work is None else weight[start:stop].to(ctx.work)
            if d_hidden is not None:
                d_hidden += times_transposed(d, w.T)
            if d_weight is not None:
                d_weight[start:stop] = times_transposed(d.T, hidden.T)
            if d_bias is not None:
                d_bias[start:stop] = d.sum(0)
        if d_hidden is not None:
            d_hidden = d_hidden.to(ctx.hidden_dtype)
        ctx.kept = []
        return d_hidden, d_weight, d_bias, None, None, None, None


def _autocast(hidden: Tensor) -> torch.dtype | None:
    """The precision of autocast, or None; as in torch it does not apply to float64."""
    device = hidden.device.type
    if not torch.is_autocast_enabled(device) or hidden.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(device)


def _within(target: Tensor, start: int, width: int) -> tuple[Tensor, Tensor]:
    """(N,) the column of each target in a block, and whether it is in the block; without a device sync."""
    at = target - start
    return at.clamp(0, width - 1), (at >= 0) & (at < width)


def _plain_weights(head: Head) -> tuple[Tensor, Tensor | None]:
    """The weight (V, H) and bias (V,) of a plain head."""
    assert isinstance(head.module, nn.Linear)
    return head.module.weight, head.module.bias


def _reference_block(reference: Reference | None, work: torch.dtype | None) -> Callable[[int, int], Tensor]:
    """The same as `_block_maker`, of the reference."""
    assert reference is not None, "checked in token_stats"
    hidden = reference.hidden if work is None else reference.hidden.to(work)
    return _block_maker(hidden, *_plain_weights(reference.head), reference.head, work)


def _block_maker(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, work: torch.dtype | None
) -> Callable[[int, int], Tensor]:
    """A function (start, stop) -> (N, stop - start) logits of a block of the vocabulary, in at least float32.

    Weight and bias are arguments, because in the backward a sharded module no longer holds them.
    """

    def block(start: int, stop: int) -> Tensor:
        w = weight[start:stop] if work is None else weight[start:stop].to(work)
        return head.shape(times_transposed(hidden, w, bias[start:stop].to(w.dtype) if bias is not None else None))

    return block
