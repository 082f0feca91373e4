"""Calls the losses of TRL before 0.29, which were methods of the trainers on the sums of log-probs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
import trl
from torch import Tensor

from prefopt.testing.peers.shared import Options, means, of_ours, pair_sums, paired, renamed
from prefopt.testing.peers.trl_shared import ACCELERATOR, odds_or_cpo_loss
from prefopt.testing.referee import Case, UnsupportedError, Way


def version() -> str:
    return f"TRL {trl.__version__}"


def _trainer(name: str) -> Any:
    """A trainer's class, from where this version has it; None where it has none."""
    module = name.removesuffix("Trainer").lower()
    for place in (f"trl.experimental.{module}.{module}_trainer", f"trl.trainer.{module}_trainer"):
        try:
            return getattr(import_module(place), name)
        except ImportError:
            continue
    return None


DPO, KTO, BCO, CPO, ORPO = (_trainer(f"{name}Trainer") for name in ("DPO", "KTO", "BCO", "CPO", "ORPO"))


def _running() -> Any:
    """The running mean of rewards, before its first batch."""
    return import_module("trl.trainer.utils").RunningMoments(ACCELERATOR)


def dpo_values(case: Case, loss_type: str, **settings: Any) -> Tensor:
    """(B,) the values of `DPOTrainer.dpo_loss`.

    For IPO the trainer's forward divides the sums by the lengths, and so does this.
    """
    source = inspect.getsource(DPO.dpo_loss)
    if loss_type != "sigmoid" and f'"{loss_type}"' not in source:
        raise UnsupportedError(f"it has no {loss_type}")
    inputs = paired(case.inputs)
    sums = pair_sums(inputs)
    if loss_type == "ipo":
        sums = (*means(inputs), *means(inputs, "ref_"))
    options = {"beta": 0.1, "label_smoothing": 0.0, "f_divergence_type": "reverse_kl", "f_divergence_params": None}
    options |= settings
    if "f_divergence_type" in settings:
        options["f_divergence_type"] = _divergence(settings["f_divergence_type"], source)
    if "label_smoothing" not in source and options["label_smoothing"]:
        raise UnsupportedError("it has no label smoothing")
    trainer = SimpleNamespace(
        accelerator=ACCELERATOR,
        reference_free=False,
        loss_type=loss_type,
        running=_running() if loss_type == "bco_pair" else None,
        args=SimpleNamespace(discopop_tau=options.pop("discopop_tau", 0.05)),
        **options,
    )
    chosen_by_argument = "loss_type" in inspect.signature(DPO.dpo_loss).parameters
    return DPO.dpo_loss(trainer, *sums, *([loss_type] if chosen_by_argument else []))[0]  # type: ignore[no-any-return]


def _divergence(name: str, source: str) -> Any:
    """A divergence as `dpo_loss` compares it: by its name at first, later as the member of an enumeration."""
    if "FDivergenceType" not in source:
        raise UnsupportedError("it has the reverse KL only")
    kind = import_module("trl.trainer.dpo_config").FDivergenceType(name)
    return kind.value if "FDivergenceType.JS_DIVERGENCE.value" in source else kind


def _mean(loss_type: str, options: Callable[[Options], Options] = dict) -> Way:
    """As `_dpo`, for losses whose values stand in another order than the examples."""
    return Way(lambda case: dpo_values(case, loss_type, **options(case.hyperparameters)).mean())


def _dpo(loss_type: str, options: Callable[[Options], Options] = dict, **way: Any) -> Way:
    return Way(lambda case: dpo_values(case, loss_type, **options(case.hyperparameters)), **way)


def _sides(case: Case) -> list[Tensor]:
    """Log-probs of the desirable and the undesirable items, then the reference's."""
    good = case.inputs["desirable"]
    return [case.inputs[f"{prefix}completion"][which] for prefix in ("", "ref_") for which in (good, ~good)]


def _kto(loss_type: str) -> Way:
    def call(case: Case) -> Tensor:
        if KTO is None or (loss_type != "kto" and loss_type not in inspect.getsource(KTO.kto_loss)):
            raise UnsupportedError(f"it has no {loss_type}")
        options = {"desirable_weight": 1.0, "undesirable_weight": 1.0, **case.hyperparameters}
        trainer = SimpleNamespace(
            accelerator=ACCELERATOR, loss_type=loss_type, calculate_KL=loss_type == "kto", **options
        )
        chosen, rejected, *reference = _sides(case)
        kl = [case.inputs.get(f"{prefix}mismatched", torch.zeros(1)) for prefix in ("", "ref_")]
        return KTO.kto_loss(trainer, chosen, rejected, kl[0], *reference, kl[1])[0].mean()  # type: ignore[no-any-return]

    return Way(call)


