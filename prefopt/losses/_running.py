"""Running statistics of losses that carry state: updated once per global batch, before use.

They are float64 on the CPU, whatever the device of the batch: some devices have no float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prefopt.plugin import State

# Log-probs are good to 1e-5 nats a sequence: a deviation below that is rounding, and z-scores of it would be noise.
_SMALLEST_DEVIATION = 1e-5


def initial_moments() -> State:
    """Moving averages before the first batch, which then replaces them."""
    zero = torch.zeros((), dtype=torch.float64)
    return {"mean": zero, "deviation": zero.clone(), "batches": torch.zeros((), dtype=torch.int64)}


def update_moments(state: State, values: Tensor, decay: float) -> dict[str, Tensor]:
    """Exponential moving averages of the mean and the (n - 1) deviation of `values`; one value has deviation 0.

    They are corrected for their start, as in Adam: after t batches the newest has weight (1 - decay) / (1 - decay^t),
    so that the first batch alone gives the first averages.
    """
    values = values.detach().cpu().double()
    deviation = values.std() if len(values) > 1 else values.new_zeros(())
    batches = state["batches"] + 1
    weight = (1 - decay) / (1 - decay ** int(batches))
    return {
        "mean": state["mean"] + weight * (values.mean() - state["mean"]),
        "deviation": state["deviation"] + weight * (deviation - state["deviation"]),
        "batches": batches,
    }


def z_score(values: Tensor, moments: State) -> Tensor:
    """(values - mean) / deviation, detached, on the CPU; 0 where the deviation is rounding, as at step 0."""
    values = values.detach().cpu().double()
    mean, deviation = moments["mean"], moments["deviation"]
    score = (values - mean) / deviation.clamp(min=_SMALLEST_DEVIATION)
    return torch.where(deviation < _SMALLEST_DEVIATION, torch.zeros_like(score), score)
