"""Calls the losses of TRL's trainers that take more than pairs of texts: RLOO, GRPO, TPO and reward models."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
import trl
from torch import Tensor
from trl.experimental.tpo import TPOTrainer

from prefopt.testing.peers.shared import OVER_SAMPLES, Options, logits_with, over_samples, per_token, renamed
from prefopt.testing.peers.trl_shared import ACCELERATOR
from prefopt.testing.referee import Case, UnsupportedError, Way

TRL: Any = trl  # it is not typed
TPO: Any = TPOTrainer
RLOO_EPSILON = 0.2  # the default of RLOOConfig


def reward_loss(inputs: dict[str, Tensor], *, centre: float, margin: Tensor | None = None) -> Tensor:
    """The mean over a batch of pairs, from `RewardTrainer` with these scores."""
    scores = torch.cat([inputs["chosen"], inputs["rejected"]])[:, None]
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False), args=SimpleNamespace(center_rewards_coefficient=centre or None),
        accelerator=ACCELERATOR, _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0,
    )  # fmt: skip
    batch = {} if margin is None else {"margin": margin}
    return TRL.RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=scores), batch)  # type: ignore[no-any-return]


def tpo_loss(inputs: dict[str, Tensor], loss_type: str, **settings: Any) -> Tensor:
    """The mean over a batch of lists, from `TPOTrainer`: the best completion is gold, the second chosen, the worst
    rejected."""
    lengths = inputs["num_tokens"]
    scores = inputs["scores"].masked_fill(lengths == 0, -torch.inf)
    order = torch.argsort(scores, dim=-1, descending=True, stable=True)
    last = (lengths > 0).sum(-1, keepdim=True) - 1
    chosen, rejected, gold = order[:, 1:2], order.gather(-1, last), order[:, :1]
    places = torch.cat([chosen, rejected, gold], -1).T  # (3, B), in the order of the trainer's rows
    picked = {name: inputs[name].gather(-1, places.T).T.flatten() for name in ("completions", "num_tokens")}
    width = int(lengths.max())
    inside = torch.arange(width) < picked["num_tokens"].unsqueeze(-1)
    tokens = torch.where(inside, per_token(picked, "completions", "num_tokens", width), -0.5)
    logits = F.pad(logits_with(tokens), (0, 0, 0, 1))
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False), accelerator=ACCELERATOR, _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0, loss_type=loss_type, label_smoothing=0.0, **({"tpo_l_gamma": 0.5} | settings),
    )  # fmt: skip
    mask = F.pad(inside, (1, 0)).long()  # behind a prompt of one token
    batch = {"input_ids": torch.ones_like(mask), "completion_mask": mask, "attention_mask": torch.ones_like(mask)}
    answer = SimpleNamespace(logits=logits)
    # upstream: the losses have no public function of their own; the trainers' public entries need models
    return TPO._compute_loss(trainer, lambda **_: answer, batch, False)  # type: ignore[no-any-return]


def sampled_loss(trainer: str, loss_type: str, samples: dict[str, Tensor], **settings: Any) -> Tensor:
    """The mean over samples of the policy, from `RLOOTrainer` or `GRPOTrainer`.

    Args:
        trainer: "RLOO" or "GRPO".
        loss_type: of GRPO.
        samples: `token`, `old_token`, `ref_token` (N, T), `num_tokens` and `advantage` (N,).
        settings: `beta`, `epsilon`, `length`.
    """
    token = samples["token"]
    inside = (torch.arange(token.shape[-1]) < samples["num_tokens"].unsqueeze(-1)).to(token)
    old = samples["old_token"]
    stub = SimpleNamespace(
        model=SimpleNamespace(training=False), aux_loss_enabled=False, loss_type=loss_type, beta=settings["beta"],
        epsilon_low=settings["epsilon"], epsilon_high=settings["epsilon"], top_entropy_quantile=1.0,
        off_policy_mask_threshold=None, importance_sampling_level="token", use_vllm=False,
        _entropy_bonus_enabled=False, max_completion_length=settings.get("length", 1),
        current_gradient_accumulation_steps=1, args=SimpleNamespace(use_bias_correction_kl=False, delta=None),
        _metrics=defaultdict(lambda: defaultdict(list)),
        accelerator=SimpleNamespace(gather=_same, gather_for_metrics=_same, reduce=lambda value, reduction: value),
        _get_per_token_logps_and_entropies=lambda *_, **__: (token, torch.zeros_like(token), None),
    )  # fmt: skip
    ones = torch.ones(len(token), 1)
    batch = {
        "prompt_ids": ones, "prompt_mask": ones, "completion_ids": inside, "completion_mask": inside,
        "advantages": samples["advantage"], "old_logps": old.sum(-1), "old_per_token_logps": old,
        "ref_per_token_logps": samples["ref_token"],
    }  # fmt: skip
    # upstream: as in tpo_loss
    return getattr(TRL, f"{trainer}Trainer")._compute_loss(stub, None, batch)  # type: ignore[no-any-return]


def _same(value: Any) -> Any:
    return value


def _samples(case: Case) -> dict[str, Tensor]:
    """The samples that are there, one a row, with the advantages that the vectors give."""
    there = case.inputs["num_tokens"] > 0
    width = int(case.inputs["num_tokens"].max())
    found = {"num_tokens": case.inputs["num_tokens"][there], "advantage": case.targets["advantage"][there]}
    for name, prefix in (("token", ""), ("old_token", "old_"), ("ref_token", "ref_")):
        tokens = case.inputs.get(f"{prefix}completions_token")
        if tokens is None:  # only sums are read: one token has it all
            tokens = F.pad(case.inputs[f"{prefix}completions"].unsqueeze(-1), (0, width - 1))
        found[name] = tokens[there]
    return found


def _rloo(case: Case) -> Tensor:
    if case.hyperparameters["kl"] == "loss_k3":
        raise UnsupportedError("the KL stands in the reward")
    return sampled_loss("RLOO", "rloo", _samples(case), beta=0.0, epsilon=RLOO_EPSILON)


def _clipped_rloo(case: Case) -> Tensor:
    """RLOO with PPO's clipping, where every sample weighs the same."""
    there = case.inputs["num_tokens"] > 0
    advantage = case.targets["advantage"]
    ratio = (case.inputs["completions"] - case.inputs["old_completions"]).exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - RLOO_EPSILON, 1 + RLOO_EPSILON) * advantage)
    return -(gain * there).sum(-1) * len(there) / there.sum()


