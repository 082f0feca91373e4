"""What a reference's store is named after: all that changes a log-prob, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefopt.engine.policy import Policy
from prefopt.engine.reference.fingerprint import fingerprint
from prefopt.engine.reference.store import ReferenceStore
from prefopt.engine.reference.table import reference_table
from tests.engine import families, tiny

pytest.importorskip("peft", reason="adapters need it")
pytestmark = [
    pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing.*` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed"),
]

DATA = tiny.records([(5, (4, 7)), (3, (2, 1))])


def lora(base: Any, seed: int = 1, **options: Any) -> Any:
    """An adapter whose matrices are both random, as after training."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    settings = {
        "r": 4,
        "lora_alpha": 8,
        "init_lora_weights": False,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
    }
    return get_peft_model(base, LoraConfig(**(settings | options)))


def fresh(base: Any, **options: Any) -> Any:
    return lora(base, **{"init_lora_weights": True, **options})


def llama(**options: Any) -> Any:
    return tiny.model("llama", **options)


def test_the_fingerprint_knows_what_changes_numbers() -> None:
    plain = fingerprint(llama())
    assert fingerprint(llama()) == plain  # the same weights, loaded again
    adapted = lora(llama())
    others = {
        "weights": fingerprint(llama(seed=1)),
        "dtype": fingerprint(llama(dtype=torch.bfloat16)),
        "autocast": fingerprint(llama(), "bf16"),
        "rotary base": fingerprint(llama(rope_parameters={"rope_type": "default", "rope_theta": 5e5})),
        "norm epsilon": fingerprint(llama(rms_norm_eps=1e-3)),
        "adapter": fingerprint(adapted),
        "adapter's weights": fingerprint(lora(llama(), seed=2)),
        "adapter's scale": fingerprint(lora(llama(), lora_alpha=16)),
    }
    adapted.base_model.model.model.layers[0].self_attn.q_proj.set_scale("default", 3.0)
    others["adapter's scale in one layer"] = fingerprint(adapted)
    others["tied"] = fingerprint(llama(tie_word_embeddings=True))
    assert len({plain, *others.values()}) == len(others) + 1


def test_two_weights_that_change_places_are_another_model() -> None:
    swapped = llama()
    layers = swapped.model.layers
    layers[0].mlp.up_proj, layers[0].mlp.gate_proj = layers[0].mlp.gate_proj, layers[0].mlp.up_proj
    assert fingerprint(swapped) != fingerprint(llama())


