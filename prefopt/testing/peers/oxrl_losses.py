"""Calls oxRL's `compute_loss` of each algorithm; the model engines and the optimizer are not needed for it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from importlib.metadata import version as version_of
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.testing.peers.shared import (
    SIDES,
    Options,
    chosen_logits,
    log_ratios,
    means,
    of_ours,
    pair_sums,
    paired,
    renamed,
)
from prefopt.testing.referee import Case, UnsupportedError, Way

ENGINES = {"model_engine": None, "optimizer": None}


def version() -> str:
    return f"oxRL {version_of('oxrl')}"


def _algorithm(name: str, options: Options) -> Any:
    module, _, cls = name.partition(":")
    return getattr(importlib.import_module(f"oxrl.algs.{module}"), cls)(**ENGINES, **options)


def _pairs(name: str, options: Callable[[Options], Options] = dict, **way: Any) -> Way:
    """A loss on the sums of the policy and of the reference."""

    def call(case: Case) -> Tensor:
        algorithm = _algorithm(name, {"ref_model_engine": None, **options(case.hyperparameters)})
        return algorithm.compute_loss(*pair_sums(paired(case.inputs)))[0]  # type: ignore[no-any-return]

    return Way(call, **way)


def _means(name: str, options: Callable[[Options], Options], **way: Any) -> Way:
    """A loss on the policy's log-probs per token."""

    def call(case: Case) -> Tensor:
        algorithm = _algorithm(name, options(case.hyperparameters))
        reference = means(case.inputs, "ref_") if "ref_chosen" in case.inputs else ()
        return algorithm.compute_loss(*means(case.inputs), *reference)[0]  # type: ignore[no-any-return]

    return Way(call, **way)


def _likelihood(name: str, options: Callable[[Options], Options], *, averaged: bool = False, **way: Any) -> Way:
    """A loss with a likelihood term, which takes the logits of the chosen side too."""

    def call(case: Case) -> Tensor:
        sums = means(case.inputs) if averaged else pair_sums(case.inputs)
        with_reference = "ref_chosen" in case.inputs
        engines = {"ref_model_engine": None} if with_reference else {}
        algorithm = _algorithm(name, {**engines, **options(case.hyperparameters)})
        logps = sums if with_reference or averaged else sums[:2]
        lengths = [case.inputs[f"{side}_num_tokens"] for side in SIDES] if name == "orpo:ORPO" else []
        return algorithm.compute_loss(*logps, *lengths, *chosen_logits(case.inputs))[0]  # type: ignore[no-any-return]

    return Way(call, **way)


def _sft(case: Case) -> Tensor:
    return _algorithm("sft:SFT", {}).compute_loss(*chosen_logits(case.inputs))  # type: ignore[no-any-return]


def _summed(case: Case) -> Tensor:
    return -case.inputs["chosen"] * len(case.inputs["chosen"])


def _length_penalty(case: Case) -> Tensor:
    lengths = [case.inputs[f"{side}_num_tokens"].to(case.inputs["chosen"]) for side in SIDES]
    algorithm = _algorithm("rdpo:RDPO", {"ref_model_engine": None, **case.hyperparameters})
    return algorithm.compute_loss(*pair_sums(case.inputs), *lengths)[0]  # type: ignore[no-any-return]


def _length_reward(case: Case) -> Tensor:
    chosen, rejected = log_ratios(case.inputs)
    longer = (case.inputs["chosen_num_tokens"] - case.inputs["rejected_num_tokens"]).to(chosen)
    return -F.logsigmoid(case.hyperparameters["beta"] * (chosen - rejected) - case.hyperparameters["alpha"] * longer)


def _scaled_cdpo(case: Case) -> Tensor:
    return of_ours("cdpo", case) / (1 - 2 * case.hyperparameters["label_smoothing"])  # type: ignore[no-any-return]


