"""TRL's configs of trainers, as TRL 1.16 reads them; `trl_online` has those on own samples and of reward models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefopt.data.formats import is_data
from prefopt.errors import UserError, nearest
from prefopt.migrate import trl_online
from prefopt.migrate.trainer_options import convert_trainer_options, record_unconverted
from prefopt.migrate.translation import Translation

CLASSES = ("DPOConfig", "KTOConfig", "ORPOConfig", "CPOConfig", *trl_online.DEFAULTS)
# Where TRL's defaults are not transformers'; a test compares them with the installed classes.
DEFAULTS: dict[str, dict[str, Any]] = {
    "DPOConfig": {"learning_rate": 1e-6, "logging_steps": 10, "gradient_checkpointing": True},
    "KTOConfig": {"learning_rate": 1e-6, "logging_steps": 10, "gradient_checkpointing": True},
    "ORPOConfig": {"learning_rate": 1e-6, "logging_steps": 10, "gradient_checkpointing": True},
    "CPOConfig": {"learning_rate": 1e-6, "logging_steps": 10, "gradient_checkpointing": True},
    **trl_online.DEFAULTS,
}
MAX_LENGTH = 1024
# loss_type of DPOTrainer -> our loss, the name of its beta here, the compat preset that documents the difference
LOSS_TYPES: dict[str, tuple[str, str, str | None]] = {
    "sigmoid": ("dpo", "beta", "trl_dpo"),
    "hinge": ("hinge", "beta", "trl_hinge"),
    "ipo": ("ipo", "tau", "trl_ipo"),
    "exo_pair": ("exo", "beta", "trl_exo_pair"),
    "nca_pair": ("nca", "beta", None),
    "robust": ("robust_dpo", "beta", "trl_robust"),
    "bco_pair": ("bco_pair_zero", "beta", None),
    "sppo_hard": ("sppo", "beta", None),
    "aot": ("aot", "beta", None),
    "aot_unpaired": ("aot_unpaired", "beta", None),
    "apo_zero": ("apo_zero", "beta", None),
    "apo_down": ("apo_down", "beta", None),
    "discopop": ("discopop_lrml", "beta", None),
    "sigmoid_norm": ("dpo_norm", "beta", None),
    "sft": ("sft_token_mean", "", "trl_sft"),
}
# Always so here: the store holds the reference's log-probs, rows have no padding, and the head skips prompt tokens.
_ALWAYS_ON = ("precompute_ref_log_probs", "precompute_ref_batch_size", "padding_free", "use_logits_to_keep")
_DPO_ONLY = {
    "loss_type",
    "loss_weights",
    "precompute_ref_log_probs",
    "f_divergence_type",
    "sync_ref_model",
    "rpo_alpha",
}
_DIVERGENCES = {"forward_kl": "FORWARD_KL", "js_divergence": "JENSEN_SHANNON", "alpha_divergence": "ALPHA"}


def class_of(given: dict[str, Any]) -> str:
    """Find the class that settings belong to, by the options that only it has.

    Raises:
        UserError: they could belong to several classes.
    """
    named = given.get("class_name") or given.get("trainer_class")
    if named in CLASSES:
        return str(named)
    if (online := trl_online.class_of(given)) is not None:
        return online
    if {"desirable_weight", "undesirable_weight"} & set(given) or given.get("loss_type") in ("kto", ["kto"]):
        return "KTOConfig"
    if {"cpo_alpha", "simpo_gamma"} & set(given) or given.get("loss_type") == "simpo":
        return "CPOConfig"
    if _DPO_ONLY & set(given):
        return "DPOConfig"
    raise UserError("these settings do not show which of TRL's trainers they are for: give --class, one of "
                    f"{', '.join(CLASSES)}")  # fmt: skip


def translate(given: dict[str, Any], kind: str, processes: int) -> Translation:
    """Convert settings of one of the classes, and those of TRL's command line (model, data, LoRA) among them.

    Raises:
        UserError: an unknown class, or a loss that prefopt does not offer.
    """
    if kind not in CLASSES:
        raise UserError(f"unknown class {kind!r}{nearest(kind, CLASSES)}; choose from: {', '.join(CLASSES)}")
    t = Translation(f"TRL's {kind}", dict(given))
    samples = convert_loss(t, kind)
    _model(t)
    _data(t)
    if t.settings.get("source") != "rollouts":
        _lengths(t)
    defaults = dict(DEFAULTS[kind])
    if t.given.get("bf16") is None and not t.given.get("fp16"):
        defaults["bf16"] = True
    convert_trainer_options(t, defaults, processes)
    count_prompts(t, samples)
    record_unconverted(t)
    return t


def convert_loss(t: Translation, kind: str) -> int:
    """Convert the options of a class that concern its loss; returns the samples of a prompt, where batches count them.

    Programs that train with TRL's classes use it too.
    """
    of_class: dict[str, Callable[[Translation], int | None]] = {
        "DPOConfig": _dpo,
        "KTOConfig": _kto,
        "ORPOConfig": _orpo,
        "CPOConfig": _cpo,
        "RLOOConfig": trl_online.rloo,
        "GRPOConfig": trl_online.grpo,
        "OnlineDPOConfig": trl_online.online_dpo,
        "RewardConfig": trl_online.reward,
    }
    return of_class[kind](t) or 1


def count_prompts(t: Translation, samples: int) -> None:
    """Count prompts in the batch, where the other program counts `samples` texts for each of them."""
    t.settings["batch.records"] = max(1, t.settings["batch.records"] // samples)


def _dpo(t: Translation) -> None:
    kinds, weights = _terms_of_dpo(t)
    beta, smoothing = float(t.take("beta", 0.1)), float(t.take("label_smoothing", 0.0))
    tau = float(t.take("discopop_tau", 0.05)) if "discopop" in kinds else 0.05
    t.ignore("discopop_tau")  # of another loss_type
    if len(kinds) == 1 and weights != [1.0]:
        t.no_equal["loss_weights"] = f"{weights}: a factor of the whole loss; scale trainer.learning_rate"
    for kind in kinds:
        if kind not in LOSS_TYPES:
            raise UserError(f"unknown loss_type {kind!r} of DPOConfig{nearest(str(kind), LOSS_TYPES)}")
    own: dict[str, dict[str, Any]] = {
        "exo_pair": {"label_smoothing": smoothing} if smoothing else {},  # EXO does not accept 0
        "robust": {"label_smoothing": smoothing},
        "discopop": {"tau": tau},
    }

    def options(kind: str) -> dict[str, Any]:
        name = LOSS_TYPES[kind][1]
        return ({name: beta} if name else {}) | own.get(kind, {})

    if smoothing and not {"exo_pair", "robust"} & set(kinds):
        t.no_equal["label_smoothing"] = f"TRL 1.16 ignores it with loss_type={kinds}; `cdpo` smooths labels"
    if len(kinds) > 1:
        if len(weights) != len(kinds):
            raise UserError(f"{len(weights)} loss_weights for {len(kinds)} loss types")
        names = [LOSS_TYPES[kind][0] for kind in kinds]
        absent = {name: 0.0 for name in ("dpo", "bco_pair", "sft") if name not in names}  # in the default of mix
        terms = absent | dict(zip(names, weights, strict=True))
        chosen = {name: options(kind) for name, kind in zip(names, kinds, strict=True) if options(kind)}
        t.set_loss("mix", terms=terms, options=chosen)
    else:
        name, _, preset = LOSS_TYPES[kinds[0]]
        t.set_loss(name, preset, **options(kinds[0]))
    _variants_of_dpo(t, kinds, beta)
    t.ignore(*_ALWAYS_ON)


def _terms_of_dpo(t: Translation) -> tuple[list[str], list[float]]:
    """The loss types and their weights; `rpo_alpha`, up to TRL 0.28, is the weight of `sft` beside them."""
    given = t.take("loss_type", ["sigmoid"])
    kinds = [given] if isinstance(given, str) else list(given)
    weights = [float(w) for w in t.take("loss_weights") or [1.0] * len(kinds)]
    if not (alpha := float(t.take("rpo_alpha", 0.0))):
        return kinds, weights
    if "sft" in kinds:
        raise UserError("rpo_alpha is the weight of the loss type sft, which is given too: leave one of them out")
    t.differs.append(f"rpo_alpha: {alpha:g} times the likelihood of the chosen side, as the term `sft_token_mean` of "
                     "loss=mix; `irpo` is DPO with the mean of each answer")  # fmt: skip
    return [*kinds, "sft"], [*weights, alpha]


def _variants_of_dpo(t: Translation, kinds: list[str], beta: float) -> None:
    """Convert options that turn `sigmoid` into another loss."""
    divergence = t.take("f_divergence_type", "reverse_kl")
    coefficient = float(t.take("f_alpha_divergence_coef", 0.5))
    length, weighting = t.take("ld_alpha"), t.take("use_weighting", False)
    moving = t.take("sync_ref_model", False)
    mixup, every = float(t.take("ref_model_mixup_alpha", 0.6)), int(t.take("ref_model_sync_steps", 512))
    chosen: list[tuple[str, str, dict[str, Any]]] = []
    if divergence != "reverse_kl":
        if divergence not in _DIVERGENCES:
            raise UserError(f"unknown f_divergence_type {divergence!r}{nearest(str(divergence), _DIVERGENCES)}")
        alpha = {"alpha": 1 - coefficient} if divergence == "alpha_divergence" else {}
        chosen.append(("f_divergence_type", "f_dpo", {"divergence": _DIVERGENCES[divergence], **alpha}))
        if alpha:
            t.differs.append(f"f_alpha_divergence_coef={coefficient:g} is loss.alpha={1 - coefficient:g} here")
    if length is not None:
        chosen.append(("ld_alpha", "ld_dpo", {"alpha": float(length)}))
    if weighting:
        chosen.append(("use_weighting", "wpo", {}))
        t.differs.append("use_weighting: TRL multiplies the loss by w_w w_l, `wpo` by min(1, w_w w_l)")
    if moving:
        chosen.append(("sync_ref_model", "tr_dpo", {"alpha": mixup, "tau": every}))
    if chosen and kinds == ["sigmoid"]:
        _, name, settings = chosen.pop(0)
        t.settings = {k: v for k, v in t.settings.items() if not k.startswith("loss.")}
        t.set_loss(name, **{"beta": beta, **settings})
    for option, name, _ in chosen:
        t.no_equal[option] = f"not in combination with the other options; alone it is `{name}`"


def _kto(t: Translation) -> None:
    kind = t.take("loss_type", "kto")
    kind = kind[0] if isinstance(kind, list) else kind
    settings = {
        "beta": float(t.take("beta", 0.1)),
        "desirable_weight": float(t.take("desirable_weight", 1.0)),
        "undesirable_weight": float(t.take("undesirable_weight", 1.0)),
    }
    losses = {"kto": ("kto", "trl_kto"), "apo_zero_unpaired": ("kto_zero", "trl_apo_zero_unpaired")}
    if kind not in losses:
        raise UserError(f"unknown loss_type {kind!r} of KTOConfig{nearest(str(kind), losses)}")
    t.set_loss(*losses[kind], **settings)
    t.ignore(*_ALWAYS_ON)
    t.drop("sync_ref_model", "only DPO has a moving reference (`tr_dpo`)")
    t.ignore("ref_model_mixup_alpha", "ref_model_sync_steps")


def _orpo(t: Translation) -> None:
    t.set_loss("orpo", "trl_orpo", lam=float(t.take("beta", 0.1)))


def _cpo(t: Translation) -> None:
    kind = t.take("loss_type", "sigmoid")
    beta, alpha = float(t.take("beta", 0.1)), float(t.take("cpo_alpha", 1.0))
    gamma, power = float(t.take("simpo_gamma", 0.5)), float(t.take("alpha", 0.0))
    if smoothing := float(t.take("label_smoothing", 0.0)):
        t.no_equal["label_smoothing"] = f"{smoothing:g} with {kind}: neither `cpo` nor `simpo` smooths labels"
    if kind == "alphapo" or (kind == "simpo" and power):
        t.set_loss("alpha_po", beta=beta, alpha=power, gamma_beta_ratio=gamma / beta)
        if alpha:
            t.no_equal["cpo_alpha"] = f"{alpha:g}: `alpha_po` has no likelihood term; mix it with `sft`"
    elif kind == "simpo" and alpha:
        t.set_loss("cpo_simpo", "trl_simpo", beta=beta, gamma_beta_ratio=gamma / beta, alpha=alpha)
    elif kind == "simpo":
        t.set_loss("simpo", "trl_simpo_plain", beta=beta, gamma_beta_ratio=gamma / beta)
    elif kind == "sigmoid":
        t.set_loss("cpo", "trl_cpo", beta=beta, alpha=alpha)
    else:
        why = "hinge and ipo of CPOConfig exist in TRL only; `slic_hf` and `ipo_sum` are what they derive from"
        raise UserError(f"loss_type {kind!r} of CPOConfig has no equivalent here ({why})")


def _model(t: Translation) -> None:
    t.groups["model"] = "local"
    path = t.take("model_name_or_path")
    t.set(model__path=path or "???", model__revision=t.take("model_revision"))
    dtype = t.take("dtype", t.take("torch_dtype"))
    if dtype not in (None, "auto"):
        t.set(model__dtype=str(dtype))
    t.drop("trust_remote_code", "the model author's code runs only with model.trust_remote_code=true")
    t.drop("model_init_kwargs", "see the group `model`")
    t.drop("attn_implementation", "the engine has its own attention over trees")
    t.drop(
        "router_aux_loss_coef", "of models that return the logits of their router; here it is trainer.router_aux_loss"
    )
    if t.take("use_peft", False):
        t.ignore("lora_task_type")
        t.groups["peft"] = "dora" if t.take("use_dora", False) else "lora"
        targets = t.take("lora_target_modules")
        t.set(peft__r=int(t.take("lora_r", 16)), peft__alpha=int(t.take("lora_alpha", 32)),
              peft__target_modules=[targets] if isinstance(targets, str) else targets)  # fmt: skip
        if float(t.take("lora_dropout", 0.05)):
            t.no_equal["lora_dropout"] = "0.05 unless set: none here, so that policy and reference stay comparable"
        t.drop("use_rslora", "not offered: set peft.alpha to alpha * sqrt(r)")
        t.drop("lora_modules_to_save", "only adapters are trained")
    if t.take("load_in_4bit", False):
        t.groups["peft"] = "qlora"
    t.drop("load_in_8bit", "4 bits only (peft=qlora)")
    t.ignore(*(name for name in t.given if name.startswith(("lora_", "use_dora", "use_rslora"))))  # without use_peft
    for name in ("bnb_4bit_quant_type", "use_bnb_nested_quant"):
        t.drop(name, "settings of the 4-bit weights; peft=qlora has nf4 with double quantization")


def _data(t: Translation) -> None:
    t.groups["data"] = "auto"
    path = t.take("dataset_name") or "???"
    t.set(data__path=path, data__subset=t.take("dataset_config"))
    split, held_out = t.take("dataset_train_split"), t.take("dataset_test_split", "test")
    t.set(data__split=split if split != "train" else None)
    if str(t.given.get("eval_strategy", t.given.get("evaluation_strategy", "no"))) != "no":
        if is_data(Path(path)):
            t.differs.append(
                f"eval_strategy: a file has no split {held_out!r}; 5 % of its prompts are held out instead"
            )
        else:
            t.set(data__eval_split=held_out)
    t.set(data__streaming=True if t.take("dataset_streaming", False) else None)
    t.set(data__num_proc=t.take("dataset_num_proc"))
    t.drop("generate_during_eval", "texts are always written before and after training (evaluation.texts)")


def _lengths(t: Translation) -> None:
    t.set(data__max_length=int(t.take("max_length", MAX_LENGTH)))
    if t.take("truncation_mode", "keep_start") == "keep_end":
        t.set(data__truncation="keep_end")
        t.differs.append("truncation_mode keep_end: here the beginning of the prompt is cut, and a completion never is")
    else:
        t.differs.append(
            "max_length: TRL cuts the end of a longer sequence, even of the completion; here such records are rejected "
            "and counted (data.truncation=keep_end cuts the beginning of the prompt)"
        )
    for name in ("max_prompt_length", "max_completion_length"):
        t.drop(name, "data.max_length is the only limit: the prompt plus its longest completion")