def _grpo(loss_type: str) -> tuple[Way, Way]:
    def call(case: Case) -> Tensor:
        given: Options = dict(case.hyperparameters)
        if given.pop("kl") != "loss_k3":  # without, or in the rewards that the advantages are of
            given["beta"] = 0.0
        return sampled_loss("GRPO", loss_type, _samples(case), **given)

    return Way(call), Way(call, OVER_SAMPLES, partial(over_samples, loss_type))


def _tpo(loss_type: str) -> tuple[Way]:
    def call(case: Case) -> Tensor:
        return tpo_loss(case.inputs, loss_type, **renamed(case.hyperparameters, alpha="tpo_alpha", gamma="tpo_l_gamma"))

    return (Way(call),)


def _reward(case: Case) -> Tensor:
    scale = case.hyperparameters.get("scale", 0.0)
    margin = scale * case.inputs["margin"] if "margin" in case.inputs else None
    return reward_loss(case.inputs, centre=case.hyperparameters["centre"], margin=margin)


PEER: dict[str, tuple[Way, ...]] = {
    "rloo": (Way(_rloo), Way(_rloo, f"ratio clipped at 1 ± {RLOO_EPSILON}; {OVER_SAMPLES}", _clipped_rloo)),
    "grpo": _grpo("grpo"),
    "dr_grpo": _grpo("dr_grpo"),
    "tpo": _tpo("sigmoid"),
    "tpo_l": _tpo("tpo-l"),
    "bradley_terry": (Way(_reward),),
    "bradley_terry_margin": (Way(_reward),),
}
