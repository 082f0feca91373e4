"""Every causal family of transformers that a tiny config instantiates: right numbers, or refused by name.

Minutes, so only on request: PREFOPT_EVERY_FAMILY=1 pytest tests/engine/test_every_family.py
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from prefopt.engine.gates import choose_layout
from prefopt.engine.scoring import score
from prefopt.errors import UserError
from tests.engine import families, tiny

pytestmark = [
    pytest.mark.skipif(not os.environ.get("PREFOPT_EVERY_FAMILY"), reason="minutes: set PREFOPT_EVERY_FAMILY=1"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.slow,
]

# One set of names for all: each family takes those that it knows.
OPTIONS: dict[str, Any] = {
    **{"n_embd": 32, "n_layer": 2, "n_head": 4, "d_model": 32, "n_heads": 4, "n_layers": 2, "num_layers": 2},
    **{
        "num_heads": 4,
        "ffn_dim": 48,
        "head_dim": 8,
        "word_embed_proj_dim": 32,
        "sliding_window": 8,
        "is_decoder": True,
    },
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1},
    **{"topk_group": 1, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "first_k_dense_replace": 1},
    **{"index_topk": 8, "index_n_heads": 2, "index_head_dim": 16, "dropout": 0.0, "attention_dropout": 0.0},
    **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    **families.MLA,
}
DATA = tiny.records([(5, (4, 7)), (1, (3, 1)), (14, (6, 2, 5)), (40, (12, 13))])


def instantiate(family: str) -> Any:
    for extra in (OPTIONS, {}):
        try:
            settings = AutoConfig.for_model(family, **(tiny.COMMON | extra))
            with torch.device("meta"):
                size = sum(p.numel() for p in AutoModelForCausalLM.from_config(settings).parameters())
            if size > 2e7:
                pytest.skip(f"{size / 1e6:.0f}M weights")
            model = tiny.build(settings)
            return model, tiny.plain(model, DATA)
        except Exception as error:  # a config that needs other names
            problem = error
    pytest.skip(f"{type(problem).__name__}: {problem}")


@pytest.mark.parametrize("family", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_right_numbers_or_refused(family: str) -> None:
    model, truth = instantiate(family)
    refused = ""
    try:
        choose_layout(model)
    except UserError as error:
        refused = str(error)
    if refused:
        assert type(model).__name__ in refused
        return
    for s, t in zip(score(model, DATA), truth, strict=True):
        for got, want in zip(s.sum, t, strict=True):
            assert abs(got - want.sum()) < 2e-5
