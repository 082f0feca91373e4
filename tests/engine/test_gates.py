"""Every family gets a layout in which its numbers and gradients are right, or is refused."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, LlamaForCausalLM

from prefopt.engine import gates
from prefopt.engine import layout as layouts
from prefopt.engine.gates import choose_layout
from prefopt.engine.layout import Group
from prefopt.engine.scoring import score
from prefopt.errors import UserError
from tests.engine import families, tiny
from tests.engine.gradients import DATA, LINEAR, apart, engine_grads, lora, plain_grads, worst


@pytest.mark.parametrize("family", families.TREE)
def test_trees_where_they_are_proven(family: str) -> None:
    model = families.model(family)
    truth, want = tiny.plain(model, DATA), plain_grads(model, DATA)
    verdict = choose_layout(model)
    assert verdict.layout == "tree", verdict.reason
    for layout in ("tree", "padded"):
        assert worst(model, truth, layout=layout) < 1e-5
        assert apart(engine_grads(model, DATA, layout), want) < 1e-4  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("family", families.PADDED)
@pytest.mark.filterwarnings("ignore:.*(fast path|kernels|sequential).*")
def test_padded_sequences_elsewhere(family: str) -> None:
    model = families.model(family)
    truth, want = tiny.plain(model, DATA), plain_grads(model, DATA)
    own = model.config._attn_implementation
    verdict = choose_layout(model)
    assert verdict.layout == "padded"
    assert model.config._attn_implementation == own
    assert worst(model, truth) < 1e-5
    assert apart(engine_grads(model, DATA, "padded"), want) < 1e-4
    for refused in (lambda: choose_layout(model, "tree"), lambda: score(model, DATA, layout="tree")):
        with pytest.raises(UserError, match="layout=tree is not safe"):
            refused()


@pytest.mark.parametrize("family", families.TREE)
def test_gradients_of_long_trees(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees that are attended piece by piece, beside a short one."""
    monkeypatch.setattr(layouts, "DENSE_TOKENS", 20)
    data = tiny.records([(30, (14, 9)), (5, (4, 7)), (7, (33, 3))])
    model = families.model(family)
    assert apart(engine_grads(model, data, "tree"), plain_grads(model, data)) < 1e-4


def test_samples_longer_than_the_window_are_really_cut() -> None:
    """The matrix above would prove nothing about windows if they made no difference."""
    windowed = families.model("mistral")
    truth = tiny.plain(windowed, DATA)
    windowed.config.sliding_window = None
    for layer in windowed.model.layers:
        layer.self_attn.sliding_window = None
    assert max(np.abs(a - b).max() for t, u in zip(truth, tiny.plain(windowed, DATA), strict=True)
               for a, b in zip(t, u, strict=True)) > 0.1  # fmt: skip


# ---- what is refused


class Shifted(LlamaForCausalLM):
    """Does to its logits what no rule knows: damps the large ones."""

    def forward(self, *args: Any, **kw: Any) -> Any:
        out = super().forward(*args, **kw)
        out.logits = torch.asinh(out.logits / 40) * 40
        return out


@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_an_unknown_logit_transform_is_refused(size: float) -> None:
    torch.manual_seed(0)
    model = Shifted(tiny.config("llama")).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(size)  # so small that the transform cannot be seen in any log-prob
    with pytest.raises(UserError, match="transforms its logits in a way that prefopt does not know"):
        choose_layout(model)
    with pytest.raises(UserError, match="transforms its logits"):
        score(model, DATA, layout="padded")


def test_a_hidden_scale_before_the_head_is_refused() -> None:
    model = tiny.model("minicpm3", dim_model_base=8, num_key_value_heads=4, **families.MLA)
    with pytest.raises(UserError, match="MiniCPM3ForCausalLM"):
        choose_layout(model)


def test_a_head_with_layers_of_its_own_is_refused() -> None:
    model = tiny.model("modernbert-decoder")
    with pytest.raises(UserError, match="ModernBertDecoderForCausalLM cannot be reproduced"):
        choose_layout(model)


def test_encoder_decoders_are_refused() -> None:
    settings = tiny.AutoConfig.for_model("t5", vocab_size=97, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(UserError, match="not a causal language model"):
        choose_layout(AutoModelForSeq2SeqLM.from_config(settings))


def test_unknown_layout() -> None:
    with pytest.raises(UserError, match="'trees' is not one of auto, tree, padded"):
        choose_layout(families.model("llama"), "trees")


# ---- the gates themselves


def test_the_verdict_is_logged_once_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "prefopt")
    model = families.model("llama")
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    model.register_forward_pre_hook(count)
    first = choose_layout(model)
    made = calls
    assert made > 0
    assert choose_layout(model) == first
    assert choose_layout(model, "tree") == first
    assert choose_layout(model, "padded").layout == "padded"
    assert calls == made
    assert [r.message for r in caplog.records if r.name == gates.logger.name] == [
        "layout tree: LlamaForCausalLM: passed the leak test and the numeric check"
    ]


