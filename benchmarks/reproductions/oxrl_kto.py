"""oxRL's KTO is -log sigmoid, not 1 - sigmoid: at policy = reference each item must have lambda / 2, not log 2.

1 - sigmoid saturates for items that the policy gets very wrong, which is what makes KTO robust to bad labels.
"""

import torch
from oxrl.algs.kto import KTO

loss = KTO(None, None, None, beta=0.1)
zero, labels = torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, -1.0], dtype=torch.float64)
theirs = float(loss.compute_loss(zero, zero, labels, 1))
print(f"theirs {theirs:.4f}, right {0.5:.4f}")
wrong = torch.tensor([-1000.0, 1000.0], dtype=torch.float64)  # nats: lost causes, whose loss must be at most 1
theirs = float(KTO(None, None, None, beta=0.1).compute_loss(wrong, zero, labels, 1))
assert theirs > 50, theirs
