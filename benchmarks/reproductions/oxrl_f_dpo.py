"""oxRL's f-DPO under forward KL has beta (log u_w/u_l + 1/u_w - 1/u_l), where f'(u) = -1/u gives beta (1/u_l - 1/u_w).

So a chosen text that falls below its reference lowers the loss instead of raising it.
"""

from math import exp, log1p

import torch
from oxrl.algs.fdpo import FDPO

loss = FDPO(None, None, None, beta=0.1, fdpo_divergence="forward_kl")
zero, fallen = torch.zeros(1, dtype=torch.float64), torch.full((1,), -3.0, dtype=torch.float64)
theirs = float(loss.compute_loss(fallen, zero, zero, zero)[0])
right = log1p(exp(-0.1 * (1 - exp(3))))
print(f"theirs {theirs:.4f}, right {right:.4f}")
assert abs(theirs - log1p(exp(-0.1 * (-3 + exp(3) - 1)))) < 1e-9
