"""Calls the losses of mlx-lm-lora, which run on mlx's CPU backend and in float32; gradients are mlx's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import version as version_of
from typing import Any

import mlx.core as mx
import torch
import torch.nn.functional as F
from mlx_lm_lora.trainer.cpo_trainer import cpo_loss
from mlx_lm_lora.trainer.dpo_trainer import compute_score, dpo_loss
from mlx_lm_lora.trainer.orpo_trainer import orpo_loss
from torch import Tensor

from prefopt.testing.peers.shared import SIDES, Options, differentiated, log_ratios, means, of_ours, pair_sums
from prefopt.testing.referee import Case, Way


def version() -> str:
    return f"mlx-lm-lora {version_of('mlx_lm_lora')}"


def _differentiated(function: Callable[..., Any], *given: Tensor) -> Tensor:
    """A scalar function of mlx arrays on tensors, with mlx's own gradient."""

    def values(*tensors: Tensor) -> tuple[float, list[Any]]:
        arrays = [mx.array(tensor.float().numpy()) for tensor in tensors]
        value, gradients = mx.value_and_grad(function, argnums=list(range(len(arrays))))(*arrays)
        return value.item(), [gradient.tolist() for gradient in gradients]

    return differentiated(values, *given)


def _masks(case: Case) -> list[Any]:
    """Masks of a prompt of one token and the completion."""
    lengths = [case.inputs[f"{side}_num_tokens"] for side in SIDES]
    steps = torch.arange(1 + int(torch.cat(lengths).max()))
    return [mx.array(((steps > 0) & (steps <= n.unsqueeze(-1))).float().numpy()) for n in lengths]


def _pairs(loss: Callable[..., Any], loss_type: str, options: Callable[[Options], Options] = dict, **way: Any) -> Way:
    """`dpo_loss` with the reference or `cpo_loss` without."""

    def call(case: Case) -> Tensor:
        masks = _masks(case)
        settings = {"delta": 0.0, "loss_type": loss_type, **options(case.hyperparameters)}

        def mean(*sums: Any) -> Any:
            scores = [compute_score(each[:, None], masks[place % 2], loss_type) for place, each in enumerate(sums)]
            return loss(*scores, *masks, **settings)[0]

        given = pair_sums(case.inputs)
        return _differentiated(mean, *(given if loss is dpo_loss else given[:2]))

    return Way(call, **way)


def _orpo(case: Case) -> Tensor:
    masks, ones = _masks(case), mx.ones(len(case.inputs["chosen"]))

    def mean(chosen: Any, rejected: Any) -> Any:
        return orpo_loss(chosen, 0.0, rejected, 0.0, *masks, ones, beta=case.hyperparameters["lam"])[0]

    return _differentiated(mean, *means(case.inputs))


def _without_likelihood(case: Case) -> Tensor:
    return of_ours("cpo", case, alpha=0.0)


def _penalty_outside(case: Case) -> Tensor:
    chosen, rejected = log_ratios(case.inputs)
    given = case.hyperparameters
    return -F.logsigmoid(given["beta"] * (chosen - rejected)) + given["lam"] * F.relu(-chosen)  # type: ignore[no-any-return]


def _dpop(given: Options) -> Options:
    return {"beta": given["beta"], "delta": given["lam"]}


def _beta(given: Options) -> Options:
    return {"beta": given["beta"]}


_cpo = partial(_pairs, cpo_loss, "sigmoid", _beta)

PEER: dict[str, tuple[Way, ...]] = {
    "dpo": (_pairs(dpo_loss, "sigmoid"),),
    "hinge": (_pairs(dpo_loss, "hinge"),),
    "ipo": (_pairs(dpo_loss, "ipo", lambda given: {"beta": given["tau"]}),),
    "dpop": (_pairs(dpo_loss, "dpop", _dpop),
             _pairs(dpo_loss, "dpop", _dpop, convention="penalty outside the sigmoid and beta",
                    expected=_penalty_outside, mistake=True)),
    "cpo": (_cpo(), _cpo(convention="no likelihood term", expected=_without_likelihood)),
    "orpo": (Way(_orpo),),
}  # fmt: skip
