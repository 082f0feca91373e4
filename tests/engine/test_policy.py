"""A policy scores and samples, leaves its model as it was, and gives the same inside DDP and FSDP2."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from prefopt.engine import gates
from prefopt.engine.attention import NAME
from prefopt.engine.forward import attention_name
from prefopt.engine.gates import LayoutVerdict, choose_layout
from prefopt.engine.generation import generate
from prefopt.engine.head import TokenStats
from prefopt.engine.layout import Tree, lay_out
from prefopt.engine.policy import Options, Policy, opened
from prefopt.engine.scoring import score
from prefopt.errors import UserError
from tests.engine import families, tiny

DATA = tiny.records([(5, (4, 7)), (9, (3, 1))])
ROW = lay_out([Tree(r.prompt, r.completions) for r in DATA], "tree")


def state_of(model: nn.Module) -> list[tuple[str, dict[str, Any]]]:
    """All that could be planted on a model: the attributes of its modules, and what hooks they have."""
    return [(name, {k: repr(v) for k, v in vars(module).items()}) for name, module in model.named_modules()]


def own(model: Any) -> dict[str, int]:
    return {name: id(value) for name, value in vars(model).items()}


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_scoring_leaves_the_model_as_it_was(layout: str, attention: str) -> None:
    model = tiny.model("llama")
    model.set_attn_implementation(attention)
    model.train()
    model.model.layers[0].eval()
    before, names = state_of(model), own(model)
    score(model, DATA, layout=layout)
    generate(model, [[3, 4, 5]], max_new_tokens=2, eos_token_id=2)
    assert attention_name(model) == attention
    assert own(model) == names
    assert state_of(model) == before


def test_policies_of_one_model_may_be_nested() -> None:
    model = tiny.model("llama")
    with Policy(model, "tree") as outer:
        assert attention_name(model) == NAME
        wanted = outer(ROW).logp
        score(model, DATA, layout="padded")
        score(model, DATA, layout="tree")
        assert torch.equal(outer(ROW).logp, wanted)
    assert attention_name(model) == "sdpa"


def test_a_closed_policy_scores_no_trees() -> None:
    policy = Policy(tiny.model("llama"), "tree")
    policy.close()
    with pytest.raises(RuntimeError, match="was its policy closed"):
        policy(ROW)


def test_a_verdict_is_trusted_and_the_gates_are_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = []
    monkeypatch.setattr(gates, "_judge", lambda model, causal: judged.append(causal) or LayoutVerdict("tree", "judged"))
    model = tiny.model("llama")
    assert Policy(model).layout == Policy(model).layout == choose_layout(model) == LayoutVerdict("tree", "judged")
    assert judged == [model]
    assert Policy(tiny.model("llama"), LayoutVerdict("padded", "so")).layout == LayoutVerdict("padded", "so")
    assert len(judged) == 1


def test_opened_keeps_an_open_policy() -> None:
    policy = Policy(tiny.model("llama"), "tree")
    with opened(policy) as same, opened(policy, "tree") as again, opened(policy, "padded") as other:
        assert same is again is policy
        assert other.model is policy.model
        assert other.layout.layout == "padded"
    assert attention_name(policy.model) == NAME


def test_a_policy_scores_and_samples_like_its_model() -> None:
    model = tiny.model("llama")
    records = score(model, DATA, tokens=True)
    texts = generate(model, [[3, 4, 5], [6]], max_new_tokens=4, eos_token_id=2, seed=1)
    policy = Policy(model)
    for mine, its in zip(score(policy, DATA, tokens=True), records, strict=True):
        assert mine.sum.tolist() == its.sum.tolist()
    assert policy.generate([[3, 4, 5], [6]], max_new_tokens=4, eos_token_id=2, seed=1) == texts
    assert policy.device == model.device
    assert policy.head.module is model.lm_head


def test_hidden_states_alone() -> None:
    policy = Policy(tiny.model("llama"), "tree")
    hidden = policy(ROW, Options(hidden_only=True))
    stats = policy(ROW)
    assert isinstance(stats, TokenStats)
    assert hidden.shape == (len(stats.logp), 32)


def test_a_deep_copy_runs_its_own_weights() -> None:
    policy = Policy(tiny.model("llama"), "tree")
    twin = copy.deepcopy(policy)
    with torch.no_grad():
        for weight in twin.parameters():
            weight.zero_()
        tokens = torch.ones(1, 3, dtype=torch.long)
        assert (twin.model(input_ids=tokens).logits == 0).all()
        assert (policy.model(input_ids=tokens).logits != 0).any()
        assert (twin(ROW).logp + torch.tensor(float(tiny.VOCAB)).log()).abs().max() < 1e-5
        assert (policy(ROW).logp + torch.tensor(float(tiny.VOCAB)).log()).abs().max() > 0.1


def test_no_causal_language_model() -> None:
    with pytest.raises(UserError, match="not a causal language model"):
        Policy(nn.Linear(2, 2))
    with pytest.raises(UserError, match="layout=tree is not safe"):
        Policy(families.model("mamba"), "tree")


@pytest.mark.slow
def test_wrappers_go_around_the_policy() -> None:
    """DDP and FSDP2 in two processes; each asserts what its process finds."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.wrapped"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