def test_where_a_model_came_from_and_how_it_is_run_is_no_part_of_the_name() -> None:
    same = llama()
    same.set_attn_implementation("eager")
    same.config._name_or_path = "elsewhere"
    same.config.use_cache = False
    assert fingerprint(same.train().requires_grad_(False)) == fingerprint(llama())


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"attention_dropout": 0.3, "initializer_range": 0.7, "id2label": {0: "good"}, "problem_type": "x"}),
        ("gpt2", {"attn_pdrop": 0.3, "embd_pdrop": 0.3, "resid_pdrop": 0.3, "summary_first_dropout": 0.3}),
        ("opt", {"dropout": 0.3, "attention_dropout": 0.3, "layerdrop": 0.3, "init_std": 0.7}),
        ("gpt_neo", {"embed_dropout": 0.3, "resid_dropout": 0.3, "classifier_dropout": 0.3}),
        ("gpt_neox", {"hidden_dropout": 0.3, "classifier_dropout": 0.3}),
        ("starcoder2", {"residual_dropout": 0.3, "embedding_dropout": 0.3}),
        ("mixtral", {"router_aux_loss_coef": 0.7, "output_router_logits": True}),
        ("recurrent_gemma", {"w_init_variance_scale": 0.7, "final_w_init_variance_scale": 0.7}),
        ("mamba", {"rescale_prenorm_residual": True}),
    ],
)
def test_config_entries_that_only_training_reads_are_no_part_of_the_name(
    family: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    plain = families.model(family)
    config = type(plain.config).from_dict(plain.config.to_dict() | settings)
    other = tiny.build(config)
    other.load_state_dict(plain.state_dict())
    name = fingerprint(plain)
    assert fingerprint(other) == name
    # and rightly so
    kept = reference_table(plain, DATA, ReferenceStore(tmp_path / "a", name)).sum
    np.testing.assert_array_equal(reference_table(other, DATA, ReferenceStore(tmp_path / "b", name)).sum, kept)


FRESH: dict[str, Callable[[], Any]] = {
    "r=4": lambda: fresh(llama()),
    "r=8": lambda: fresh(llama(), r=8),
    "alpha": lambda: fresh(llama(), lora_alpha=32, use_rslora=True),
    "dropout": lambda: fresh(llama(), lora_dropout=0.3),
    "seed": lambda: fresh(llama(), seed=2),
    "all layers": lambda: fresh(llama(), target_modules="all-linear"),
    "bias": lambda: fresh(llama(), lora_bias=True),
    "embedding": lambda: fresh(llama(), target_modules=["embed_tokens", "lm_head"]),
    "a copy of the head": lambda: fresh(llama(), modules_to_save=["lm_head"]),
}


@pytest.mark.parametrize("kind", FRESH)
def test_a_fresh_adapter_reads_the_store_of_its_base(kind: str, tmp_path: Path) -> None:
    base = llama()
    reference_table(base, DATA, ReferenceStore(tmp_path, fingerprint(base)))
    adapted = FRESH[kind]()
    found = reference_table(adapted, DATA, ReferenceStore(tmp_path, fingerprint(adapted)))  # computes some again
    assert (found.hits, found.misses) == (4, 0)


def test_each_part_of_an_update_that_is_not_zero_counts() -> None:
    plain = fingerprint(llama())
    found = {plain}
    for options, name in (
        ({}, "layers.1.self_attn.q_proj.lora_B.default.weight"),
        ({"lora_bias": True}, "layers.1.self_attn.q_proj.lora_B.default.bias"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens.lora_embedding_A.default"),
        ({"modules_to_save": ["lm_head"]}, "lm_head.modules_to_save.default.weight"),
    ):
        model = fresh(llama(), **options)
        assert fingerprint(model) == plain
        (tensor,) = (t for n, t in model.named_parameters() if n.endswith(name))
        with torch.no_grad():
            tensor[0] += 1e-3
        found.add(fingerprint(model))
        with model.disable_adapter():
            assert fingerprint(model) == plain
    assert len(found) == 5


def test_zero_times_infinity_is_not_zero() -> None:
    model = fresh(llama())
    model.base_model.model.model.layers[0].self_attn.q_proj.lora_A.default.weight.data[0, 0] = torch.inf
    assert fingerprint(model) != fingerprint(llama())


def test_adapters_that_are_off_are_no_part_of_the_name(tmp_path: Path) -> None:
    base = llama()
    plain = fingerprint(base)
    reference_table(base, DATA, ReferenceStore(tmp_path, plain))
    for options in (
        {},
        {"use_dora": True},
        {"target_modules": ["lm_head"], "modules_to_save": ["embed_tokens"]},
        {"trainable_token_indices": [3, 4]},
    ):
        model = lora(llama(), **options)
        assert fingerprint(model) != plain
        with model.disable_adapter():
            assert fingerprint(model) == plain
            found = reference_table(model, DATA, ReferenceStore(tmp_path, plain))
        assert (found.hits, found.misses) == (4, 0)


def test_adapters_of_other_methods_count_until_they_are_off() -> None:
    from peft import IA3Config, VeraConfig, get_peft_model

    plain = fingerprint(llama())
    for config in (
        IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]),
        VeraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4),
    ):
        model = get_peft_model(llama(), config)
        assert fingerprint(model) != plain
        with model.disable_adapter():
            assert fingerprint(model) == plain


def test_only_the_active_of_several_adapters_counts() -> None:
    from peft import LoraConfig

    two = lora(llama())
    alone = fingerprint(two)
    two.add_adapter("other", LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["v_proj"], init_lora_weights=False))
    assert fingerprint(two) == alone
    two.set_adapter("other")
    other = fingerprint(two)
    two.base_model.set_adapter(["default", "other"])
    assert len({alone, other, fingerprint(two), fingerprint(llama())}) == 4
    two.delete_adapter("other")
    two.set_adapter("default")
    assert fingerprint(two) == alone


def test_what_is_equal_up_to_rounding_has_a_name_of_its_own() -> None:
    plain = fingerprint(llama())
    dora = fingerprint(fresh(llama(), use_dora=True))
    trained = lora(llama())
    active = fingerprint(trained)
    trained.merge_adapter()
    merged = fingerprint(trained)
    with trained.disable_adapter():  # would be taken out of the weights again, with rounding errors
        off = fingerprint(trained)
    assert len({plain, dora, active, merged, off}) == 5
    model = fresh(llama())
    model.merge_adapter()
    assert fingerprint(model) == plain
    assert fingerprint(lora(llama()).merge_and_unload()) == fingerprint(lora(llama()).merge_and_unload())


def test_tied_weights_under_adapters() -> None:
    tied = llama(tie_word_embeddings=True)
    plain = fingerprint(tied)
    assert fingerprint(fresh(llama(tie_word_embeddings=True))) == plain
    with pytest.warns(UserWarning, match="tie"):
        copied = fresh(llama(tie_word_embeddings=True), modules_to_save=["lm_head"])
    assert fingerprint(copied) == plain
    copied.base_model.model.lm_head.modules_to_save.default.weight.data += 1
    assert fingerprint(copied) != plain  # the head's copy is its own


def test_wrappers_of_a_model_are_no_part_of_the_name() -> None:
    for make in (llama, lambda: lora(llama())):
        assert fingerprint(torch.nn.DataParallel(make())) == fingerprint(make())
        assert fingerprint(Policy(make())) == fingerprint(make())
