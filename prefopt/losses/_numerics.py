"""Numerics shared by losses: stable log-odds, an exponential that cannot overflow, draws that depend on ids alone."""

from __future__ import annotations

import torch
from torch import Tensor

# A float32 log-prob cannot tell a probability above 1 - 2^-24 from 1.
_CLOSEST_TO_CERTAIN = -(2.0**-24)
# exp is exact up to here; e^20 is a policy that finds a text 485 million times likelier than its reference.
_LAST_EXACT_EXPONENT = 20.0


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for log-probs x <= 0, to full relative precision; x is clamped to at most -2^-24.

    Each branch is the accurate one on its side of -log 2 (Maechler 2012, "Accurately computing log(1 - exp(-|a|))").
    Computed in at least float32.
    """
    x = _at_least_float32(x).clamp(max=_CLOSEST_TO_CERTAIN)
    near = x > -0.6931471805599453
    # Each branch sees only its own side, so that the unused one cannot put a NaN into the gradient.
    small = torch.log(-torch.expm1(torch.where(near, x, -0.5)))
    large = torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    return torch.where(near, small, large)


def log_odds(x: Tensor) -> Tensor:
    """log(p / (1 - p)) of the probability p = e^x, x <= 0."""
    return _at_least_float32(x) - log1mexp(x)


def exp_or_tangent(x: Tensor) -> Tensor:
    """e^x up to x = 20, and its tangent at 20 beyond: finite for every float, convex, never flat.

    Computed in at least float32.
    """
    x = _at_least_float32(x)
    inside = x.clamp(max=_LAST_EXACT_EXPONENT)
    return torch.exp(inside) * (1 + (x - inside))


def expm1_or_tangent(x: Tensor) -> Tensor:
    """`exp_or_tangent(x) - 1` without the cancellation near 0."""
    x = _at_least_float32(x)
    inside = x.clamp(max=_LAST_EXACT_EXPONENT)
    return torch.expm1(inside) + torch.exp(inside) * (x - inside)


def uniform(*keys: Tensor | int) -> Tensor:
    """Float64 draws in (0, 1), a pure function of integer keys that broadcast together.

    A counter-based generator (the finalizer of SplitMix64, Steele et al. 2014, chained over the keys): the draw for
    an example depends on its id alone, not on its place in a batch or on the process that holds it.
    """
    state = torch.zeros((), dtype=torch.int64)
    for key in keys:
        state = _mix(_mix(state + -7046029254386353131) ^ torch.as_tensor(key, dtype=torch.int64).cpu())
    return (_shift_right(state, 11).double() + 0.5) * 2.0**-53


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * -4658895280553007687
    z = (z ^ _shift_right(z, 27)) * -7723592293110705685
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's `>>` copies the sign bit."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
