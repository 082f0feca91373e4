"""What the adapters of all versions of TRL share: the whole of CPO's and ORPO's loss after the model's logits."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.testing.peers.shared import logits_with, per_token

ACCELERATOR = SimpleNamespace(device="cpu", use_distributed=False, gather=lambda x: x, gather_for_metrics=lambda x: x)


def odds_or_cpo_loss(trainer_class: Any, inputs: dict[str, Tensor], **settings: Any) -> Tensor:
    """The mean over a batch of pairs, from the whole of `CPOTrainer` or `ORPOTrainer` after the model's logits."""
    batch: dict[str, Tensor] = {}
    log_probs = []
    width = max(int(inputs[f"{side}_num_tokens"].max()) for side in ("chosen", "rejected"))
    for side in ("chosen", "rejected"):
        inside = torch.arange(width) < inputs[f"{side}_num_tokens"].unsqueeze(-1)
        attended = F.pad(inside, (1, 0), value=True).long()  # behind a prompt of one token
        batch |= {f"{side}_input_ids": torch.ones_like(attended), f"{side}_attention_mask": attended}
        batch[f"{side}_labels"] = F.pad(torch.where(inside, 1, -100), (1, 0), value=-100)
        tokens = per_token(inputs, side, f"{side}_num_tokens", width)
        log_probs.append(torch.where(inside, tokens, -0.5))
    logits = F.pad(logits_with(torch.cat(log_probs)), (0, 0, 0, 1))
    stub = SimpleNamespace(
        **({"is_encoder_decoder": False, "pad_token_id": 0, "padding_value": 0, "aux_loss_enabled": False,
            "label_pad_token_id": -100, "accelerator": ACCELERATOR, "label_smoothing": 0.0, "alpha": 0.0} | settings),
        concatenated_inputs=trainer_class.concatenated_inputs, get_batch_logps=trainer_class.get_batch_logps,
    )  # fmt: skip
    for method in ("concatenated_forward", "cpo_loss", "odds_ratio_loss"):
        if hasattr(trainer_class, method):
            setattr(stub, method, partial(getattr(trainer_class, method), stub))
    loss, _ = trainer_class.get_batch_loss_metrics(stub, lambda *a, **k: SimpleNamespace(logits=logits), batch)
    return loss  # type: ignore[no-any-return]
