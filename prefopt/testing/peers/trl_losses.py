"""Calls TRL's own loss code on given log-probs, through a stand-in for the trainer and the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
import trl
from torch import Tensor
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from prefopt.testing.peers import trl_list_losses
from prefopt.testing.peers.shared import Options, of_ours, paired, per_token, renamed
from prefopt.testing.peers.trl_shared import ACCELERATOR, odds_or_cpo_loss
from prefopt.testing.referee import Case, UnsupportedError, Way

PROMPT = 3  # tokens of the prompt in front of each completion
TRL: Any = trl  # it is not typed


def version() -> str:
    return f"TRL {trl.__version__}"


def answering(log_probs: Tensor, log_sum_sq: Tensor) -> Any:
    """A stand-in for a model, in evaluation, that gives the frozen figures to whoever calls it."""
    zero = torch.zeros_like(log_probs)
    outputs = SimpleNamespace(
        log_probs=log_probs, log_sum_sq_probs=log_sum_sq, entropy=zero, mean_logits=zero, is_top1=zero.bool()
    )
    model: Any = torch.nn.Module().eval()
    model.forward = lambda **kwargs: outputs
    model.is_gradient_checkpointing = False
    return model


def dpo_loss(inputs: dict[str, Tensor], loss_type: str | list[str], **settings: Any) -> Tensor:
    """The mean over a batch of pairs, from `DPOTrainer`; a batch without a reference gets one of 0."""
    types = [loss_type] if isinstance(loss_type, str) else loss_type
    sides = ("chosen", "rejected") if "rejected" in inputs or "rejected_token" in inputs else ("chosen", "chosen")
    lengths = torch.cat([inputs[f"{side}_num_tokens"] for side in sides])
    width = int(lengths.max())

    def rows(name: str) -> Tensor:
        """(2B, L - 1) chosen rows, then rejected rows, 0 on the prompt."""
        found = [
            per_token(inputs, name.format(side=side), f"{side}_num_tokens", width)
            if name.format(side=side) in inputs or name.format(side=side) + "_token" in inputs
            else torch.zeros(
                len(inputs["ids"]), width, dtype=per_token(inputs, side, f"{side}_num_tokens", width).dtype
            )
            for side in sides
        ]
        return F.pad(torch.cat(found), (PROMPT - 1, 0))

    log_probs, reference = rows("{side}"), rows("ref_{side}")
    log_sum_sq = torch.zeros_like(log_probs)
    if "chosen_log_sum_sq" in inputs:
        statistics = [inputs[f"{side}_log_sum_sq"] for side in sides]
        log_sum_sq = F.pad(torch.cat([F.pad(s, (0, width - s.shape[-1])) for s in statistics]), (PROMPT - 1, 0))
    options = {
        "beta": 0.1,
        "label_smoothing": 0.0,
        "ld_alpha": None,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "use_weighting": False,
        "loss_weights": [1.0] * len(types),
    } | settings
    trainer = SimpleNamespace(
        model=answering(log_probs, log_sum_sq),
        ref_model=answering(reference, torch.zeros_like(reference)),
        accelerator=ACCELERATOR,
        args=SimpleNamespace(discopop_tau=options.pop("discopop_tau", 0.05), gradient_checkpointing_kwargs=None),
        loss_types=types,
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
        **options,
    )
    place = torch.arange(PROMPT + width)
    mask = ((place >= PROMPT) & (place < PROMPT + lengths.unsqueeze(-1))).long()
    batch = {"input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    # upstream: the loss has no public function of its own; the trainer's public entry needs a model and an optimizer
    return TRL.DPOTrainer._compute_loss(trainer, trainer.model, batch, return_outputs=False)  # type: ignore[no-any-return]


def kto_loss(inputs: dict[str, Tensor], loss_type: str, **settings: Any) -> Tensor:
    """The mean over a batch of single completions, from `KTOTrainer`."""
    size = len(inputs["desirable"])
    one_token = inputs["completion"].unsqueeze(-1)  # its sum is all that the loss reads
    zero = torch.zeros_like(one_token)
    outputs = SimpleNamespace(log_probs=one_token, entropy=zero, mean_logits=zero)
    nothing = torch.zeros(size)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=ACCELERATOR,
        _compute_kl_logps=lambda model, batch: inputs.get("mismatched", nothing),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        calculate_KL=loss_type == "kto",
        loss_type=loss_type,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
        **({"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0} | settings),
    )
    batch = {
        "input_ids": torch.ones(size, 2, dtype=torch.int64),
        "attention_mask": torch.ones(size, 2),
        "completion_mask": torch.ones(size, 2, dtype=torch.int64),
        "label": inputs["desirable"],
        "ref_logps": inputs["ref_completion"],
        "ref_KL_logps": inputs.get("ref_mismatched", nothing),
    }
    # upstream: as in dpo_loss
    loss: Tensor = TRL.KTOTrainer._compute_loss(trainer, lambda **kwargs: outputs, batch, return_outputs=False)
    return loss


def dft_loss(inputs: dict[str, Tensor]) -> Tensor:
    """The mean over a batch of demonstrations, from `SFTTrainer`."""
    log_probs = inputs["chosen_token"]
    inside = torch.arange(log_probs.shape[-1]) < inputs["chosen_num_tokens"].unsqueeze(-1)
    zero = torch.zeros_like(log_probs)
    outputs = SimpleNamespace(log_probs=log_probs, label_mask=inside, entropy=zero, is_top1=zero.bool())
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(parallelism_config=None, num_processes=1, gather_for_metrics=lambda x: x),
        args=SimpleNamespace(loss_type="dft", average_tokens_across_devices=False),
        aux_loss_enabled=False,
        compute_loss_func=None,
        label_smoother=None,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    loss: Tensor = TRL.SFTTrainer.compute_loss(trainer, lambda **kwargs: outputs, {"labels": None})
    return loss


def _dpo(loss_type: str | list[str], options: Callable[[Options], Options] = dict, **way: Any) -> Way:
    return Way(lambda case: dpo_loss(paired(case.inputs), loss_type, **options(case.hyperparameters)), **way)


def _kto(loss_type: str) -> Way:
    return Way(lambda case: kto_loss(case.inputs, loss_type, **case.hyperparameters))


def _logits(trainer: Any, options: Callable[[Options], Options], **way: Any) -> Way:
    return Way(lambda case: odds_or_cpo_loss(trainer, case.inputs, **options(case.hyperparameters)), **way)


def _ipo(case: Case) -> Tensor:
    return of_ours("ipo", case)


def _bco_pair_zero(case: Case) -> Tensor:
    return of_ours("bco_pair_zero", case)


def _mpo(given: Options) -> Options:
    """The terms of a mix by TRL's names; their own hyper-parameters are the defaults of both."""
    names = {"dpo": "sigmoid", "bco_pair": "bco_pair", "sft": "sft"}
    if given["options"] or not set(given["terms"]) <= set(names):
        raise UnsupportedError("it takes these terms at their defaults alone")
    return {"loss_weights": list(given["terms"].values())}


