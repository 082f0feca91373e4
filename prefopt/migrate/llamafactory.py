"""Converts LLaMA-Factory's YAML of the stages `dpo`, `kto`, `rm` and `sft`, as its main branch reads it in 2026."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefopt.errors import UserError, nearest
from prefopt.migrate.dataset_info import sources
from prefopt.migrate.trainer_options import convert_trainer_options, record_unconverted
from prefopt.migrate.translation import Translation

MARKS = {"stage", "finetuning_type", "pref_loss", "pref_beta", "cutoff_len", "lora_target", "dataset_dir"}
STAGES = ("sft", "rm", "dpo", "kto")
CUTOFF = 2048
# Options of its stages that sample or score.
_SAMPLING = ("temperature", "top_p", "top_k", "max_new_tokens", "repetition_penalty", "num_beams", "do_sample")


def translate(given: dict[str, Any], processes: int, folder: Path) -> Translation:
    """Convert the settings of a training YAML, whose relative paths start at `folder`.

    Raises:
        UserError: another stage, or a loss that prefopt does not offer.
    """
    t = Translation("LLaMA-Factory", dict(given))
    stage = t.take("stage", "sft")
    if stage not in STAGES:
        raise UserError(f"stage {stage!r} is not offered here; choose from: {', '.join(STAGES)}")
    {"sft": _sft, "rm": _reward_model, "dpo": _dpo, "kto": _kto}[stage](t)
    _model(t)
    _data(t, folder)
    convert_trainer_options(t, {}, processes)
    t.ignore(*_SAMPLING)
    record_unconverted(t)
    return t


def _sft(t: Translation) -> None:
    t.set_loss("sft_token_mean", "trl_sft")


def _reward_model(t: Translation) -> None:
    t.set_loss("bradley_terry")


def _dpo(t: Translation) -> None:
    kind, beta = t.take("pref_loss", "sigmoid"), float(t.take("pref_beta", 0.1))
    likelihood, smoothing = float(t.take("pref_ftx", 0.0)), float(t.take("dpo_label_smoothing", 0.0))
    gamma, length = float(t.take("simpo_gamma", 0.5) if kind == "simpo" else 0.5), t.take("ld_alpha")
    t.ignore("simpo_gamma", "kto_chosen_weight", "kto_rejected_weight")  # of another pref_loss or stage
    bco = float(t.take("pref_bco_weight", 0.0))
    if kind == "sigmoid":
        if bco:
            terms = {"dpo": 1.0, "bco_pair": bco, "sft": likelihood}
            t.set_loss("mix", terms=terms, options={"dpo": {"beta": beta}, "bco_pair": {"beta": beta}})
        elif likelihood:
            t.set_loss("irpo", "llamafactory_dpo_ftx", beta=beta, alpha=likelihood)
        elif length is not None:
            t.set_loss("ld_dpo", beta=beta, alpha=float(length))
            length = None
        elif smoothing:
            t.set_loss("cdpo", beta=beta, label_smoothing=smoothing)
            smoothing = 0.0
        else:
            t.set_loss("dpo", beta=beta)
    elif kind == "ipo":
        t.set_loss("ipo", "llamafactory_ipo", tau=beta)
    elif kind == "hinge":
        t.set_loss("hinge", "trl_hinge", beta=beta)
    elif kind == "orpo":
        t.set_loss("orpo", "llamafactory_orpo", lam=beta)
    elif kind == "simpo":
        t.set_loss("simpo", "llamafactory_simpo", beta=beta, gamma_beta_ratio=gamma / beta)
    else:
        known = ("sigmoid", "hinge", "ipo", "orpo", "simpo")
        raise UserError(
            f"pref_loss {kind!r} has no equivalent here{nearest(str(kind), known)}; labelled completions are stage: kto"
        )
    if likelihood and kind != "sigmoid":
        t.no_equal["pref_ftx"] = f"{likelihood:g} with {kind}: mix it with `sft` (loss=mix)"
    if smoothing:
        t.no_equal["dpo_label_smoothing"] = f"{smoothing:g} with {kind} or pref_ftx: smoothing alone is `cdpo`"
    if length is not None:
        t.no_equal["ld_alpha"] = "only alone, with pref_loss sigmoid, where it is `ld_dpo`"
    t.set(model__reference=t.take("ref_model"))
    t.drop("ref_model_adapters", "merge them into the reference, or give the adapter's folder as model.reference")
    t.drop("ref_model_quantization_bit", "the reference's log-probs are computed once and stored on disk")


def _kto(t: Translation) -> None:
    t.set_loss(
        "kto", "trl_kto", beta=float(t.take("pref_beta", 0.1)),
        desirable_weight=float(t.take("kto_chosen_weight", 1.0)),
        undesirable_weight=float(t.take("kto_rejected_weight", 1.0)),
    )  # fmt: skip
    if likelihood := float(t.take("pref_ftx", 0.0)):
        t.no_equal["pref_ftx"] = f"{likelihood:g} with kto: single completions have no likelihood term here"


def _model(t: Translation) -> None:
    t.groups["model"] = "local"
    t.set(model__path=t.take("model_name_or_path") or "???", model__revision=t.take("model_revision"))
    t.drop("trust_remote_code", "the model author's code runs only with model.trust_remote_code=true")
    t.drop("adapter_name_or_path", "give the adapter's folder as model.path")
    kind = t.take("finetuning_type", "lora")
    if kind == "lora":
        rank, target = int(t.take("lora_rank", 8)), t.take("lora_target", "all")
        names = target.split(",") if isinstance(target, str) else list(target)
        t.groups["peft"] = "dora" if t.take("use_dora", False) else "lora"
        t.set(peft__r=rank, peft__alpha=int(t.take("lora_alpha", 2 * rank)))
        t.set(peft__target_modules=None if names == ["all"] else [name.strip() for name in names])
        if float(t.take("lora_dropout", 0.0)):
            t.no_equal["lora_dropout"] = "there is none, so that policy and reference stay comparable"
        for name in ("use_rslora", "pissa_init", "loraplus_lr_ratio", "additional_target", "create_new_adapter"):
            t.drop(name, "not offered")
    elif kind != "full":
        raise UserError(f"finetuning_type {kind!r} is not offered here; choose from: full, lora")
    t.ignore("lora_rank", "lora_alpha", "lora_target", "lora_dropout", "use_dora")  # without finetuning_type: lora
    bits = t.take("quantization_bit")
    if bits is not None and int(bits) == 4:
        t.groups["peft"] = "qlora"
    elif bits is not None:
        t.no_equal["quantization_bit"] = "4 bits only (peft=qlora)"
    if t.take("pure_bf16", False):
        t.set(model__dtype="bfloat16")
    t.drop("flash_attn", "the engine has its own attention over trees")
    t.drop("rope_scaling", "set it in the model's config.json")


def _names(given: Any) -> list[str]:
    names = given.split(",") if isinstance(given, str) else list(given or [])
    return [name.strip() for name in names]


def _data(t: Translation, folder: Path) -> None:
    t.groups["data"] = "auto"
    home = str(t.take("dataset_dir", "data"))
    found = sources(t, _names(t.take("dataset")), home, folder)
    t.set_sources(found)
    held_out = _names(t.take("eval_dataset"))
    if held_out:
        t.set(data__eval_path=sources(t, held_out[:1], home, folder)[0]["path"])
    if len(held_out) > 1:
        t.no_equal["eval_dataset"] = f"one file is held out, {held_out[0]}: join {len(held_out)} in one file"
    t.hold_out(float(t.take("val_size", 0.0)))
    if most := t.take("max_samples"):
        if len(found) < 2:
            t.set(data__max_records=int(most))
        else:
            t.differs.append(f"max_samples={most}: LLaMA-Factory takes so many records of each data set, and "
                             "data.max_records counts them all together, so all records are used")  # fmt: skip
        if held_out:
            t.differs.append(f"max_samples={most}: LLaMA-Factory cuts eval_dataset too; here all of it is held out")
    t.set(data__num_proc=t.take("preprocessing_num_workers"))
    t.set(data__max_length=int(t.take("cutoff_len", CUTOFF)), data__truncation="keep_end")
    t.differs.append(
        "cutoff_len: LLaMA-Factory cuts prompt and completion in proportion; here the prompt is cut, a completion "
        "never is, and records that still do not fit are rejected and counted"
    )
    template = t.take("template")
    if template:
        t.differs.append(f"template {template}: the tokenizer's own chat template is used (data.template=auto)")
    t.drop("train_on_prompt", "only completions contribute to the loss")
    masked = t.take("mask_history", False)
    if t.given.get("stage", "sft") == "sft" and not masked:
        t.set(data__train_on="all_turns")
    t.explain_thinking()
    t.ignore("packing", "neat_packing")  # rows are always packed, and never attend to each other
