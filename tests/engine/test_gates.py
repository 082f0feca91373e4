"""Every family gets a layout in which its numbers and gradients are right, or is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, LlamaForCausalLM

from prefopt.data.tokens import TokenRecord
from prefopt.engine import gates
from prefopt.engine.gates import choose_layout
from prefopt.engine.head import Head
from prefopt.engine.layout import Group, Layout
from prefopt.engine.policy import Options, Policy
from prefopt.engine.scoring import Branch, MicroBatch, score
from prefopt.errors import UserError
from prefopt.models.load import without_dropout
from tests.engine import families, tiny

# A pair, a list of three behind a prompt longer than every window, a pair with a completion longer than them.
DATA = tiny.records([(5, (4, 7)), (14, (6, 1, 5)), (3, (12, 3))])


def grads(model: nn.Module, objective: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    objective.backward()
    found = {n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def weights_of(data: Sequence[TokenRecord]) -> Tensor:
    """One weight per token: the gradient of a loss that reads them all differently."""
    return torch.randn(sum(len(c) for r in data for c in r.completions), generator=torch.Generator().manual_seed(0))


def plain_grads(model: Any, data: Sequence[TokenRecord]) -> dict[str, Tensor]:
    logps = torch.cat([tiny.plain_logps(model, r.prompt, c) for r in data for c in r.completions])
    return grads(model, (logps * weights_of(data)).sum())


def engine_grads(model: Any, data: Sequence[TokenRecord], layout: Layout) -> dict[str, Tensor]:
    batch = MicroBatch.of([Branch(r.prompt, c) for r in data for c in r.completions], layout)
    out = batch.forward(Policy(model, layout))
    return grads(model, (out.stats.logp * weights_of(data)).sum())


def flat(model: Any) -> np.ndarray:
    """(N,) log-probs of all tokens by the model's own forward."""
    return np.concatenate([c for record in tiny.plain(model, DATA) for c in record])


def apart(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    """Largest distance of a parameter's gradients, relative to the largest of all gradients."""
    assert got.keys() == want.keys()
    assert want
    largest = max(float(g.abs().max()) for g in want.values())
    return max(float((got[n] - want[n]).abs().max()) for n in want) / largest


def worst(model: Any, truth: list[list[np.ndarray]], data: Sequence[TokenRecord] = DATA, **options: Any) -> float:
    scored = score(model, data, **options)
    return max(
        abs(float(got) - want.sum())
        for s, t in zip(scored, truth, strict=True)
        for got, want in zip(s.sum, t, strict=True)
    )


@pytest.mark.parametrize("family", families.TREE)
def test_trees_where_they_are_proven(family: str) -> None:
    model = families.model(family)
    truth, want = tiny.plain(model, DATA), plain_grads(model, DATA)
    verdict = choose_layout(model)
    assert verdict.layout == "tree", verdict.reason
    for layout in ("tree", "padded"):
        assert worst(model, truth, layout=layout) < 1e-5
        assert apart(engine_grads(model, DATA, layout), want) < 1e-4  # type: ignore[arg-type]


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
def test_gradients_of_long_trees(family: str) -> None:
    """Trees that are attended piece by piece, beside a short one."""
    data = tiny.records([(300, (40, 25)), (5, (4, 7)), (7, (330, 3))])
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
    def leaky(group: Group, window: int | None) -> Tensor:
        length = group.scope.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool)
        return (seen.tril() if causal else seen).expand(len(group.scope), 1, length, length)

    monkeypatch.setattr(Group, "mask", leaky)
    verdict = choose_layout(families.model("llama"))
    assert verdict.layout == "padded"
    assert "leak test" in verdict.reason


