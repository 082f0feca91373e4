"""DPOP in mlx-lm-lora adds lambda max(0, -rho_w) outside the sigmoid and beta, where 2402.13228 has it inside.

With lambda 50 its gradient on the chosen side is 50 for every pair below the reference, not beta (1 + 50) sigmoid(-z).
"""

from math import exp, log1p

import mlx.core as mx
from mlx_lm_lora.trainer.dpo_trainer import dpo_loss

masks = [mx.ones((1, 2))] * 2
sums = [mx.array([value]) for value in (-5.0, -5.0, -4.0, -5.0)]  # rho_w = -1, rho_l = 0
theirs = dpo_loss(*sums, *masks, beta=0.1, delta=50.0, loss_type="dpop")[0].item()
right = log1p(exp(-0.1 * (-1 - 50 * 1)))
print(f"theirs {theirs:.4f}, right {right:.4f}")
assert abs(theirs - (log1p(exp(0.1)) + 50)) < 1e-4
