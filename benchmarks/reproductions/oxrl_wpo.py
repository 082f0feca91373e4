"""oxRL's WPO lets gradient through its weight, so at policy = reference the loss falls where the chosen text falls.

The weight is a stop-gradient (Eq. 2): then the gradient by the chosen log-prob at step 0 is -beta / 2 times the weight.
"""

import torch
from oxrl.algs.wpo import WPO

loss = WPO(None, None, None, beta=0.01)
chosen = torch.tensor([-5.0, -1.0], dtype=torch.float64, requires_grad=True)  # of one token each
rejected = torch.tensor([-3.0, -3.0], dtype=torch.float64)
ref_chosen, ref_rejected = torch.tensor([-4.0, -3.0]), torch.tensor([-3.0, -3.0])
value = loss.compute_loss(chosen, rejected, ref_chosen, ref_rejected, chosen, rejected)[0]
(theirs,) = torch.autograd.grad(value, chosen)
weight = (chosen + rejected).exp().detach()
margin = 0.01 * (chosen - ref_chosen - rejected + ref_rejected)
right = -weight / weight.sum() * 0.01 * torch.sigmoid(-margin)
print(f"theirs {theirs.tolist()}, right up to scale {right.tolist()}")
assert not torch.allclose(theirs, right, rtol=1e-3)
