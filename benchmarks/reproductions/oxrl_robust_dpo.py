"""oxRL's robust DPO adds the flipped term that it must subtract, so that it is cDPO / (1 - 2 epsilon).

At policy = reference the loss must be log 2, whatever epsilon; its mean over label flips must be DPO on clean labels.
"""

from math import log

import torch
from oxrl.algs.robust_dpo import RobustDPO

loss = RobustDPO(None, None, None, beta=0.1, label_smoothing=0.2)
zero = torch.zeros(1, dtype=torch.float64)
theirs, right = float(loss.compute_loss(zero, zero, zero, zero)[0]), log(2)
print(f"theirs {theirs:.4f}, right {right:.4f}")
assert abs(theirs - log(2) / (1 - 2 * 0.2)) < 1e-9
