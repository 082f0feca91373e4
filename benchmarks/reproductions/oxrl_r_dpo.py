"""oxRL's R-DPO rewards length: at equal log-ratios a pair whose winner is longer has the larger loss.

The penalty r = beta rho + alpha n gives -log sigmoid(beta Delta + alpha (n_w - n_l)): it must have the smaller one.
"""

from math import exp, log1p

import torch
from oxrl.algs.rdpo import RDPO

loss = RDPO(None, None, None, beta=0.1, alpha=0.05)
zero = torch.zeros(1, dtype=torch.float64)
theirs = float(loss.compute_loss(zero, zero, zero, zero, zero + 30, zero + 10)[0])
right = log1p(exp(-0.05 * (30 - 10)))
print(f"theirs {theirs:.4f}, right {right:.4f}")
assert abs(theirs - log1p(exp(0.05 * (30 - 10)))) < 1e-9
