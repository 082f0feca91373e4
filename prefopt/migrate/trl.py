"""TRL's `DPOConfig`, `KTOConfig`, `ORPOConfig` and `CPOConfig`, as TRL 1.16 reads them."""

from __future__ import annotations

from typing import Any

from prefopt.errors import UserError, nearest
from prefopt.migrate.arguments import finish, training_arguments
from prefopt.migrate.translation import Translation

CLASSES = ("DPOConfig", "KTOConfig", "ORPOConfig", "CPOConfig")
# Where TRL's defaults are not transformers'; a test compares them with the installed classes.
DEFAULTS: dict[str, dict[str, Any]] = {
    "DPOConfig": {"learning_rate": 1e-6, "logging_steps": 10, "gradient_checkpointing": True},
    "KTOConfig": {"learning_rate": 1e-6, "logging_steps": 10, "gradient_checkpointing": True},
    "ORPOConfig": {"learning_rate": 1e-6, "logging_steps": 10, "gradient_checkpointing": True},
    "CPOConfig": {"learning_rate": 1e-6, "logging_steps": 10, "gradient_checkpointing": True},
}
MAX_LENGTH = 1024
# loss_type of DPOTrainer -> our loss, the name of its beta here, the compat preset that tells the difference
PLAIN: dict[str, tuple[str, str, str | None]] = {
    "sigmoid": ("dpo", "beta", "trl_dpo"),
    "hinge": ("hinge", "beta", "trl_hinge"),
    "ipo": ("ipo", "tau", "trl_ipo"),
    "exo_pair": ("exo", "beta", "trl_exo_pair"),
    "nca_pair": ("nca", "beta", None),
    "robust": ("robust_dpo", "beta", "trl_robust"),
    "bco_pair": ("bco_pair", "beta", None),
    "sppo_hard": ("sppo", "beta", None),
    "aot": ("aot", "beta", None),
    "aot_unpaired": ("aot_unpaired", "beta", None),
    "apo_zero": ("apo_zero", "beta", None),
    "apo_down": ("apo_down", "beta", None),
    "discopop": ("discopop_lrml", "beta", None),
    "sigmoid_norm": ("dpo_norm", "beta", None),
    "sft": ("sft_token_mean", "", "trl_sft"),
}
# The store holds the reference's log-probs, rows have no padding, and the head never projects a prompt's tokens.
_DONE_ANYWAY = ("precompute_ref_log_probs", "precompute_ref_batch_size", "padding_free", "use_logits_to_keep")
_DIVERGENCES = {"forward_kl": "FORWARD_KL", "js_divergence": "JENSEN_SHANNON", "alpha_divergence": "ALPHA"}


def class_of(given: dict[str, Any]) -> str:
    """Which of the classes these settings belong to, by options that only it has.

    Raises:
        UserError: they could belong to several.
    """
    said = given.get("class_name") or given.get("trainer_class")
    if said in CLASSES:
        return str(said)
    if {"desirable_weight", "undesirable_weight"} & set(given) or given.get("loss_type") in ("kto", ["kto"]):
        return "KTOConfig"
    if {"cpo_alpha", "simpo_gamma"} & set(given) or given.get("loss_type") == "simpo":
        return "CPOConfig"
    if {"loss_type", "loss_weights", "precompute_ref_log_probs", "f_divergence_type", "sync_ref_model"} & set(given):
        return "DPOConfig"
    raise UserError("these settings do not tell which of TRL's trainers they are for: say --class DPOConfig, "
                    "KTOConfig, ORPOConfig or CPOConfig")  # fmt: skip


def translate(given: dict[str, Any], kind: str, processes: int) -> Translation:
    """Settings of one of the classes, with those of TRL's command line (model, data, LoRA) among them.

    Raises:
        UserError: a loss that is not offered here.
    """
    if kind not in CLASSES:
        raise UserError(f"unknown class {kind!r}{nearest(kind, CLASSES)}; known are: {', '.join(CLASSES)}")
    t = Translation(f"TRL's {kind}", dict(given))
    {"DPOConfig": _dpo, "KTOConfig": _kto, "ORPOConfig": _orpo, "CPOConfig": _cpo}[kind](t)
    _model(t)
    _data(t)
    defaults = dict(DEFAULTS[kind])
    if t.given.get("bf16") is None and not t.given.get("fp16"):
        defaults["bf16"] = True
    training_arguments(t, defaults, processes)
    finish(t)
    return t


