"""Compares loaded states with this run's own, in number, shape and kind, before anything uses them.

An optimizer's kernels trust their states: one of another shape is read and written beyond its end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def check_form(found: Any, own: Any, place: str) -> None:
    """Raise ValueError where a loaded value has not the form of the run's own: keys, lengths, shapes, kinds.

    Numbers may differ, and so may the precision of tensors, which is converted as they are loaded.
    """
    if isinstance(own, dict):
        if not isinstance(found, dict) or found.keys() != own.keys():
            names = ", ".join(map(str, found)) if isinstance(found, dict) else _form(found)
            raise ValueError(f"{place} has the entries {names}, not {', '.join(map(str, own))}")
        for name, value in own.items():
            check_form(found[name], value, f"{place}: {name}")
    elif isinstance(own, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(own):
            raise ValueError(f"{place} has the form {_form(found)}, not {_form(own)}")
        for n, value in enumerate(own):
            check_form(found[n], value, f"{place}[{n}]")
    elif _form(found) != _form(own):
        raise ValueError(f"{place} has the form {_form(found)}, not {_form(own)}")


def _form(value: Any) -> str:
    """The shape and kind of a value; whole and other numbers are of one kind, since schedules mix them."""
    if isinstance(value, Tensor | np.ndarray):
        kind = value.dtype.is_floating_point if isinstance(value, Tensor) else value.dtype.kind == "f"
        return f"{tuple(value.shape)} of {'floating-point' if kind else 'whole'} numbers"
    if isinstance(value, list | tuple | dict):
        return f"{type(value).__name__} of {len(value)}"
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def check_optimizer(state: Any, optimizer: Any) -> None:
    """Raise ValueError where an optimizer's loaded states do not fit its weights, or its options are of other kinds.

    Args:
        state: what its `state_dict` gave when it was saved, whole where the model is sharded.
        optimizer: this run's.
    """
    groups = optimizer.state_dict()["param_groups"]
    check_form(state["param_groups"], groups, "the optimizer's groups")
    for found, own in zip(state["param_groups"], groups, strict=True):
        switched = [name for name, value in own.items() if isinstance(value, bool) and found[name] != value]
        if switched or found["params"] != own["params"]:
            raise ValueError(f"the optimizer's groups have another {', '.join(switched) or 'order of weights'}")
    weights = [(weight, group) for group in optimizer.param_groups for weight in group["params"]]
    if not state["state"].keys() <= set(range(len(weights))):
        raise ValueError(f"the optimizer has states of other weights than the {len(weights)} that are trained")
    expected: dict[Any, dict[str, Any]] = {}
    for number, values in state["state"].items():
        weight, group = weights[number]
        key = (weight.shape, weight.dtype, id(group))
        if key not in expected:
            expected[key] = _first_state(optimizer, weight, group)
        check_form(values, expected[key], f"the optimizer's state {number}, of weights {tuple(weight.shape)}")


def _first_state(optimizer: Any, weight: Tensor, group: dict[str, Any]) -> dict[str, Any]:
    """The state of one tensor of weights after one step, found by making that step with zeros.

    Without memory where the optimizer can; those with kernels of their own need the weights' device.
    """
    made = type(getattr(optimizer, "optimizer", optimizer))  # accelerate wraps it
    device = weight.to_local().device if isinstance(weight, DTensor) else weight.device
    plain: dict[str, Any] = {name: False for name in ("fused", "foreach") if name in group}
    for at in (torch.device("meta"), device):
        options = plain if at.type == "meta" else {}
        zeros = torch.zeros(weight.shape, dtype=weight.dtype, device=at, requires_grad=True)
        zeros.grad = torch.zeros_like(zeros)
        probe = made([{**group, **options, "params": [zeros]}])
        try:
            probe.step()
        except (RuntimeError, NotImplementedError):
            if at.type != "meta":
                raise
            continue
        return dict(probe.state[zeros])
    raise AssertionError("unreachable")
