"""What the adapters share: the sums of pairs, log-probs per token, logits that have them, and our own formulas."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.losses.registry import load, loss_class
from prefopt.testing.kit import example
from prefopt.testing.numbers import build, call
from prefopt.testing.referee import Case, UnsupportedError

Inputs = dict[str, Tensor]
Options = dict[str, Any]
SIDES = ("chosen", "rejected")
OVER_SAMPLES = "mean over all samples of the batch"


def pair_sums(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(B,) sums of the policy and of the reference, as most libraries take them; the reference is 0 where not given."""
    policy = [inputs[side] for side in SIDES]
    reference = [inputs.get(f"ref_{side}", torch.zeros_like(inputs[side])) for side in SIDES]
    return policy[0], policy[1], reference[0], reference[1]


def log_ratios(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """(B,) log-ratios of the chosen and of the rejected sides."""
    chosen, rejected, ref_chosen, ref_rejected = pair_sums(inputs)
    return chosen - ref_chosen, rejected - ref_rejected


def means(inputs: Inputs, prefix: str = "") -> tuple[Tensor, Tensor]:
    """(B,) log-probs per token of the chosen and of the rejected sides; of the reference with the prefix `ref_`."""
    chosen, rejected = (inputs[f"{prefix}{side}"] / inputs[f"{side}_num_tokens"] for side in SIDES)
    return chosen, rejected


def paired(inputs: Inputs) -> Inputs:
    """Desirable and undesirable items side by side, as pairs; pairs as they are.

    Raises:
        UnsupportedError: not as many desirable items as undesirable ones.
    """
    if "desirable" not in inputs:
        return inputs
    if 2 * int(inputs["desirable"].sum()) != len(inputs["desirable"]):
        raise UnsupportedError("it takes pairs")
    found = {"ids": inputs["ids"][inputs["desirable"]]}
    for side, which in zip(SIDES, (inputs["desirable"], ~inputs["desirable"]), strict=True):
        found[f"{side}_num_tokens"] = inputs["num_tokens"][which]
        for prefix in ("", "ref_"):
            found[f"{prefix}{side}"] = inputs[f"{prefix}completion"][which]
    return found


def per_token(inputs: Inputs, side: str, lengths: str, width: int) -> Tensor:
    """(B, T) the log-probs of a side, spread evenly over its tokens where only their sum is given."""
    given = inputs.get(f"{side}_token")
    if given is not None:
        return F.pad(given, (0, width - given.shape[-1]))
    inside = torch.arange(width) < inputs[lengths].unsqueeze(-1)
    return (inputs[side] / inputs[lengths]).unsqueeze(-1) * inside


def logits_with(token_logps: Tensor) -> Tensor:
    """(B, L, 2) logits under which token 1 has these log-probs."""
    return torch.stack([torch.log(-torch.expm1(token_logps)), token_logps], -1)


def chosen_logits(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, 2) logits, (B, T) targets and (B, T) mask of the chosen sides."""
    width = int(inputs["chosen_num_tokens"].max())
    inside = torch.arange(width) < inputs["chosen_num_tokens"].unsqueeze(-1)
    tokens = per_token(inputs, "chosen", "chosen_num_tokens", width)
    return logits_with(torch.where(inside, tokens, -0.5)), torch.ones_like(inside, dtype=torch.int64), inside.to(tokens)


def of_ours(name: str, case: Case, **changed: Any) -> Tensor:
    """(B,) the values of a loss of ours on a case; hyper-parameters that it does not have are left out."""
    usual = example(loss_class(name))
    given = {key: value for key, value in (case.hyperparameters | changed).items() if hasattr(usual, key)}
    kinds = {key: type(getattr(usual, key)) for key in given}
    loss = load(name, **{k: kinds[k](v) if issubclass(kinds[k], Enum) else v for k, v in given.items()})
    return call(loss, build(loss.needs, case.inputs)).loss


def over_samples(name: str, case: Case) -> Tensor:
    """(B,) the values of a loss of ours on samples if every sample weighed the same, also those of shorter lists."""
    samples = (case.inputs["num_tokens"] > 0).sum(-1)
    return of_ours(name, case) * samples * len(samples) / samples.sum()


def renamed(given: Options, **names: str) -> Options:
    """Hyper-parameters by a library's names."""
    return {names.get(name, name): value for name, value in given.items()}


def differentiated(values: Callable[..., tuple[float, list[Any]]], *given: Tensor) -> Tensor:
    """A scalar of a library with its own gradients: `values(*tensors)` gives it and the gradient of each tensor."""
    scalar: Tensor = _Differentiated.apply(values, *given)  # type: ignore[no-untyped-call]
    return scalar


class _Differentiated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Callable[..., tuple[float, list[Any]]], *given: Tensor) -> Tensor:
        value, gradients = values(*(tensor.detach() for tensor in given))
        ctx.gradients = [torch.tensor(g).to(tensor) for g, tensor in zip(gradients, given, strict=True)]
        return torch.tensor(value).to(given[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return (None, *(grads[0] * gradient for gradient in ctx.gradients))