def _kto_items(case: Case) -> tuple[Tensor, Tensor]:
    """Log-ratios and labels of 1 or -1, chosen first."""
    order = case.inputs["desirable"].logical_not().long().argsort(stable=True)
    ratio = (case.inputs["completion"] - case.inputs["ref_completion"])[order]
    return ratio, torch.where(case.inputs["desirable"][order], 1.0, -1.0).to(ratio)


def _kto(case: Case) -> Tensor:
    given = renamed(case.hyperparameters, desirable_weight="lambda_p", undesirable_weight="lambda_n")
    ratio, labels = _kto_items(case)
    algorithm = _algorithm("kto:KTO", {"ref_model_engine": None, **given})
    zero = torch.zeros_like(ratio)
    return algorithm.compute_loss(ratio, zero, labels, int((labels > 0).sum()))  # type: ignore[no-any-return]


def _kto_of_oxrl(case: Case) -> Tensor:
    given = case.hyperparameters
    ratio, labels = _kto_items(case)
    z0 = 0.1 * ratio[labels > 0].mean().detach()
    weight = torch.where(labels > 0, given["desirable_weight"], given["undesirable_weight"])
    return -F.logsigmoid(labels * given["beta"] * (ratio - z0)) * weight


DIVERGENCES = {"reverse_kl": "reverse_kl", "forward_kl": "forward_kl", "jensen_shannon": "js_divergence"}


def _f_divergence(given: Options) -> Options:
    kind = DIVERGENCES.get(given["divergence"], "alpha_divergence")
    return {"beta": given["beta"], "fdpo_divergence": kind, "fdpo_alpha": given["alpha"]}


def _f_dpo_of_oxrl(case: Case) -> Tensor:
    """Jensen-Shannon and alpha without all of beta, forward KL with the wrong sign on top of the reverse one."""
    given = case.hyperparameters
    chosen, rejected = log_ratios(case.inputs)
    plain = given["beta"] * (chosen - rejected)
    kind, alpha = given["divergence"], given["alpha"]
    if kind == "reverse_kl":
        margin = plain
    elif kind == "forward_kl":
        margin = plain + given["beta"] * (_capped(-chosen) - _capped(-rejected))
    elif kind == "jensen_shannon":
        margin = plain - F.softplus(chosen) + F.softplus(rejected)
    else:
        margin = (_capped(-alpha * rejected) - _capped(-alpha * chosen)) / alpha
    return -F.logsigmoid(margin)


def _capped(exponent: Tensor) -> Tensor:
    return exponent.clamp(max=50.0).exp()


GPO_TYPES = ("logistic", "exponential", "savage")


def _gpo(given: Options) -> Options:
    kind = {"truncated_square": "truncated_quadratic"}.get(given["f"], given["f"])
    if kind not in (*GPO_TYPES, "truncated_quadratic"):
        raise UnsupportedError(f"it has no {kind}")
    return {"beta": given["beta"], "gpo_loss_type": kind}


def _wpo(case: Case) -> Tensor:
    algorithm = _algorithm("wpo:WPO", {"ref_model_engine": None, **case.hyperparameters})
    return algorithm.compute_loss(*pair_sums(case.inputs), *means(case.inputs))[0]  # type: ignore[no-any-return]


def _wpo_of_oxrl(case: Case) -> Tensor:
    chosen, rejected = log_ratios(case.inputs)
    one, other = means(case.inputs)
    weight = (one + other).exp().clamp(max=1.0)
    loss = -F.logsigmoid(case.hyperparameters["beta"] * (chosen - rejected))
    return weight * loss / weight.sum().clamp(min=1e-8) * len(loss)


def _focal_of_oxrl(case: Case) -> Tensor:
    chosen, rejected = log_ratios(case.inputs)
    margin = case.hyperparameters["beta"] * (chosen - rejected)
    return -(margin.sigmoid().detach() ** case.hyperparameters["gamma"]) * F.logsigmoid(margin)  # type: ignore[no-any-return]