def _dpo(t: Translation) -> None:
    kinds = t.take("loss_type", ["sigmoid"])
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    weights = [float(w) for w in t.take("loss_weights") or [1.0] * len(kinds)]
    beta, smoothing = float(t.take("beta", 0.1)), float(t.take("label_smoothing", 0.0))
    tau = float(t.take("discopop_tau", 0.05))
    for kind in kinds:
        if kind not in PLAIN:
            raise UserError(f"loss_type {kind!r} of DPOConfig is not known{nearest(str(kind), PLAIN)}")
    own: dict[str, dict[str, Any]] = {
        "exo_pair": {"label_smoothing": smoothing} if smoothing else {},  # 0 is refused there
        "robust": {"label_smoothing": smoothing},
        "discopop": {"tau": tau},
    }

    def options(kind: str) -> dict[str, Any]:
        name = PLAIN[kind][1]
        return ({name: beta} if name else {}) | own.get(kind, {})

    if smoothing and not {"exo_pair", "robust"} & set(kinds):
        t.no_equal["label_smoothing"] = f"TRL 1.16 does not read it with loss_type={kinds}; `cdpo` has it"
    if len(kinds) > 1:
        if len(weights) != len(kinds):
            raise UserError(f"{len(weights)} loss_weights for {len(kinds)} loss types")
        names = [PLAIN[kind][0] for kind in kinds]
        absent = {name: 0.0 for name in ("dpo", "bco_pair", "sft") if name not in names}  # in mix's default
        terms = absent | dict(zip(names, weights, strict=True))
        chosen = {name: options(kind) for name, kind in zip(names, kinds, strict=True) if options(kind)}
        t.lose("mix", terms=terms, options=chosen)
    else:
        name, _, preset = PLAIN[kinds[0]]
        t.lose(name, preset, **options(kinds[0]))
    _variants_of_dpo(t, kinds, beta)
    for name in _DONE_ANYWAY:
        t.take(name)


def _variants_of_dpo(t: Translation, kinds: list[str], beta: float) -> None:
    """Options that make another loss of `sigmoid`."""
    divergence = t.take("f_divergence_type", "reverse_kl")
    coefficient = float(t.take("f_alpha_divergence_coef", 0.5))
    length, weighting = t.take("ld_alpha"), t.take("use_weighting", False)
    moving = t.take("sync_ref_model", False)
    mixup, every = float(t.take("ref_model_mixup_alpha", 0.6)), int(t.take("ref_model_sync_steps", 512))
    chosen: list[tuple[str, str, dict[str, Any]]] = []
    if divergence != "reverse_kl":
        if divergence not in _DIVERGENCES:
            raise UserError(f"f_divergence_type {divergence!r} is not known{nearest(str(divergence), _DIVERGENCES)}")
        alpha = {"alpha": 1 - coefficient} if divergence == "alpha_divergence" else {}
        chosen.append(("f_divergence_type", "f_dpo", {"divergence": _DIVERGENCES[divergence], **alpha}))
        if alpha:
            t.differs.append(f"f_alpha_divergence_coef={coefficient:g} is loss.alpha={1 - coefficient:g} here")
    if length is not None:
        chosen.append(("ld_alpha", "ld_dpo", {"alpha": float(length)}))
    if weighting:
        chosen.append(("use_weighting", "wpo", {}))
        t.differs.append("use_weighting: theirs is w_w w_l times the loss, `wpo` min(1, w_w w_l)")
    if moving:
        chosen.append(("sync_ref_model", "tr_dpo", {"alpha": mixup, "tau": every}))
    if chosen and kinds == ["sigmoid"]:
        _, name, settings = chosen.pop(0)
        t.settings = {k: v for k, v in t.settings.items() if not k.startswith("loss.")}
        t.lose(name, **{"beta": beta, **settings})
    for option, name, _ in chosen:
        t.no_equal[option] = f"not together with the rest; alone it is `{name}`"


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
        raise UserError(f"loss_type {kind!r} of KTOConfig is not known{nearest(str(kind), losses)}")
    t.lose(*losses[kind], **settings)
    for name in _DONE_ANYWAY:
        t.take(name)
    t.leave("sync_ref_model", "a moving reference is offered for DPO alone (`tr_dpo`)")
    for name in ("ref_model_mixup_alpha", "ref_model_sync_steps"):
        t.take(name)


def _orpo(t: Translation) -> None:
    t.lose("orpo", "trl_orpo", lam=float(t.take("beta", 0.1)))


