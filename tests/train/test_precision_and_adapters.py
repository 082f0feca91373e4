"""Low precision and LoRA: the policy that is trained, and the reference that it is compared with."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prefopt.errors import UserError
from prefopt.losses.registry import load
from prefopt.models.load import load_model
from prefopt.models.model_config import ModelConfig
from prefopt.plugin import Data
from prefopt.train import BatchConfig
from tests.train import tiny

DATA = tiny.records(Data.PAIRS, 16)

# peft asks transformers by a name that it will drop
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


def _lora(causal: Any, seed: int = 0) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    settings = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=0.0)
    return get_peft_model(causal, settings)


def _sums(model: Any) -> list[float]:
    with torch.no_grad():
        return [float(tiny.plain_logps(model, r.prompt, c).sum()) for r in DATA for c in r.completions]


def _reference(kept: tiny.Run) -> Any:
    table = kept.trainer.tables["train"]
    return table.sum.tolist()


# ---- LoRA


def test_a_fresh_adapter_has_the_model_below_it_as_reference(tmp_path: Path) -> None:
    base = tiny.model(dtype=torch.float32)
    truth = _sums(base)
    policy = _lora(copy.deepcopy(base))
    kept = tiny.run(load("dpo"), DATA, tmp_path, policy, max_steps=3)
    assert _reference(kept) == pytest.approx(truth, abs=1e-4)
    assert kept.losses[0] == pytest.approx(np.log(2), rel=1e-5)
    assert kept.losses[-1] < kept.losses[0] - 1e-3
    assert all("lora" in name for name in kept.gradients[0]), "only the adapter is trained"


def test_fresh_adapters_of_any_seed_share_the_stored_reference(tmp_path: Path) -> None:
    first, second = (
        tiny.make(load("dpo"), DATA, tmp_path, _lora(tiny.model(dtype=torch.float32), seed)) for seed in (0, 1)
    )
    assert first.reference.name == second.reference.name
    tables = [made.tables["train"] for made in (first, second)]
    assert [(t.hits, t.misses) for t in tables if t is not None] == [(0, 32), (32, 0)]


@pytest.mark.parametrize("name", ["dpo", "tdpo2", "tr_dpo"])
def test_after_lora_sft_the_reference_is_the_sft_model(name: str, tmp_path: Path) -> None:
    """Not the base model, which the policy with its adapter off would give."""
    base = tiny.model(dtype=torch.float32)
    below = _sums(base)
    policy = _lora(base)
    tiny.run(load("sft"), DATA, tmp_path / "sft", policy, max_steps=3)
    tuned = _sums(policy)
    assert max(abs(a - b) for a, b in zip(tuned, below, strict=True)) > 0.5
    loss = load(name)
    kept = tiny.run(loss, DATA, tmp_path / name, policy, eval=DATA, max_steps=1)
    reference = kept.trainer.tables["eval"]
    assert reference is not None
    assert reference.sum.tolist() == pytest.approx(tuned, abs=1e-3)
    assert kept.losses[0] == pytest.approx(np.log(2), rel=1e-4)
    assert kept.logs[0]["ratios/chosen"] == pytest.approx(0.0, abs=1e-3)


def test_the_base_model_can_be_asked_for_as_reference(tmp_path: Path) -> None:
    base = tiny.model(dtype=torch.float32)
    policy = _lora(copy.deepcopy(base))
    tiny.run(load("sft"), DATA, tmp_path / "sft", policy, max_steps=3)
    kept = tiny.run(load("dpo"), DATA, tmp_path, policy, reference=base, max_steps=1)
    assert _reference(kept) == pytest.approx(_sums(base), abs=1e-3)
    assert abs(kept.logs[0]["ratios/chosen"]) > 0.1


def test_an_adapter_is_saved_and_resumed_as_one(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "batch": BatchConfig(records=8),
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    whole = tiny.run(load("dpo"), DATA, tmp_path, _lora(tiny.model(dtype=torch.float32)), **options)
    resumed = tiny.run(load("dpo"), DATA, tmp_path, _lora(tiny.model(dtype=torch.float32)),
                       resume=tmp_path / "checkpoint-2", **options)  # fmt: skip
    assert resumed.losses == whole.losses
    assert tiny.apart(resumed.weights, whole.weights) == 0.0
    saved = load_file(tmp_path / "checkpoint-4" / "adapter_model.safetensors")
    assert saved
    assert all("lora" in name for name in saved)
    assert not (tmp_path / "checkpoint-4" / "model.safetensors").exists()


# ---- precision


@pytest.mark.parametrize("name", tiny.CORE)
def test_every_method_trains_the_weights_in_the_dtype_they_were_loaded_in(name: str, tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        kept = tiny.run(load(name), DATA, tmp_path, tiny.model(dtype=dtype), max_steps=1)
        assert {w.dtype for w in kept.weights.values()} == {dtype}


def test_a_model_is_loaded_in_float32_whatever_it_was_saved_in(tmp_path: Path) -> None:
    """A small learning rate rounds away in bfloat16; so no method may get it by default, and none alone."""
    tiny.model(dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    config = ModelConfig(path=str(tmp_path / "model"))
    full, half = load_model(config), load_model(ModelConfig(path=config.path, dtype="bfloat16"))
    assert {w.dtype for w in full.parameters()} == {torch.float32}
    assert {w.dtype for w in half.parameters()} == {torch.bfloat16}
    with pytest.raises(UserError, match=r"model\.dtype=float8"):
        load_model(ModelConfig(path=config.path, dtype="float8"))
    moved = {}
    for name, model in (("full", full), ("half", half)):
        start = {n: w.detach().clone() for n, w in model.named_parameters()}
        kept = tiny.run(load("dpo"), DATA, tmp_path / name, model, learning_rate=1e-6, weight_decay=0.0)
        changed = [(kept.weights[n] != w).float().mean().item() for n, w in start.items() if w.ndim > 1]
        moved[name] = float(np.mean(changed))
    assert moved["full"] > 0.9
    assert moved["half"] < 0.1, "1e-6 is far below the spacing of bfloat16 at weights of this size"


@pytest.mark.parametrize("name", ["dpo", "kto", "tdpo2", "tr_dpo", "wpo"])
def test_mixed_precision_scores_policy_and_reference_alike(name: str, tmp_path: Path) -> None:
    """Under autocast before, in and after training, and for the reference: so the first loss is the plugin's."""
    policy = tiny.model(dtype=torch.float32)
    config = BatchConfig(records=16, max_tokens=60)  # several micro-batches: two passes for kto
    trainer = tiny.make(load(name), DATA, tmp_path, policy, eval=DATA, bf16=True, max_steps=2, batch=config)
    before = trainer.evaluate()
    assert before["eval_ratios/chosen"] == pytest.approx(0.0, abs=0.02)
    trainer.train()
    first = next(entry for entry in trainer.state.log_history if "learning_rate" in entry)
    assert first["loss"] == pytest.approx(before["eval_loss"], abs=5e-3)
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    assert {w.dtype for w in policy.parameters()} == {torch.float32}


