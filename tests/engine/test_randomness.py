"""No run trains on random numbers: what a forward draws in training is switched off and named, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prefopt.engine.policy import Policy
from prefopt.engine.randomness import remove_randomness, switch_off
from prefopt.engine.scoring import Branch, MicroBatch
from prefopt.errors import UserError
from tests.engine import tiny

MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}


def logps(policy: Policy) -> list[torch.Tensor]:
    """Of one row, in training mode, from several random states."""
    rng = np.random.default_rng(3)
    batch = MicroBatch.of([Branch(tiny.ids(rng, 12), tiny.ids(rng, 20))], policy.layout.layout)
    policy.train()
    found = []
    for seed in range(4):
        torch.manual_seed(seed)
        with torch.no_grad():
            found.append(batch.forward(policy).sum)
    return found


@pytest.mark.parametrize(
    ("family", "settings", "named"),
    [
        ("llama", {"attention_dropout": 0.3}, ["attention_dropout=0.3"]),
        ("gpt2", {"resid_pdrop": 0.2, "embd_pdrop": 0.1, "attn_pdrop": 0.1}, ["resid_dropout=0.2", "attn_dropout=0.1"]),
        ("opt", {"layerdrop": 0.5, "dropout": 0.0, "word_embed_proj_dim": 32, "ffn_dim": 48}, ["layerdrop=0.5"]),
        ("mixtral", {"router_jitter_noise": 0.1, **MOE}, ["jitter_noise=0.1"]),
        ("phimoe", {"input_jitter_noise": 0.1, **MOE}, ["input_jitter_noise=0.1", "what PhimoeTopKRouter draws"]),
    ],
)
def test_what_is_random_is_switched_off_and_named(family: str, settings: Any, named: list[str]) -> None:
    model = tiny.model(family, **settings)
    with Policy(model) as policy:
        before = logps(policy)
        assert not all(torch.equal(before[0], other) for other in before), "it was random"
        found = " ".join(remove_randomness(policy))
        for part in named:
            assert part in found
        after = logps(policy)
        assert all(torch.equal(after[0], other) for other in after)
        policy.eval()
        assert not any(module.training for module in policy.modules())


def test_a_threshold_of_evaluation_is_left(tmp_path: Any) -> None:
    """PhiMoE reads `router_jitter_noise` without drawing anything."""
    model = tiny.model("phimoe", router_jitter_noise=0.2, **MOE)
    assert switch_off(model) == {}
    assert model.config.router_jitter_noise == 0.2


def test_configs_inside_configs_are_saved_without_dropout() -> None:
    model = tiny.model("llama")
    model.config.text_config = tiny.config("llama", attention_dropout=0.1)
    assert switch_off(model) == {"attention_dropout": 0.1}
    assert model.config.text_config.attention_dropout == 0.0


class Noise(nn.Module):
    """Draws in training, and rarely."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + (torch.rand(()) < 0.4) if self.training else x


class StubbornNoise(Noise):
    """Draws always."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x)


def test_noise_of_an_unknown_module_stays_in_evaluation_mode() -> None:
    model = tiny.model("llama")
    with Policy(model) as policy:
        model.model.norm = nn.Sequential(model.model.norm, Noise())
        assert remove_randomness(policy) == ["what Noise draws in training"]
        policy.train()
        assert [type(m).__name__ for m in model.modules() if not m.training] == ["Noise"]


def test_noise_that_nothing_ends_is_refused() -> None:
    model = tiny.model("llama")
    with Policy(model) as policy:
        model.model.norm = nn.Sequential(model.model.norm, StubbornNoise())
        with pytest.raises(UserError, match=r"LlamaForCausalLM is random in training.*config\.json"):
            remove_randomness(policy)


def test_a_deterministic_model_is_left_alone_and_so_is_the_random_state() -> None:
    model = tiny.model("llama").eval()
    state = torch.get_rng_state()
    with Policy(model) as policy:
        assert remove_randomness(policy) == []
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in model.modules())
