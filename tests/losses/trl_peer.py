"""TRL's own loss code on a stand-in for the model, which returns the frozen log-probs of one batch.

Tests of parity compare with it to 1e-6. Where we differ on purpose, the test says by which formula.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from prefopt.losses.registry import load
from prefopt.testing.numbers import build, value_of, whole
from prefopt.testing.samples import Named, cast, declared

TOKENS, PAIRS = 6, 5


def frozen_pairs() -> Named:
    """Five pairs: lengths 1 to 6, per-token log-probs of policy and reference, and log sum_v p_v^2."""
    generator = torch.Generator().manual_seed(20261122)
    numbers: Named = {"ids": torch.arange(PAIRS)}
    for side, lengths in (("chosen", [6, 2, 4, 1, 3]), ("rejected", [2, 5, 4, 3, 6])):
        inside = torch.arange(TOKENS) < torch.tensor(lengths).unsqueeze(-1)
        numbers[f"{side}_num_tokens"] = torch.tensor(lengths)
        for name, scale in ((f"{side}_token", -2.0), (f"ref_{side}_token", -2.0), (f"{side}_log_sum_sq", -1.0)):
            numbers[name] = scale * torch.rand(inside.shape, generator=generator, dtype=torch.float64) * inside
        numbers[side] = numbers[f"{side}_token"].sum(-1)
        numbers[f"ref_{side}"] = numbers[f"ref_{side}_token"].sum(-1)
    return numbers


def ours(name: str, numbers: Named, **settings: Any) -> float:
    loss = load(name, **settings)
    return float(value_of(loss, declared(loss.needs, numbers)).mean())


def trl_dpo(numbers: Named, loss_type: str | list[str], **settings: Any) -> float:
    """TRL's DPOTrainer on the batch."""
    from prefopt.testing.peers.trl_losses import dpo_loss

    if settings.get("f_divergence_type") == "alpha_divergence":
        numbers = cast(numbers, torch.float32)  # this branch of theirs knows no float64
    return float(dpo_loss(dict(numbers), loss_type, **settings))


def trl_reward(numbers: Named, *, margin: bool, centre: float | None) -> float:
    """TRL's RewardTrainer on the batch, whose scores are the policy's sums."""
    from trl import RewardTrainer

    def scores(**inputs: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.cat([numbers["chosen"], numbers["rejected"]])[:, None])

    accelerator = SimpleNamespace(gather=_same, gather_for_metrics=_same)
    trainer: Any = SimpleNamespace(
        model=SimpleNamespace(training=False), args=SimpleNamespace(center_rewards_coefficient=centre),
        accelerator=accelerator, _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0,
    )  # fmt: skip
    inputs = {"margin": numbers["margin"]} if margin else {}
    return float(RewardTrainer.compute_loss(trainer, scores, inputs))


def _same(value: Any) -> Any:
    return value


def as_items(numbers: Named) -> Named:
    """The pairs as single items, desirable first."""
    joined = {
        "completion": torch.cat([numbers["chosen"], numbers["rejected"]]),
        "ref_completion": torch.cat([numbers["ref_chosen"], numbers["ref_rejected"]]),
        "num_tokens": torch.cat([numbers["chosen_num_tokens"], numbers["rejected_num_tokens"]]),
    }
    return joined | {"desirable": torch.arange(2 * PAIRS) < PAIRS, "ids": torch.arange(2 * PAIRS)}


def trl_kto(items: Named, mismatched: tuple[Tensor, Tensor], loss_type: str, **settings: Any) -> float:
    """TRL's KTOTrainer on the items of `as_items`."""
    from prefopt.testing.peers.trl_losses import kto_loss

    given = dict(items) | dict(zip(("mismatched", "ref_mismatched"), mismatched, strict=True))
    return float(kto_loss(given, loss_type, **settings))


def mean_logps(batch: Named) -> tuple[Tensor, Tensor]:
    return batch["chosen"] / batch["chosen_num_tokens"], batch["rejected"] / batch["rejected_num_tokens"]


def trl_cpo(chosen: Tensor, rejected: Tensor, loss_type: str, **settings: Any) -> float:
    from trl.experimental.cpo import CPOTrainer

    options = {"beta": 0.1, "alpha": 0.0, "label_smoothing": 0.0, "simpo_gamma": 0.5} | settings
    stub = SimpleNamespace(loss_type=loss_type, accelerator=SimpleNamespace(device="cpu"), **options)
    losses, *_ = CPOTrainer.cpo_loss(stub, chosen, rejected)
    return float(losses.mean())