@pytest.mark.parametrize("causal", [True, False])
def test_a_leak_is_found(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaky(group: Group, window: int | None, image: Tensor | None = None) -> Tensor:
        length = group.scope.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool)
        return (seen.tril() if causal else seen).expand(len(group.scope), 1, length, length)

    monkeypatch.setattr(Group, "mask", leaky)
    verdict = choose_layout(families.model("llama"))
    assert verdict.layout == "padded"
    assert "leak test" in verdict.reason


def test_wrong_numbers_without_a_leak_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def short_sighted(group: Group, window: int | None, image: Tensor | None = None) -> Tensor:
        return right(group, 2)

    right = Group.mask
    monkeypatch.setattr(Group, "mask", short_sighted)
    verdict = choose_layout(families.model("llama"))
    assert verdict.layout == "padded"
    assert "numeric check" in verdict.reason


def test_a_window_that_is_too_long_to_be_tried_must_be_told() -> None:
    told = tiny.model("mistral", sliding_window=5000)
    assert choose_layout(told).layout == "tree"
    untold = tiny.model("llama")
    untold.config.sliding_window = 5000
    assert "sliding window is 5000" in choose_layout(untold).reason


def test_the_layout_is_judged_in_full_precision() -> None:
    model = families.model("llama")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert choose_layout(model).layout == "tree"
            assert gates.rounding(model) == gates.TOLERANCE[torch.bfloat16]
        assert torch.get_float32_matmul_precision() == "medium"
        assert gates.rounding(model) == 0.1
    finally:
        torch.set_float32_matmul_precision(before)
    assert gates.rounding(model) == gates.TOLERANCE[torch.float32]


# ---- adapters

pytestmark = pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing.*` is deprecated:FutureWarning")  # by peft


@pytest.mark.filterwarnings("ignore:.*tie.*")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear"},
        {"target_modules": [*LINEAR, "lm_head"]},
        {"target_modules": [*LINEAR, "lm_head"], "use_dora": True},
        {"target_modules": LINEAR, "modules_to_save": ["lm_head"]},
    ],
    ids=["all-linear", "head", "dora-head", "saved-head"],
)
def test_lora(options: dict[str, Any], tied: bool) -> None:
    base = tiny.model("llama", tie_word_embeddings=tied)
    before = tiny.plain(base, DATA)
    model = lora(base, **options)
    truth, want = tiny.plain(model, DATA), plain_grads(model, DATA)
    assert max(np.abs(t[0] - b[0]).max() for t, b in zip(truth, before, strict=True)) > 0.1
    assert choose_layout(model).layout == "tree"
    for layout in ("tree", "padded"):
        assert worst(model, truth, layout=layout) < 1e-5
        assert apart(engine_grads(model, DATA, layout), want) < 1e-4  # type: ignore[arg-type]
    with model.disable_adapter():
        assert worst(model, before) < 1e-5


@pytest.mark.filterwarnings("ignore:.*tie.*")
@pytest.mark.parametrize("family", ["gemma2", "cohere"])
def test_lora_on_a_head_with_softcap_or_scale(family: str) -> None:
    model = lora(families.model(family), target_modules=["q_proj", "v_proj", "lm_head"], ensure_weight_tying=False)
    truth, want = tiny.plain(model, DATA), plain_grads(model, DATA)
    assert worst(model, truth) < 1e-5
    assert apart(engine_grads(model, DATA, "tree"), want) < 1e-4


def test_adapters_added_later_are_judged_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "prefopt")
    base = families.model("llama")
    choose_layout(base)
    adapted = lora(base, target_modules=["q_proj"])
    choose_layout(adapted)
    choose_layout(nn.parallel.DataParallel(adapted))  # the same model in another wrapper
    assert len(caplog.records) == 2


def test_prompt_tuning_is_refused() -> None:
    from peft import PromptTuningConfig, get_peft_model

    base = families.model("llama")
    choose_layout(base)
    tuned = get_peft_model(base, PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    with pytest.raises(UserError, match="virtual tokens"):
        score(tuned, DATA)