def _mpo_with_a_threshold_of_0(case: Case) -> Tensor:
    terms = {
        name.replace("bco_pair", "bco_pair_zero"): weight for name, weight in case.hyperparameters["terms"].items()
    }
    return of_ours("mix", case, terms=terms)


def _plain_dpo(case: Case) -> Tensor:
    return of_ours("dpo", case)


def _f_divergence(given: Options) -> Options:
    kinds = {"reverse_kl": "reverse_kl", "forward_kl": "forward_kl", "jensen_shannon": "js_divergence"}
    kind = kinds.get(given["divergence"], "alpha_divergence")
    return {"beta": given["beta"], "f_divergence_type": kind, "f_alpha_divergence_coef": 1 - given["alpha"]}


def _simpo(given: Options, *, absolute: bool, nll: float = 0.0) -> Options:
    gamma = given["gamma_beta_ratio"] * (given["beta"] if absolute else 1)
    return {"loss_type": "simpo", "beta": given["beta"], "simpo_gamma": gamma, "cpo_alpha": nll}


def _simpo_with_likelihood(given: Options, *, absolute: bool) -> Options:
    return _simpo(given, absolute=absolute, nll=given["alpha"])


def _alpha_po(given: Options, *, absolute: bool) -> Options:
    return _simpo(given, absolute=absolute) | {"alpha": given["alpha"]}


