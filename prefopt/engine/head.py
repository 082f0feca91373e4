"""Log-probs of tokens from hidden states, without ever holding the logits.

This is the only place in the project that computes a log-softmax. The projection onto the vocabulary runs in blocks
of the vocabulary with a running logsumexp in float32, and the backward makes each block again (a bounded part of the
logits is kept, so that small batches recompute nothing): memory does not grow with the vocabulary.

Legend: N tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prefopt.plugin import Vocab

# Elements of one block of logits: what a core's second-level cache holds, or enough to fill a GPU.
BLOCK = {"cpu": 2**18, "cuda": 2**26}
# Elements of logits kept between forward and backward (64 MiB in float32).
KEPT = 2**24


class TokenStats(NamedTuple):
    """Per scored token, (N,): its log-prob, and the whole-vocabulary statistics that were asked for, in nats."""

    logp: Tensor
    log_sum_sq: Tensor | None = None
    entropy: Tensor | None = None
    kl: Tensor | None = None


@dataclass(frozen=True)
class Head:
    """The output layer of a model as it is now: projection, then scale, then softcap."""

    module: nn.Module
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: Any) -> Head:
        """The head of a causal language model, with the logit scale or softcap that its family applies."""
        config = model.config.get_text_config()
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        return cls(model.get_output_embeddings(), scale, getattr(config, "final_logit_softcapping", None))

    @property
    def plain(self) -> bool:
        """Whether the projection is a bare matrix product: LoRA, hooks and parametrizations are not."""
        m = self.module
        return type(m) is nn.Linear and not (m._forward_hooks or m._forward_pre_hooks or hasattr(m, "parametrizations"))

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, V) logits of (N, H) hidden states, in at least float32."""
        return self.shape(self.module(hidden))

    def shape(self, raw: Tensor) -> Tensor:
        """Scale and softcap of raw logits, in at least float32."""
        logits = raw.to(torch.promote_types(raw.dtype, torch.float32))
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits


class Reference(NamedTuple):
    """Hidden states (N, H) of a reference at the scored positions, and its head: for KL over the vocabulary."""

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
) -> TokenStats:
    """Statistics of the tokens `target` (N,) predicted from `hidden` (N, H).

    Args:
        hidden: the model's last hidden states at the predicting positions.
        target: token ids.
        head: the output layer.
        want: statistics beyond the log-prob; `Vocab.KL` needs `reference`.
        entropy: also the entropy of the distribution itself (how a reference's entropy is made).
        reference: the reference's hidden states and head.
    """
    asked = _Asked(Vocab.LOG_SUM_SQ in want, entropy, Vocab.KL in want)
    if asked.kl and reference is None:
        raise ValueError("the KL over the vocabulary needs the reference's hidden states")
    if head.plain and (reference is None or reference.head.plain):
        weight, bias = head.module.weight, head.module.bias
        logp, kl, log_sum_sq, ent = _Blocked.apply(hidden, weight, bias, target, head, asked, reference)  # type: ignore[no-untyped-call]
        return TokenStats(logp, log_sum_sq, ent, kl)
    return _by_rows(hidden, target, head, asked, reference)


class _Asked(NamedTuple):
    log_sum_sq: bool
    entropy: bool
    kl: bool