def test_wrong_numbers_without_a_leak_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def short_sighted(group: Group, window: int | None) -> Tensor:
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

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def lora(causal: Any, **options: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    # Random adapters: ones that start at zero would hide themselves.
    adapters = LoraConfig(r=4, lora_alpha=16, init_lora_weights=False, task_type="CAUSAL_LM", **options)
    return get_peft_model(causal, adapters)


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


# ---- heads that are more than a matrix, forwards that are patched


def hooked(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda module, args, out: out * 1.5 + 0.1 * out.roll(1, -1))


def parametrized(model: Any) -> None:
    class Wavy(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight + weight.sin()

    nn.utils.parametrize.register_parametrization(model.lm_head, "weight", Wavy())


def patched(model: Any) -> None:
    head = model.lm_head
    head.forward = lambda hidden: torch.nn.functional.linear(hidden, head.weight) * 0.7


@pytest.mark.parametrize("change", [hooked, parametrized, patched])
def test_heads_that_are_more_than_a_matrix(change: Callable[[Any], None]) -> None:
    model = families.model("granite")
    before = tiny.plain(model, DATA)
    change(model)
    truth, want = tiny.plain(model, DATA), plain_grads(model, DATA)
    assert np.abs(truth[0][0] - before[0][0]).max() > 0.001
    assert not Head.of(model).plain
    for layout in ("tree", "padded"):
        assert worst(model, truth, layout=layout) < 1e-5
        assert apart(engine_grads(model, DATA, layout), want) < 1e-4  # type: ignore[arg-type]


def test_a_patched_forward_of_the_model_is_kept() -> None:
    """As device hooks and mixed precision do it."""
    model = families.model("llama")
    calls = []

    def through(self: Any, *args: Any, **kw: Any) -> Any:
        calls.append(1)
        return type(self).forward(self, *args, **kw)

    patch = MethodType(through, model)
    model.forward = patch
    truth = tiny.plain(model, DATA)
    assert worst(model, truth) < 1e-5
    before = len(calls)
    tiny.plain(model, DATA)
    assert len(calls) == before + sum(len(r.completions) for r in DATA)
    assert model.forward is patch


# ---- training regimes


@pytest.mark.parametrize("frozen", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"], ["layers", "norm"]])
def test_frozen_parts(frozen: list[str]) -> None:
    model = families.model("llama")
    for name, weight in model.named_parameters():
        weight.requires_grad_(not any(part in name for part in frozen))
    want = plain_grads(model, DATA)
    assert apart(engine_grads(model, DATA, "tree"), want) < 1e-4


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_activation_checkpointing(family: str, reentrant: bool) -> None:
    """The plan travels with the call: a recomputation of the first row after the second was run gets its own plan."""
    model = families.model(family)
    without_dropout(model.config)
    parts = [DATA[:1], DATA[1:]]
    want = [plain_grads(model, part) for part in parts]
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model.train()
    policy = Policy(model, "tree")
    outs = [
        MicroBatch.of([Branch(r.prompt, c) for r in part for c in r.completions], "tree").forward(policy)
        for part in parts
    ]
    for part, out, expected in zip(parts, outs, want, strict=True):
        assert apart(grads(model, (out.stats.logp * weights_of(part)).sum()), expected) < 1e-4


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_bf16_autocast_is_no_worse_than_plain_autocast(family: str, layout: Layout) -> None:
    model = families.model(family)
    exact, exact_grads = flat(model), plain_grads(model, DATA)
    batch = MicroBatch.of([Branch(r.prompt, c) for r in DATA for c in r.completions], layout)
    with torch.autocast("cpu", torch.bfloat16):
        rough = torch.cat([tiny.plain_logps(model, r.prompt, c) for r in DATA for c in r.completions])
        out = batch.forward(Policy(model, layout))
    assert out.stats.logp.dtype == torch.float32
    plain_error = (rough.detach().numpy() - exact).std()
    assert plain_error > 1e-4  # autocast was on
    assert (out.stats.logp.detach().numpy() - exact).std() < 1.5 * plain_error
    rough_grads = grads(model, (rough * weights_of(DATA)).sum())
    got = grads(model, (out.stats.logp * weights_of(DATA)).sum())

    def error(found: dict[str, Tensor]) -> float:
        return float(torch.stack([(found[n] - exact_grads[n]).norm() for n in exact_grads]).norm())

    assert error(got) < 1.5 * error(rough_grads)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
def test_bfloat16_weights(family: str) -> None:
    model = families.model(family, dtype=torch.bfloat16)
    exact = flat(families.model(family, dtype=torch.bfloat16).float())
    rough = flat(model)
    assert choose_layout(model).layout == "tree"
    scored = score(model, DATA, tokens=True)
    got = np.concatenate([t for s in scored for t in s.token or ()])
    assert (got - exact).std() < 1.5 * (rough - exact).std()


def test_the_head_of_each_scaled_family() -> None:
    assert Head.of(families.model("cohere")).scale == 0.0625
    assert Head.of(families.model("granite")).scale == 1 / 8
    assert Head.of(families.model("hyperclovax")).scale == 0.125
    assert Head.of(families.model("falcon_h1")).scale == 0.5
    assert Head.of(families.model("gemma2")).softcap == 3.0
    assert Head.of(families.model("recurrent_gemma")).softcap == 3.0


def test_hidden_only() -> None:
    model = families.model("llama")
    batch = MicroBatch.of([Branch(r.prompt, c) for r in DATA for c in r.completions], "tree")
    hidden = Policy(model, "tree")(batch.row, Options(hidden_only=True))
    assert hidden.shape == (len(batch.row.target), 32)
