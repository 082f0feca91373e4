"""oxRL's SPO is minus SiLU of the margin, which falls without bound as the margin grows.

By its paper's abstract the loss has its minimum at a finite value: SiLU of minus the margin has, -0.278 at 1.278.
"""

import torch
from oxrl.algs.spo import SPO

loss = SPO(None, None, None, beta=1.0)
zero = torch.zeros(1, dtype=torch.float64)
theirs = float(loss.compute_loss(zero - 1, zero - 101, zero, zero)[0])
right = float(torch.nn.functional.silu(torch.tensor(-100.0)))
print(f"theirs {theirs:.4f}, right {right:.4f}, at a margin of 100")
assert theirs < -99