def _cpo(t: Translation) -> None:
    kind = t.take("loss_type", "sigmoid")
    beta, alpha = float(t.take("beta", 0.1)), float(t.take("cpo_alpha", 1.0))
    gamma, power = float(t.take("simpo_gamma", 0.5)), float(t.take("alpha", 0.0))
    if smoothing := float(t.take("label_smoothing", 0.0)):
        t.no_equal["label_smoothing"] = f"{smoothing:g} of {kind}: neither `cpo` nor `simpo` smooths labels"
    if kind == "alphapo" or (kind == "simpo" and power):
        t.lose("alpha_po", beta=beta, alpha=power, gamma=gamma)
        if alpha:
            t.no_equal["cpo_alpha"] = f"{alpha:g}: `alpha_po` has no likelihood term; mix it with `sft`"
    elif kind == "simpo" and alpha:
        t.lose("cpo_simpo", "trl_simpo", beta=beta, gamma_beta_ratio=gamma / beta, alpha=alpha)
    elif kind == "simpo":
        t.lose("simpo", "trl_simpo_plain", beta=beta, gamma_beta_ratio=gamma / beta)
    elif kind == "sigmoid":
        t.lose("cpo", "trl_cpo", beta=beta, alpha=alpha)
    else:
        why = "hinge and ipo of CPOConfig are found in TRL alone: `slic_hf` and `ipo_sum` are their sources"
        raise UserError(f"loss_type {kind!r} of CPOConfig has no equal here ({why})")


def _model(t: Translation) -> None:
    t.groups["model"] = "local"
    path = t.take("model_name_or_path")
    t.put(model__path=path or "???", model__revision=t.take("model_revision"))
    dtype = t.take("dtype", t.take("torch_dtype"))
    if dtype not in (None, "auto"):
        t.put(model__dtype=str(dtype))
    t.leave("trust_remote_code", "code of a model's author is not run unless you say model.trust_remote_code=true")
    t.leave("model_init_kwargs", "see the group `model`")
    t.leave("attn_implementation", "the engine attends over trees by a function of its own")
    t.leave("router_aux_loss_coef", "no balancing loss of experts is added")
    if t.take("use_peft", False):
        t.groups["peft"] = "dora" if t.take("use_dora", False) else "lora"
        targets = t.take("lora_target_modules")
        t.put(peft__r=int(t.take("lora_r", 16)), peft__alpha=int(t.take("lora_alpha", 32)),
              peft__target_modules=[targets] if isinstance(targets, str) else targets)  # fmt: skip
        if float(t.take("lora_dropout", 0.05)):
            t.no_equal["lora_dropout"] = "0.05 unless set: policy and reference must be comparable, so there is none"
        t.leave("use_rslora", "not offered: set peft.alpha to alpha * sqrt(r)")
        t.leave("lora_modules_to_save", "adapters alone are trained")
    if t.take("load_in_4bit", False):
        t.groups["peft"] = "qlora"
    t.leave("load_in_8bit", "4 bits only (peft=qlora)")
    for name in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_task_type", "use_dora",
                 "lora_modules_to_save", "bnb_4bit_quant_type", "use_bnb_nested_quant", "use_rslora"):  # fmt: skip
        t.take(name)


def _data(t: Translation) -> None:
    t.groups["data"] = "auto"
    t.put(data__path=t.take("dataset_name") or "???", data__subset=t.take("dataset_config"))
    split, held_out = t.take("dataset_train_split"), t.take("dataset_test_split", "test")
    t.put(data__split=split if split != "train" else None)
    if str(t.given.get("eval_strategy", t.given.get("evaluation_strategy", "no"))) != "no":
        t.put(data__eval_split=held_out)
    t.put(data__streaming=True if t.take("dataset_streaming", False) else None)
    t.put(data__num_proc=t.take("dataset_num_proc"))
    t.put(data__max_length=int(t.take("max_length", MAX_LENGTH)))
    if t.take("truncation_mode", "keep_start") == "keep_end":
        t.put(data__truncation="keep_end")
        t.differs.append("truncation_mode keep_end: here the prompt's beginning is cut, and a completion never is")
    else:
        t.differs.append("max_length: TRL cuts the end of a longer sequence, completion and all; here such records are "
                         "rejected and counted (data.truncation=keep_end cuts the prompt's beginning)")  # fmt: skip
    for name in ("max_prompt_length", "max_completion_length"):
        t.leave(name, "only data.max_length limits a record: the prompt plus its longest completion")
    t.leave("generate_during_eval", "texts are always written before and after training (evaluation.texts)")