def _by_rows(hidden: Tensor, target: Tensor, head: Head, asked: _Asked, reference: Reference | None) -> TokenStats:
    """The head's own forward, a few tokens at a time under checkpointing: for LoRA on the head and the like."""

    def rows(h: Tensor, t: Tensor, r: Tensor | None) -> tuple[Tensor | None, ...]:
        logits = head.logits(h)
        logp = logits.log_softmax(-1)
        p = logp.detach().exp()
        square = torch.logsumexp(2 * logp.detach(), -1) if asked.log_sum_sq else None
        ent = -(p * logp.detach()).sum(-1) if asked.entropy else None
        kl = None
        if asked.kl and r is not None and reference is not None:
            with torch.no_grad():
                ref = reference.head.logits(r).log_softmax(-1)
            kl = (ref.exp() * (ref - logp)).sum(-1)
        return logp.gather(-1, t[:, None]).squeeze(-1), square, ent, kl

    size = max(1, KEPT // int(getattr(head.module, "out_features", 2**16)))
    parts = []
    for i in range(0, len(target), size):
        r = reference.hidden[i : i + size] if reference is not None else None
        args = (hidden[i : i + size], target[i : i + size], r)
        parts.append(checkpoint(rows, *args, use_reentrant=False) if torch.is_grad_enabled() else rows(*args))
    return TokenStats(*(torch.cat(column) if column[0] is not None else None for column in zip(*parts, strict=True)))


class _Blocked(torch.autograd.Function):
    """Blocks of the vocabulary with a running logsumexp: each row of the weight is read once a pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        head: Head,
        asked: _Asked,
        reference: Reference | None,
    ) -> tuple[Tensor | None, ...]:
        work = torch.get_autocast_dtype(hidden.device.type) if torch.is_autocast_enabled(hidden.device.type) else None
        hidden_dtype, hidden = hidden.dtype, hidden if work is None else hidden.to(work)
        block = _block_maker(hidden, weight, bias, head, work)
        ref_block = None
        if asked.kl and reference is not None:
            r = reference.head.module
            ref_hidden = reference.hidden if work is None else reference.hidden.to(work)
            ref_block = _block_maker(ref_hidden, r.weight, r.bias, reference.head, work)
        n, vocab = len(target), weight.shape[0]
        size = max(64, BLOCK.get(hidden.device.type, BLOCK["cuda"]) // max(1, n))
        acc = torch.promote_types(hidden_dtype, torch.float32)
        new = {"dtype": acc, "device": hidden.device}
        top, total = torch.full((n,), -torch.inf, **new), torch.zeros(n, **new)
        hit = torch.zeros(n, **new)
        square = torch.zeros(n, **new) if asked.log_sum_sq else None
        spread = torch.zeros(n, **new) if asked.entropy else None
        rtop, rtotal, cross = torch.full((n,), -torch.inf, **new), torch.zeros(n, **new), torch.zeros(n, **new)
        kept: list[Tensor] = []
        room = KEPT if any(ctx.needs_input_grad[:3]) and not asked.kl else 0
        for start in range(0, vocab, size):
            stop = min(start + size, vocab)
            logits = block(start, stop)
            if room >= logits.numel() and start == len(kept) * size:
                kept.append(logits)
                room -= logits.numel()
            here = (target >= start) & (target < stop)
            rows = here.nonzero().squeeze(1)
            hit[rows] = logits[rows, target[rows] - start]
            new_top = torch.maximum(top, logits.amax(1))
            shrink = (top - new_top).exp()
            e = (logits - new_top[:, None]).exp_()
            if square is not None:
                square = square * shrink * shrink + (e * e).sum(1)
            if spread is not None:
                spread = spread * shrink + (e * logits).sum(1)
            total = total * shrink + e.sum(1)
            top = new_top
            if ref_block is not None:
                ref = ref_block(start, stop)
                new_rtop = torch.maximum(rtop, ref.amax(1))
                rshrink = (rtop - new_rtop).exp()
                re = (ref - new_rtop[:, None]).exp_()
                cross = cross * rshrink + (re * (ref - logits)).sum(1)
                rtotal, rtop = rtotal * rshrink + re.sum(1), new_rtop
        lse = top + total.log()
        kl = ref_lse = None
        if ref_block is not None:
            ref_lse = rtop + rtotal.log()
            kl = cross / rtotal - ref_lse + lse
        ctx.save_for_backward(hidden, weight, bias, target, lse, ref_lse)
        ctx.head, ctx.work, ctx.size, ctx.kept, ctx.ref_block = head, work, size, kept, ref_block
        ctx.dtypes = hidden_dtype
        log_sum_sq = square.log() - 2 * total.log() if square is not None else None
        ent = lse - spread / total if spread is not None else None
        if log_sum_sq is not None:
            ctx.mark_non_differentiable(log_sum_sq)
        if ent is not None:
            ctx.mark_non_differentiable(ent)
        return hit - lse, kl, log_sum_sq, ent

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_kl: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, lse, ref_lse = ctx.saved_tensors
        head: Head = ctx.head
        block = _block_maker(hidden, weight, bias, head, ctx.work)
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.zeros_like(hidden, dtype=lse.dtype) if want_hidden else None
        d_weight = torch.empty_like(weight) if want_weight else None
        d_bias = torch.empty_like(bias) if bias is not None and want_bias else None
        pull = grad if grad_kl is None else grad - grad_kl
        kept: list[Tensor] = ctx.kept
        for start in range(0, weight.shape[0], ctx.size):
            stop = min(start + ctx.size, weight.shape[0])
            i = start // ctx.size
            logits = kept[i] if i < len(kept) else block(start, stop)
            # d logp_t / d logit_v = [v = t] - p_v ;  d KL / d logit_v = p_v - p_ref,v
            d = (logits - lse[:, None]).exp_().mul_(pull[:, None]).neg_()
            if ctx.ref_block is not None and grad_kl is not None:
                d -= (ctx.ref_block(start, stop) - ref_lse[:, None]).exp_().mul_(grad_kl[:, None])
            rows = ((target >= start) & (target < stop)).nonzero().squeeze(1)
            d[rows, target[rows] - start] += grad[rows]
            if head.softcap is not None:
                d *= 1 - (logits / head.softcap).square()
            if head.scale != 1.0:
                d *= head.scale
            d = d.to(hidden.dtype)
            w = weight[start:stop] if ctx.work is None else weight[start:stop].to(ctx.work)
            if d_hidden is not None:
                if d.dtype == d_hidden.dtype:
                    d_hidden.addmm_(d, w)
                else:
                    d_hidden += d @ w
            if d_weight is not None:
                d_weight[start:stop] = d.T @ hidden
            if d_bias is not None:
                d_bias[start:stop] = d.sum(0)
        if d_hidden is not None:
            d_hidden = d_hidden.to(ctx.dtypes)
        ctx.kept = []
        return d_hidden, d_weight, d_bias, None, None, None, None


def _block_maker(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, work: torch.dtype | None
) -> Callable[[int, int], Tensor]:
    """(start, stop) -> (N, stop - start) logits of that block of the vocabulary, in at least float32."""

    def block(start: int, stop: int) -> Tensor:
        w = weight[start:stop] if work is None else weight[start:stop].to(work)
        raw = hidden @ w.T
        if bias is not None:
            raw = raw + bias[start:stop].to(raw.dtype)
        return head.shape(raw)

    return block
