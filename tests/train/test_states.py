"""States that do not fit are refused before an optimizer, a schedule or a generator uses them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Adafactor
from transformers.trainer_pt_utils import safe_globals

from prefopt.errors import UserError
from prefopt.losses.registry import load
from prefopt.models.adapters import attach
from prefopt.models.peft_config import PeftConfig
from prefopt.plugin import Data
from prefopt.train import BatchConfig
from prefopt.train.states import check_form, check_optimizer
from tests.train import tiny

DATA = tiny.records(Data.PAIRS, 4)
OPTIONS: dict[str, Any] = {"batch": BatchConfig(records=4), "save_strategy": "steps", "save_steps": 1}
OPTIMIZERS: list[Callable[[Any], Any]] = [
    lambda weights: torch.optim.AdamW(weights, fused=True),
    lambda weights: torch.optim.AdamW(weights, amsgrad=True),
    lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
    lambda weights: torch.optim.Adagrad(weights),
    lambda weights: torch.optim.Adafactor(weights),  # cannot step without memory
    lambda weights: Adafactor(weights, lr=0.1, scale_parameter=False, relative_step=False),  # type: ignore[no-untyped-call]
]


def first(state: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = state["state"][0]
    return values


def name_of_a_matrix(state: dict[str, Any]) -> str:
    return next(name for name, value in first(state).items() if isinstance(value, torch.Tensor) and value.ndim)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_an_optimizers_own_states_fit_and_others_do_not(make: Callable[[Any], Any]) -> None:
    model = nn.Linear(3, 4)
    optimizer = make([{"params": [model.weight]}, {"params": [model.bias]}])
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    fresh = make([{"params": [model.weight]}, {"params": [model.bias]}])
    check_optimizer(optimizer.state_dict(), fresh)

    def altered(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        state = optimizer.state_dict()
        state = {"state": {n: dict(v) for n, v in state["state"].items()},
                 "param_groups": [dict(group) for group in state["param_groups"]]}  # fmt: skip
        change(state)
        return state

    def shorter(state: dict[str, Any]) -> None:
        name = name_of_a_matrix(state)
        first(state)[name] = first(state)[name][:1]

    def whole_numbers(state: dict[str, Any]) -> None:
        name = name_of_a_matrix(state)
        first(state)[name] = first(state)[name].long()

    def swapped(state: dict[str, Any]) -> None:
        state["state"] = {0: state["state"][1], 1: state["state"][0]}

    def unknown(state: dict[str, Any]) -> None:
        state["state"][2] = state["state"][1]

    def incomplete(state: dict[str, Any]) -> None:
        del first(state)[name_of_a_matrix(state)]

    def one_group(state: dict[str, Any]) -> None:
        del state["param_groups"][1]

    def another_kind(state: dict[str, Any]) -> None:
        state["param_groups"][0]["weight_decay"] = "much"

    for change in (shorter, whole_numbers, swapped, unknown, incomplete, one_group, another_kind):
        with pytest.raises(ValueError, match="the optimizer"):
            check_optimizer(altered(change), fresh)


def test_a_state_that_switches_a_kernel_is_refused() -> None:
    weights = [nn.Parameter(torch.zeros(2))]
    with pytest.raises(ValueError, match="another fused"):
        check_optimizer(torch.optim.AdamW(weights, fused=False).state_dict(), torch.optim.AdamW(weights, fused=True))


def test_forms() -> None:
    own = {"a": [1.0, None], "b": torch.zeros(2), "c": np.zeros(3, np.uint32), "d": True}
    check_form(
        {"b": torch.ones(2, dtype=torch.float64), "c": np.ones(3, np.uint32), "a": (2, None), "d": False}, own, "x"
    )
    for change in ({"a": [1.0]}, {"a": ["1", None]}, {"b": torch.zeros(1)}, {"b": [0, 0]}, {"c": np.zeros(3)},
                   {"d": 1}, {"e": 0}):  # fmt: skip
        with pytest.raises(ValueError, match=r"^x"):
            check_form(own | change, own, "x")
    with pytest.raises(ValueError, match="entries a, b, not"):
        check_form({"a": [1.0, None], "b": 0}, own, "x")


# ---- in a run


def _edit(file: Path, change: Callable[[Any], None]) -> None:
    if file.suffix == ".safetensors":
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)
        return
    with safe_globals():  # type: ignore[no-untyped-call]
        state = torch.load(file, weights_only=True)
    change(state)
    torch.save(state, file)


def _narrow(state: Any) -> None:
    state["state"][0]["exp_avg"] = state["state"][0]["exp_avg"][:1].clone()


def _two_rates(state: Any) -> None:
    state["base_lrs"] = [*state["base_lrs"], 1.0]


def _attribute(state: Any) -> None:
    state["optimizer"] = 1


def _place(state: Any) -> None:
    numpy = state["numpy"]
    state["numpy"] = (numpy[0], numpy[1], 10**7, *numpy[3:])


def _wide(tensors: Any) -> None:
    name = sorted(tensors)[0]
    tensors[name] = tensors[name].reshape(-1)[:1].expand(7).clone()


@pytest.mark.parametrize(
    ("loss", "name", "change"),
    [
        ("dpo", "optimizer.pt", _narrow),
        ("dpo", "scheduler.pt", _two_rates),
        ("dpo", "scheduler.pt", _attribute),
        ("dpo", "rng_state.pth", _place),
        ("bco", "loss_state.safetensors", _wide),
        ("tr_dpo", "reference.safetensors", _wide),
    ],
)
def test_a_resume_with_states_that_do_not_fit_is_refused(loss: str, name: str, change: Any, tmp_path: Path) -> None:
    tiny.run(load(loss), DATA, tmp_path, **OPTIONS)
    _edit(tmp_path / "checkpoint-1" / name, change)
    with pytest.raises(UserError, match=r"cannot resume from .*checkpoint-1: .*resume=auto takes the last"):
        tiny.run(load(loss), DATA, tmp_path, resume=tmp_path / "checkpoint-1", **OPTIONS)


def test_an_adapter_of_other_layers_is_refused(tmp_path: Path) -> None:
    def adapted() -> Any:
        return attach(tiny.model(), PeftConfig(method="lora", r=2, target_modules=["q_proj"]), seed=0)

    tiny.run(load("dpo"), DATA, tmp_path, adapted(), **OPTIONS)

    def renamed(tensors: Any) -> None:
        for key in list(tensors):
            tensors[key.replace("q_proj", "k_proj")] = tensors.pop(key)

    _edit(tmp_path / "checkpoint-1" / "adapter_model.safetensors", renamed)
    with pytest.raises(UserError, match=r"cannot resume from .*differ in .*_proj"):
        tiny.run(load("dpo"), DATA, tmp_path, adapted(), resume=tmp_path / "checkpoint-1", **OPTIONS)
