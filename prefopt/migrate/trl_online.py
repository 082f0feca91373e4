"""TRL's `RLOOConfig`, `GRPOConfig`, `OnlineDPOConfig` and `RewardConfig`, as TRL 1.16 reads them."""

from __future__ import annotations

from typing import Any

from prefopt.errors import UserError, nearest
from prefopt.migrate.translation import Translation

DEFAULTS: dict[str, dict[str, Any]] = {
    "RLOOConfig": {"learning_rate": 1e-6, "logging_steps": 10, "gradient_checkpointing": True},
    "GRPOConfig": {"learning_rate": 1e-6, "logging_steps": 10, "gradient_checkpointing": True},
    "OnlineDPOConfig": {"learning_rate": 5e-7, "logging_steps": 10, "gradient_checkpointing": True},
    "RewardConfig": {"learning_rate": 1e-4, "logging_steps": 10, "gradient_checkpointing": True},
}
# Options that only one of the classes has.
MARKS = {
    "RLOOConfig": {"normalize_advantages", "reward_clip_range"},
    "GRPOConfig": {"scale_rewards", "importance_sampling_level", "epsilon_high", "use_bias_correction_kl"},
    "OnlineDPOConfig": {"reward_model_path", "missing_eos_penalty"},
    "RewardConfig": {"center_rewards_coefficient"},
}
# Where TRL's defaults leave the model's own distribution as it is; ratios would be of another one.
_PLAIN = {"top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0, "generation_kwargs": None}
_OF_GENERATION = ("ds3_gather_for_generation", "cache_implementation", "generation_batch_size",
                  "num_completions_to_print", "log_completions", "log_unique_prompts", "log_multimodal",
                  "use_transformers_continuous_batching", "use_transformers_paged", "num_generations_eval")  # fmt: skip
_REWARD = "TRL's reward functions are code: give reward=module:function, or a reward model's folder"


def class_of(given: dict[str, Any]) -> str | None:
    """The class that settings belong to, where an option shows it."""
    return next((kind for kind, marks in MARKS.items() if marks & set(given)), None)


def rloo(t: Translation) -> int:
    """Convert an `RLOOConfig`; returns the samples of a prompt, which TRL's batches count."""
    t.set_loss("rloo", beta=float(t.take("beta", 0.05)))
    count = _groups(t, 2)
    if float(t.take("epsilon", 0.2)) and t.settings["rollout.updates"] > 1:
        t.no_equal["epsilon"] = "`rloo` does not clip ratios; `grpo` and `ppo` do"
    t.drop("epsilon_high", "`rloo` does not clip ratios")
    t.drop("normalize_advantages", "not offered with `rloo`; `reinforce_pp` whitens over the rollout")
    t.drop("reward_clip_range", "clip them in the reward")
    return count


def grpo(t: Translation) -> int:
    """Convert a `GRPOConfig`; returns the samples of a prompt, which TRL's batches count."""
    kind, beta = str(t.take("loss_type", "dapo")), float(t.take("beta", 0.0))
    scaled = str(t.take("scale_rewards", "group")).lower()
    length = int(t.given.get("max_completion_length") or 512)
    known = {"grpo", "dapo", "bnpo", "dr_grpo"}
    if kind not in known:
        raise UserError(f"loss_type {kind!r} of GRPOConfig has no equivalent here{nearest(kind, known)}")
    settings: dict[str, Any] = {"epsilon": float(t.take("epsilon", 0.2)), "kl": "LOSS_K3" if beta else "NONE"}
    settings |= {"beta": beta} if beta else {}
    if kind == "dr_grpo":
        t.set_loss("dr_grpo", length=length, **settings)
    else:
        t.set_loss("grpo", **settings)
    if kind in ("dapo", "bnpo"):
        t.no_equal["loss_type"] = (f"{kind}: TRL divides by the tokens of the batch, `grpo` here by those of each "
                                   "completion (the paper); `reinforce_pp` divides by the rollout's")  # fmt: skip
    wanted = {"none", "false"} if kind == "dr_grpo" else {"group", "true"}
    if scaled not in wanted:
        t.no_equal["scale_rewards"] = f"{scaled}: `grpo` divides by the group's deviation, `dr_grpo` does not divide"
    if not beta:
        t.ignore("use_bias_correction_kl")  # without a KL
    elif t.take("use_bias_correction_kl", True):
        t.differs.append("use_bias_correction_kl: TRL multiplies k3 by the importance ratio, which is 1 in the first "
                         "update of a rollout but changes its gradient; here k3 stands alone, as in the paper"
                         )  # fmt: skip
    for name in ("epsilon_high", "delta", "top_entropy_quantile", "off_policy_mask_threshold", "entropy_coef"):
        if t.take(name) not in (None, 0, 0.0, 1.0):
            t.no_equal[name] = "not offered"
    if t.take("importance_sampling_level", "token") != "token":
        t.no_equal["importance_sampling_level"] = "ratios are of tokens"
    t.ignore(*(name for name in t.given if name.startswith(("sapo_", "vespo_", "entropy_", "use_adaptive_entropy"))))
    t.ignore("multi_objective_aggregation")
    return _groups(t, 8)


def online_dpo(t: Translation) -> int:
    """Convert an `OnlineDPOConfig`, whose batches count prompts."""
    beta, kind = t.take("beta", 0.1), str(t.take("loss_type", "sigmoid"))
    betas = [float(b) for b in beta] if isinstance(beta, list) else [float(beta)]
    if len(betas) > 1:
        t.no_equal["beta"] = f"one for each epoch ({betas}): the first is taken"
    losses = {"sigmoid": ("dpo", "beta"), "ipo": ("ipo_sum", "tau")}
    if kind not in losses:
        raise UserError(f"unknown loss_type {kind!r} of OnlineDPOConfig{nearest(kind, losses)}")
    name, scale = losses[kind]
    t.set_loss(name, **{scale: betas[0]})
    t.set(rollout__num_generations=2, rollout__max_new_tokens=int(t.take("max_new_tokens", 64)),
          rollout__temperature=float(t.take("temperature", 0.9)), rollout__label="ARGMAX")  # fmt: skip
    t.differs.append("labels: TRL takes the text with the larger reward as chosen (rollout.label=ARGMAX)")
    if name == "dpo":
        t.set(rollout__allow_argmax=True)
        t.differs[-1] += "; dpo then has no finite optimum: rollout.label=BT has"
    penalty = t.take("missing_eos_penalty")
    t.set(rollout__missing_end_penalty=None if penalty is None else float(penalty))
    t.set(reward=t.take("reward_model_path"))
    t.ignore("max_length")  # of its prompts with their texts; here rollout.max_new_tokens limits the texts
    _own_samples(t)
    return 1


def reward(t: Translation) -> int:
    """Convert a `RewardConfig`."""
    t.set_loss("bradley_terry", centre=float(t.take("center_rewards_coefficient", 0.0)))
    t.drop("chat_template_path", "give the .jinja file as data.template")
    return 1


def _groups(t: Translation, default: int) -> int:
    """Convert how groups of samples are drawn; returns their size."""
    count, updates = int(t.take("num_generations", default)), int(t.take("num_iterations", 1))
    steps, accumulation = t.take("steps_per_generation"), int(t.given.get("gradient_accumulation_steps") or 1)
    if steps is not None and int(steps) != accumulation:
        t.no_equal["steps_per_generation"] = f"{steps}: a step here learns from the whole rollout"
    t.set(rollout__num_generations=count, rollout__updates=updates,
          rollout__max_new_tokens=int(t.take("max_completion_length", 512)),
          rollout__temperature=float(t.take("temperature", 1.0)))  # fmt: skip
    t.drop("mask_truncated_completions", "a text that was cut off keeps its reward (rollout.missing_end_penalty)")
    if t.take("disable_dropout", False):  # off there unless it is given
        t.no_effect.append("disable_dropout")
    t.drop("sync_ref_model", "only `tr_dpo` has a moving reference")
    t.ignore("ref_model_mixup_alpha", "ref_model_sync_steps")
    t.differs.append("batches: TRL counts completions, batch.records prompts")
    _own_samples(t)
    return count


def _own_samples(t: Translation) -> None:
    t.set(source="rollouts")
    if "reward" not in t.settings:
        t.differs.append(_REWARD)
    for name, plain in _PLAIN.items():
        if (value := t.take(name, plain)) != plain and value not in (None, {}, -1):
            t.no_equal[name] = f"{value}: texts are drawn from the model's own distribution"
    if t.take("use_vllm", False):
        t.no_equal["use_vllm"] = "see rollout.sampler in docs/own_samples.md"
    t.ignore(*(name for name in t.given if name.startswith(("vllm_", "transformers_continuous"))))
    if t.take("reward_weights"):
        t.no_equal["reward_weights"] = "weights stand in the table of several rewards (docs/own_samples.md)"
    t.ignore(*_OF_GENERATION)