def test_the_reference_is_computed_in_the_precision_of_the_policy(tmp_path: Path) -> None:
    """Most of its log-probs are then the policy's to the last bit; in float32 none would be."""
    trainer = tiny.make(load("dpo"), DATA, tmp_path, tiny.model(dtype=torch.float32), bf16=True)
    (batch,) = trainer.shares("train")
    with torch.no_grad():
        logps = trainer.step.score(batch.work[0])
    assert (logps.sum == logps.ref_sum).float().mean() > 0.5


def test_stored_log_probs_of_one_precision_are_not_taken_for_another(tmp_path: Path) -> None:
    tables = []
    for options in ({}, {"bf16": True}, {}):
        made = tiny.make(load("dpo"), DATA, tmp_path, tiny.model(dtype=torch.float32), **options)
        tables.append(made.tables["train"])
    assert [(t.hits, t.misses) for t in tables if t is not None] == [(0, 32), (0, 32), (32, 0)]


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_activation_checkpointing_changes_nothing(name: str, tmp_path: Path) -> None:
    plain, recomputed = (tiny.run(load(name), DATA, tmp_path, activation_checkpointing=on) for on in (False, True))
    assert recomputed.losses == pytest.approx(plain.losses, rel=1e-6)
    assert tiny.apart(recomputed.weights, plain.weights) < 1e-6