def _cal_dpo_of_oxrl(case: Case) -> Tensor:
    chosen, rejected = log_ratios(case.inputs)
    target = 1 / (2 * case.hyperparameters["beta"])
    return -F.logsigmoid(chosen - rejected) + (chosen - target) ** 2 + (rejected + target) ** 2  # type: ignore[no-any-return]


def _spo(given: Options) -> Options:
    return {"beta": given["beta"]}


def _spo_of_oxrl(case: Case) -> Tensor:
    chosen, rejected = log_ratios(case.inputs)
    return -F.silu(case.hyperparameters["beta"] * (chosen - rejected))


def _constant_offset(case: Case) -> Tensor:
    chosen, rejected = log_ratios(case.inputs)
    return -F.logsigmoid(case.hyperparameters["beta"] * (chosen - rejected) - case.hyperparameters["alpha"])


def _aot_unpaired(case: Case) -> Tensor:
    chosen, rejected = (ratio.sort().values for ratio in log_ratios(case.inputs))
    return -F.logsigmoid(case.hyperparameters["beta"] * (chosen - rejected))


def _apo(mode: str, name: str) -> tuple[Way, ...]:
    def expected(case: Case) -> Tensor:
        return of_ours(name, case) - 1

    def options(given: Options) -> Options:
        return given | {"apo_mode": mode}

    return (_pairs("apo:APO", options), _pairs("apo:APO", options, convention="without its constant of 1",
                                               expected=expected))  # fmt: skip


def _either_gamma(name: str, options: Callable[[Options], Options]) -> tuple[Way, ...]:
    def absolute(given: Options) -> Options:
        return options(given | {"gamma_beta_ratio": given["beta"] * given["gamma_beta_ratio"]})

    return _means(name, options), _means(name, absolute, convention="γ absolute")


def _cpo_simpo(given: Options, *, absolute: bool) -> Options:
    gamma = given["gamma_beta_ratio"] * (given["beta"] if absolute else 1)
    return {"beta": given["beta"], "gamma": gamma, "cposimpo_alpha": given["alpha"]}


def _alpha_dpo(given: Options) -> Options:
    return {
        "beta": given["beta"],
        "alpha_dpo_alpha": given["alpha"],
        "alpha_dpo_gamma_beta_ratio": given["gamma_beta_ratio"],
        "alpha_dpo_ema_decay": given["decay"],
        "ref_model_engine": None,
    }


WPO_MISTAKE = "the weight carries gradient, lacks the sum over the vocabulary, and is divided by its sum"
KTO_MISTAKE = "log-sigmoid in place of KTO's value; z0 from the chosen texts' own prompts, by a moving average from 0"
SPO_MISTAKE = "minus SiLU of the margin, which has no minimum, against a reference, of sums"
F_DPO_MISTAKE = "forward KL with the sign of its term turned; Jensen-Shannon and alpha outside beta"