def sequences(sides: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, ids and completion mask of completions behind a prompt of one token."""
    from prefopt.testing.peers.shared import logits_with

    tokens = torch.cat([token for token, _ in sides])
    lengths = torch.cat([length for _, length in sides])
    mask = torch.nn.functional.pad((torch.arange(TOKENS) < lengths.unsqueeze(-1)).long(), (1, 0))
    logits = logits_with(torch.where(tokens < 0, tokens, -0.5))
    return torch.nn.functional.pad(logits, (0, 0, 0, 1)), torch.ones_like(mask), mask


def trl_tpo(batch: Named, loss_type: str) -> float:
    """TRL's TPOTrainer on the batch of `with_gold`.

    Its likelihood is the mean over all gold tokens, ours over each gold completion's own: equal here.
    """
    from trl.experimental.tpo import TPOTrainer

    sides = [(batch[f"{s}_token"], batch[f"{s}_num_tokens"]) for s in ("chosen", "rejected")]
    logits, ids, mask = sequences([*sides, _gold()])
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
        loss_type=loss_type,
        label_smoothing=0.0,
        beta=0.5,
        tpo_alpha=0.7,
        tpo_l_gamma=0.5,
    )
    inputs = {"input_ids": ids, "completion_mask": mask, "attention_mask": torch.ones_like(mask)}
    return float(TPOTrainer._compute_loss(trainer, lambda **kw: SimpleNamespace(logits=logits), inputs, False))


def with_gold(batch: Named) -> Named:
    """The pairs as lists of three, with a gold completion in front."""
    gold, lengths = _gold()
    return {
        "completions": torch.stack([gold.sum(-1), batch["chosen"], batch["rejected"]], -1),
        "num_tokens": torch.stack([lengths, batch["chosen_num_tokens"], batch["rejected_num_tokens"]], -1),
        "scores": torch.tensor([[2.0, 1.0, 0.0]]).repeat(PAIRS, 1).double(),
        "ids": torch.arange(PAIRS),
    }


def _gold() -> tuple[Tensor, Tensor]:
    """Per-token log-probs and lengths of the gold completions."""
    return torch.full((PAIRS, TOKENS), -0.25, dtype=torch.float64), torch.full((PAIRS,), TOKENS)


def demonstrations(batch: Named) -> Named:
    """The chosen sides alone."""
    return {name: batch[name] for name in ("chosen", "chosen_num_tokens", "chosen_token", "ids")}


def trl_on_policy(loss_type: str, loss: Any, numbers: Named) -> float:
    """TRL's RLOOTrainer (`rloo`) or GRPOTrainer (`grpo`, `dr_grpo`) on lists with our advantages."""
    from trl import GRPOTrainer, RLOOTrainer

    batch: Any = whole(loss, build(loss.needs, declared(loss.needs, numbers)))
    completions, old = batch.completions, batch.old
    width = numbers["completions_token"].shape[-1]
    inside = (torch.arange(width) < numbers["num_tokens"].unsqueeze(-1)).double().flatten(0, 1)
    token = numbers["completions_token"].flatten(0, 1)
    cls = RLOOTrainer if loss_type == "rloo" else GRPOTrainer
    unclipped = 1e9 if loss_type == "rloo" else 0.2
    trainer = object.__new__(cls)
    vars(trainer).update(
        model=SimpleNamespace(training=False), aux_loss_enabled=False, loss_type=loss_type, beta=loss.beta,
        epsilon_low=unclipped, epsilon_high=unclipped, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        importance_sampling_level="token", use_vllm=False, _entropy_bonus_enabled=False,
        max_completion_length=getattr(loss, "length", 1), current_gradient_accumulation_steps=1,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None), _metrics=defaultdict(lambda: defaultdict(list)),
        accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x, gather_for_metrics=lambda x: x),
        _get_per_token_logps_and_entropies=lambda *_, **__: (token, torch.zeros_like(token), None),
    )  # fmt: skip
    inputs = {
        "prompt_ids": torch.ones(len(token), 1), "prompt_mask": torch.ones(len(token), 1),
        "completion_ids": inside, "completion_mask": inside, "advantages": batch.targets["advantage"].flatten(),
        "old_logps": old.sum.flatten(),
    }  # fmt: skip
    if loss.needs.tokens:
        inputs |= {"old_per_token_logps": old.per_token.flatten(0, 1)}
        inputs |= {"ref_per_token_logps": completions.ref_per_token.flatten(0, 1)}
    return float(trainer._compute_loss(None, inputs))