def _bco(case: Case) -> Tensor:
    if BCO is None:
        raise UnsupportedError("it has no BCO")
    trainer = SimpleNamespace(
        accelerator=ACCELERATOR,
        beta=case.hyperparameters["beta"],
        running=_running(),
        match_underlying_distribution=False,
    )
    return BCO.bco_loss(trainer, *_sides(case), None, None)[0].mean()  # type: ignore[no-any-return]


def _pooled(case: Case) -> Tensor:
    return of_ours("bco", case, threshold="pooled")


def _likelihood(trainer: Any, options: Callable[[Options], Options], **way: Any) -> Way:
    def call(case: Case) -> Tensor:
        given = options(case.hyperparameters)
        if trainer is None or given.get("loss_type", "sigmoid") not in inspect.getsource(trainer):
            raise UnsupportedError("it has no such loss")
        if given.get("alpha") and "self.alpha" not in inspect.getsource(trainer):
            raise UnsupportedError("it has no AlphaPO")
        return odds_or_cpo_loss(trainer, case.inputs, **given)

    return Way(call, **way)


def _simpo(given: Options, *, absolute: bool) -> Options:
    gamma = given["gamma_beta_ratio"] * (given["beta"] if absolute else 1)
    return {"loss_type": "simpo", "beta": given["beta"], "simpo_gamma": gamma, "cpo_alpha": 0.0}


def _simpo_with_likelihood(given: Options, *, absolute: bool) -> Options:
    return _simpo(given, absolute=absolute) | {"cpo_alpha": given["alpha"]}


def _alpha_po(given: Options, *, absolute: bool) -> Options:
    return _simpo(given, absolute=absolute) | {"alpha": given["alpha"]}


def _either_gamma(options: Callable[..., Options]) -> tuple[Way, Way]:
    return (
        _likelihood(CPO, partial(options, absolute=False)),
        _likelihood(CPO, partial(options, absolute=True), convention="γ absolute"),
    )


def _f_divergence(given: Options) -> Options:
    if given["divergence"] == "forward_kl":
        raise UnsupportedError("it has no forward KL")
    kinds = {"reverse_kl": "reverse_kl", "jensen_shannon": "js_divergence"}
    kind = kinds.get(given["divergence"], "alpha_divergence")
    return {
        "beta": given["beta"],
        "f_divergence_type": kind,
        "f_divergence_params": {"alpha_divergence_coef": given["alpha"]},
    }


# The paper's paired form was called `aot` from the start, the unpaired one `aot_pair` at first.
UNPAIRED = "aot_pair" if DPO is not None and '"aot_pair"' in inspect.getsource(DPO.dpo_loss) else "aot_unpaired"

PEER: dict[str, tuple[Way, ...]] = {
    "dpo": (_dpo("sigmoid"),),
    "cdpo": (_dpo("sigmoid"),),
    "hinge": (_dpo("hinge"),),
    "ipo": (_dpo("ipo", partial(renamed, tau="beta")),),
    "exo": (_dpo("exo_pair"),),
    "nca": (_dpo("nca_pair"),),
    "robust_dpo": (_dpo("robust"),),
    "bco_pair": (_dpo("bco_pair"),),
    "sppo": (_dpo("sppo_hard"),),
    "aot": (_mean("aot"),),
    "aot_unpaired": (_mean(UNPAIRED),),
    "apo_zero": (_dpo("apo_zero"),),
    "apo_down": (_dpo("apo_down"),),
    "discopop_lrml": (_dpo("discopop", partial(renamed, tau="discopop_tau")),),
    "f_dpo": (_dpo("sigmoid", _f_divergence),),
    "kto": (_kto("kto"),),
    "kto_zero": (_kto("apo_zero_unpaired"),),
    "bco": (Way(_bco), Way(_bco, "threshold pooled", _pooled)),
    "cpo": (_likelihood(CPO, lambda g: {"loss_type": "sigmoid", "beta": g["beta"], "cpo_alpha": g["alpha"]}),),
    "simpo": _either_gamma(_simpo),
    "cpo_simpo": _either_gamma(_simpo_with_likelihood),
    "alpha_po": _either_gamma(_alpha_po),
    "orpo": (_likelihood(ORPO, lambda given: {"beta": given["lam"]}),),
}