def _either_gamma(options: Callable[..., Options]) -> tuple[Way, Way]:
    """To the letter, with gamma where the vectors have it, as a ratio; and as TRL has it."""
    return (
        _logits(CPOTrainer, partial(options, absolute=False)),
        _logits(CPOTrainer, partial(options, absolute=True), convention="γ absolute"),
    )


def _wpo_without_min(case: Case) -> Tensor:
    """WPO whose weight may exceed 1."""
    aligned, ratios = [], []
    for side in ("chosen", "rejected"):
        log_prob, statistic = case.inputs[side], case.inputs[f"{side}_log_sum_sq"].sum(-1)
        aligned.append((log_prob.detach() - statistic) / case.inputs[f"{side}_num_tokens"])
        ratios.append(log_prob - case.inputs[f"ref_{side}"])
    return (aligned[0] + aligned[1]).exp() * F.softplus(case.hyperparameters["beta"] * (ratios[1] - ratios[0]))


PEER: dict[str, tuple[Way, ...]] = {
    "dpo": (_dpo("sigmoid"),),
    "cdpo": (_dpo("sigmoid", convention="label_smoothing not used, since 0.29", expected=_plain_dpo),),
    "hinge": (_dpo("hinge"),),
    "ipo": (_dpo("ipo", partial(renamed, tau="beta")),),
    "ipo_sum": (_dpo("ipo", partial(renamed, tau="beta"), convention="divided by lengths", expected=_ipo),),
    "exo": (_dpo("exo_pair"),),
    "nca": (_dpo("nca_pair"),),
    "robust_dpo": (_dpo("robust"),),
    "bco_pair": (_dpo("bco_pair", convention="threshold of 0", expected=_bco_pair_zero),),
    "bco_pair_zero": (_dpo("bco_pair"),),
    "sppo": (_dpo("sppo_hard"),),
    "aot": (_dpo("aot"),),
    "aot_unpaired": (_dpo("aot_unpaired"),),
    "apo_zero": (_dpo("apo_zero"),),
    "apo_down": (_dpo("apo_down"),),
    "discopop_lrml": (_dpo("discopop", partial(renamed, tau="discopop_tau")),),
    "dpo_norm": (_dpo("sigmoid_norm"),),
    "sft": (_dpo("sft"),),
    "sft_token_mean": (_dpo("sft"),),
    "dft": (Way(lambda case: dft_loss(case.inputs)),),
    "irpo": (_dpo(["sigmoid", "sft"], lambda g: {"beta": g["beta"], "loss_weights": [1.0, g["alpha"]]}),),
    "ld_dpo": (_dpo("sigmoid", partial(renamed, alpha="ld_alpha")),),
    "f_dpo": (_dpo("sigmoid", _f_divergence),),
    "wpo": (
        _dpo("sigmoid", lambda given: given | {"use_weighting": True}),
        _dpo("sigmoid", lambda given: given | {"use_weighting": True},
             convention="weight not limited to 1", expected=_wpo_without_min),
    ),
    "mix": (
        _dpo(["sigmoid", "bco_pair", "sft"], _mpo),
        _dpo(["sigmoid", "bco_pair", "sft"], _mpo, convention="threshold of 0", expected=_mpo_with_a_threshold_of_0),
    ),
    "tr_dpo": (_dpo("sigmoid", lambda given: {"beta": given["beta"]}),),
    "kto": (_kto("kto"),),
    "kto_zero": (_kto("apo_zero_unpaired"),),
    "cpo": (_logits(CPOTrainer, lambda g: {"loss_type": "sigmoid", "beta": g["beta"], "cpo_alpha": g["alpha"]}),),
    "cpo_simpo": _either_gamma(_simpo_with_likelihood),
    "simpo": _either_gamma(_simpo),
    "alpha_po": _either_gamma(_alpha_po),
    "orpo": (_logits(ORPOTrainer, lambda given: {"beta": given["lam"]}),),
    **trl_list_losses.PEER,
}  # fmt: skip