PEER: dict[str, tuple[Way, ...]] = {
    "dpo": (_pairs("dpo:DPO"),),
    "cdpo": (_pairs("cdpo:CDPO"),),
    "robust_dpo": (_pairs("robust_dpo:RobustDPO"),
                   _pairs("robust_dpo:RobustDPO", convention="plus for minus: cDPO / (1 - 2 ε), which removes no bias",
                          expected=_scaled_cdpo, mistake=True)),
    "hinge": (_pairs("hinge:Hinge"),),
    "ipo_sum": (_pairs("ipo:IPO", partial(renamed, tau="beta")),),
    "ipo": (_pairs("ipo:IPO", partial(renamed, tau="beta"), convention="not divided by lengths",
                   expected=lambda case: of_ours("ipo_sum", case)),),
    "exo": (_pairs("exo:EXO", partial(renamed, label_smoothing="exo_epsilon")),),
    "nca": (_pairs("nca:NCA"),),
    "sppo": (_pairs("sppo:SPPO"),),
    "bco_pair": (_pairs("bco:BCO", convention="threshold of 0",
                        expected=lambda case: of_ours("bco_pair_zero", case)),),
    "bco_pair_zero": (_pairs("bco:BCO"),),
    "apo_zero": _apo("zero", "apo_zero"),
    "apo_down": _apo("down", "apo_down"),
    "aot": (_pairs("aot:AOT"),
            _pairs("aot:AOT", convention="sorts each side (`aot_unpaired`)", expected=_aot_unpaired)),
    "aot_unpaired": (_pairs("aot:AOT"),),
    "dr_dpo": (_pairs("drdpo:DrDPO"),),
    "dpop": (_pairs("dpop:DPOP", partial(renamed, lam="dpop_lambda")),),
    "dpo_shift": (_pairs("dposhift:DPOShift", partial(renamed, lam="shift_lambda")),),
    "bpo": (_pairs("bpo:BPO", partial(renamed, alpha="balance_factor")),),
    "h_dpo": (_pairs("hdpo:HDPO", partial(renamed, alpha="hdpo_alpha")),),
    "minor_dpo": (_pairs("minor_dpo:MinorDPO"),),
    "discopop_lrml": (_pairs("discopop:DiscoPOP", partial(renamed, tau="discopop_tau")),),
    "gpo": (_pairs("gpo:GPO", _gpo),),
    "c2_dpo": (_pairs("c2dpo:C2DPO", partial(renamed, lam="c2_lambda")),),
    "spo": (_pairs("spo:SPO", _spo),
            _pairs("spo:SPO", _spo, convention=SPO_MISTAKE, expected=_spo_of_oxrl, mistake=True)),
    "cal_dpo": (_pairs("caldpo:CalDPO"),
                _pairs("caldpo:CalDPO", convention="calibration not halved", expected=_cal_dpo_of_oxrl)),
    "focal_dpo": (_pairs("focalpo:FocalPO", partial(renamed, gamma="focalpo_gamma")),
                  _pairs("focalpo:FocalPO", partial(renamed, gamma="focalpo_gamma"),
                         convention="weight without gradient", expected=_focal_of_oxrl)),
    "odpo": (_pairs("odpo:ODPO", partial(renamed, alpha="odpo_delta")),
             _pairs("odpo:ODPO", partial(renamed, alpha="odpo_delta"), convention="constant offset, scores not read",
                    expected=_constant_offset)),
    "r_dpo": (Way(_length_penalty),
              Way(_length_penalty, "longer winners are rewarded: the length term has a minus", _length_reward, True)),
    "f_dpo": (_pairs("fdpo:FDPO", _f_divergence),
              _pairs("fdpo:FDPO", _f_divergence, convention=F_DPO_MISTAKE, expected=_f_dpo_of_oxrl, mistake=True)),
    "wpo": (Way(_wpo), Way(_wpo, WPO_MISTAKE, _wpo_of_oxrl, True)),
    "kto": (Way(_kto), Way(_kto, KTO_MISTAKE, _kto_of_oxrl, True)),
    "simpo": _either_gamma("simpo:SimPO", partial(renamed, gamma_beta_ratio="gamma")),
    "alpha_po": _either_gamma("alphapo:AlphaPO", partial(renamed, gamma_beta_ratio="gamma")),
    "alpha_dpo": (_means("alpha_dpo:AlphaDPO", _alpha_dpo),),
    "irpo": (_likelihood("dpnll:DPNLL", partial(renamed, alpha="dpnll_alpha")),),
    "cpo": (_likelihood("cpo:CPO", partial(renamed, alpha="cpo_alpha")),),
    "cpo_simpo": (
        _likelihood("cposimpo:CPOSimPO", partial(_cpo_simpo, absolute=False), averaged=True),
        _likelihood("cposimpo:CPOSimPO", partial(_cpo_simpo, absolute=True), averaged=True, convention="γ absolute"),
    ),
    "orpo": (_likelihood("orpo:ORPO", partial(renamed, lam="beta")),),
    "sft": (Way(_sft), Way(_sft, "summed over tokens and examples", _summed)),
}  # fmt: skip
