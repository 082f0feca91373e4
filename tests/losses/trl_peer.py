"""TRL's own loss code on a stand-in for the model, which returns the frozen log-probs of one batch.

Tests of parity compare with it to 1e-6. Where we differ on purpose, the test says by which formula.
"""

from __future__ import annotations

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
    from prefopt.testing.peers.trl_list_losses import reward_loss

    return float(reward_loss(dict(numbers), centre=centre or 0.0, margin=numbers["margin"] if margin else None))


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


def trl_tpo(batch: Named, loss_type: str) -> float:
    """TRL's TPOTrainer on the batch of `with_gold`.

    Its likelihood is the mean over all gold tokens, ours over each gold completion's own: equal here.
    """
    from prefopt.testing.peers.trl_list_losses import tpo_loss

    return float(tpo_loss(with_gold(batch), loss_type, beta=0.5, tpo_alpha=0.7))


def with_gold(batch: Named) -> Named:
    """The pairs as lists of three, with a gold completion in front."""
    gold, length = torch.full((PAIRS,), -0.25 * TOKENS, dtype=torch.float64), torch.full((PAIRS,), TOKENS)
    return {
        "completions": torch.stack([gold, batch["chosen"], batch["rejected"]], -1),
        "num_tokens": torch.stack([length, batch["chosen_num_tokens"], batch["rejected_num_tokens"]], -1),
        "scores": torch.tensor([[2.0, 1.0, 0.0]]).repeat(PAIRS, 1).double(),
        "ids": torch.arange(PAIRS),
    }


def demonstrations(batch: Named) -> Named:
    """The chosen sides alone."""
    return {name: batch[name] for name in ("chosen", "chosen_num_tokens", "chosen_token", "ids")}


def trl_on_policy(loss_type: str, loss: Any, numbers: Named) -> float:
    """TRL's RLOOTrainer (`rloo`) or GRPOTrainer (`grpo`, `dr_grpo`) on lists with our advantages, nothing clipped."""
    from prefopt.testing.peers.trl_list_losses import sampled_loss

    batch: Any = whole(loss, build(loss.needs, declared(loss.needs, numbers)))
    samples = {"advantage": batch.targets["advantage"].flatten(), "num_tokens": numbers["num_tokens"].flatten()}
    for name, prefix in (("token", ""), ("old_token", "old_"), ("ref_token", "ref_")):
        samples[name] = numbers[f"{prefix}completions_token"].flatten(0, 1)
    trainer, epsilon = ("RLOO", 1e9) if loss_type == "rloo" else ("GRPO", 0.2)
    return float(
        sampled_loss(trainer, loss_type, samples, beta=loss.beta, epsilon=epsilon, length=getattr(loss, "length", 1))
    )
