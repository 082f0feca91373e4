"""Takes randomness out of a model's forward in training: dropout, dropped layers, noise and sampling in routers.

Policy and reference would not be comparable, and no step could be repeated. What is known by name is set to zero. Then
two forwards in training mode must give the same bits and draw no random numbers; where they do, the modules that draw
stay in evaluation mode.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from prefopt.common.processes import is_first_process
from prefopt.engine.gates import FLOOR
from prefopt.engine.layout import Tree, lay_out
from prefopt.engine.policy import Policy
from prefopt.errors import UserError

logger = logging.getLogger(__name__)

# Forwards that must agree where random numbers are drawn whatever is switched off.
FORWARDS = 8


def remove_randomness(policy: Policy) -> list[str]:
    """Make a policy's forward in training deterministic; returns, and logs, what was switched off.

    Raises:
        UserError: it is random whatever is switched off.
    """
    found = [f"{name}={value:g}" for name, value in sorted(switch_off(policy).items())]
    if _is_random(policy):
        policy.frozen_modes = _random_modules(policy)
        names = sorted({type(module).__name__ for module in policy.frozen_modes})
        found += [f"what {', '.join(names)} draws in training"] if names else []
    if found and is_first_process():
        logger.warning("switched off in training, because it is random: %s", ", ".join(found))
    return found


def switch_off(model: nn.Module) -> dict[str, float]:
    """Set every probability of dropout, dropped layers and jitter of a model to zero, adapters included, in its modules
    and in the configs that are saved with it.

    Returns:
        The names and values of those that were not zero.
    """
    found: dict[str, float] = {}
    configs: dict[int, Any] = {}
    for path, module in model.named_modules():
        drops = "drop" in type(module).__name__.lower()
        for name, value in _numbers(module):
            if _is_probability(name) or name.endswith("jitter_noise") or (drops and name in ("p", "drop_prob")):
                # The router jitter of PhiMoE is a threshold, which evaluation reads, too.
                if name == "router_jitter_noise":
                    continue
                setattr(module, name, 0.0)
                inside = (part for part in reversed(path.split(".")) if "drop" in part)
                found[next(inside, type(module).__name__) if name in ("p", "drop_prob") else name] = value
        for config in (getattr(module, "config", None), *getattr(module, "peft_config", {}).values()):
            configs |= {id(part): part for part in _parts(config)}
    named = set(found.values())  # modules have them under other names
    for config in configs.values():
        for name, value in _numbers(config):
            if _is_probability(name):
                setattr(config, name, 0.0)
                found |= {name: value} if value not in named else {}
    return found


def _is_probability(name: str) -> bool:
    return "dropout" in name or "layerdrop" in name or name.endswith(("_pdrop", "_drop"))


def _numbers(of: Any) -> list[tuple[str, float]]:
    """The numbers above zero among an object's public attributes."""
    pairs = [(n, v) for n, v in vars(of).items() if isinstance(v, float | int) and not isinstance(v, bool)]
    return [(name, float(value)) for name, value in pairs if value > 0 and not name.startswith("_")]


def _parts(config: Any) -> Iterator[Any]:
    """A config and those in it, such as `text_config`."""
    if config is not None and hasattr(config, "__dict__"):
        yield config
        for value in vars(config).values():
            if isinstance(value, PreTrainedConfig):
                yield from _parts(value)


def _random_modules(policy: Policy) -> list[nn.Module]:
    """The fewest kinds of modules that make the forward deterministic when they stay in evaluation mode.

    Raises:
        UserError: there are none.
    """
    kinds: dict[type[nn.Module], list[nn.Module]] = {}
    for module in policy.causal.modules():
        if not isinstance(module, GradientCheckpointingLayer):  # which computes activations again in training only
            kinds.setdefault(type(module), []).append(module)
    if _is_random(policy, kinds):
        if _is_random(policy, forwards=FORWARDS):
            raise UserError(f"the forward of {type(policy.causal).__name__} is random in training: with the same "
                            "weights it gives other log-probs each time, and no setting that prefopt knows ends it; "
                            "set what is random in the model's config.json to 0, or train another model")  # fmt: skip
        return []  # what it draws has no effect
    for kind in list(kinds):
        fewer = {k: modules for k, modules in kinds.items() if k is not kind}
        if not _is_random(policy, fewer):
            kinds = fewer
    return [module for modules in kinds.values() for module in modules]


def _is_random(
    policy: Policy, evaluated: dict[type[nn.Module], list[nn.Module]] | None = None, forwards: int = 2
) -> bool:
    """Whether forwards in training mode draw random numbers, or differ: in any bit, but on a GPU, where sums have no
    fixed order, by more than rounding.

    Args:
        policy: the policy.
        evaluated: modules to leave in evaluation mode.
        forwards: with more than two, only what differs counts.
    """
    rng = np.random.default_rng(0)
    size = policy.causal.config.get_text_config().vocab_size
    prompt, *branches = (rng.integers(0, size, n).astype(np.int32) for n in (9, 6, 5))
    row = lay_out([Tree(prompt, tuple(branches))], policy.layout.layout).to(policy.device)
    allowed = 0.0 if policy.device.type == "cpu" else FLOOR.get(next(policy.parameters()).dtype, 0.06)
    with _training(policy), torch.no_grad(), torch.random.fork_rng():
        for modules in (evaluated or {}).values():
            for module in modules:
                module.training = False
        logps: list[Tensor] = []
        for seed in range(forwards):
            torch.manual_seed(seed)
            before = _random_state(policy.device)
            logps.append(policy(row).logp)
            if forwards == 2 and not torch.equal(before, _random_state(policy.device)):
                return True
    return any(float((other - logps[0]).abs().max()) > allowed for other in logps)


def _random_state(device: torch.device) -> Tensor:
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    return torch.cat(states)


@contextmanager
def _training(policy: Policy) -> Iterator[None]:
    """Put a policy into training mode for a while; every module then gets its own mode back."""
    modes = [(module, module.training) for module in policy.modules()]
    policy.train()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
