"""Adapters: what is trained, what policy and reference share, what a checkpoint holds, what is refused."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prefopt.errors import UserError
from prefopt.losses.registry import load
from prefopt.models.adapters import attach, base_twin, check_targets, own_weights, twin
from prefopt.models.load import load_as_trained, load_model, load_policy, load_reference
from prefopt.models.model_config import ModelConfig
from prefopt.models.peft_config import PeftConfig
from prefopt.plugin import Data
from prefopt.train import BatchConfig
from tests.train import tiny

DATA = tiny.records(Data.PAIRS, 16)
METHODS = ("lora", "dora")


def sums(model: Any) -> torch.Tensor:
    """The sum of log-probs of every completion, by plain forwards."""
    with torch.no_grad():
        return torch.stack([tiny.plain_logps(model, r.prompt, c).sum() for r in DATA for c in r.completions])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("base")
    tiny.model(dtype=torch.float32).save_pretrained(path)
    return str(path)


def policy(folder: str, method: str = "lora", seed: int = 0, **peft: Any) -> Any:
    return load_policy(ModelConfig(path=folder), PeftConfig(method=method, r=4, alpha=8, **peft), seed=seed)


def sft(folder: str, out: Path, method: str = "lora") -> Any:
    """A policy whose adapter has gone through SFT, saved in `out`."""
    model = policy(folder, method)
    tiny.run(load("sft"), DATA, out / "run", model, max_steps=3)
    model.save_pretrained(out)
    return model


# ---- loading


@pytest.mark.parametrize("method", METHODS)
def test_a_fresh_adapter_is_the_base_model_and_depends_on_the_seed_alone(folder: str, method: str) -> None:
    base = load_model(ModelConfig(path=folder))
    state = torch.random.get_rng_state()
    one, same, other = policy(folder, method), policy(folder, method), policy(folder, method, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.allclose(sums(one), sums(base), atol=1e-4)
    a, b, c = (dict(m.named_parameters()) for m in (one, same, other))
    assert tiny.apart(a, b) == 0.0
    assert tiny.apart(a, c) > 0.0
    trained = {n for n, p in one.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora" in n for n in trained)


@pytest.mark.parametrize("method", METHODS)
def test_training_moves_the_adapter_and_nothing_below_it(folder: str, method: str, tmp_path: Path) -> None:
    model = policy(folder, method)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    kept = tiny.run(load("dpo"), DATA, tmp_path, model, max_steps=3)
    assert kept.losses[0] == pytest.approx(math.log(2), rel=1e-5)
    assert kept.losses[-1] < kept.losses[0] - 1e-3
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, start[n])}
    assert moved == {n for n in start if "lora" in n}
    assert any("magnitude" in n for n in moved) == (method == "dora")


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_adapter_is_loaded_merged_or_trained_further(folder: str, method: str, tmp_path: Path) -> None:
    tuned = sft(folder, tmp_path, method)
    truth = sums(tuned)
    plain = load_model(ModelConfig(path=str(tmp_path)))
    assert not any("lora" in n for n, _ in plain.named_parameters())
    assert torch.allclose(sums(plain), truth, atol=1e-4)
    again = load_policy(ModelConfig(path=str(tmp_path)), PeftConfig(method=method, r=4, alpha=8), seed=3)
    assert torch.allclose(sums(again), truth, atol=1e-4)
    assert any(p.requires_grad for p in again.parameters())
    whole = load_policy(ModelConfig(path=str(tmp_path)), PeftConfig(), seed=0)
    assert all(p.requires_grad for p in whole.parameters())


# ---- references


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["dpo", "tdpo2", "tr_dpo"])
def test_after_sft_the_reference_is_the_sft_adapter_on_the_same_base(
    folder: str, method: str, name: str, tmp_path: Path
) -> None:
    truth = sums(sft(folder, tmp_path / "sft", method))
    config = ModelConfig(path=str(tmp_path / "sft"))
    model = load_policy(config, PeftConfig(method=method, r=4, alpha=8), seed=0)
    kept = tiny.run(load(name), DATA, tmp_path, model, eval=DATA, max_steps=2)
    assert kept.losses[0] == pytest.approx(math.log(2), rel=1e-4)
    table = kept.trainer.tables["eval"]
    assert table.sum.tolist() == pytest.approx(truth.tolist(), abs=1e-3)
    live = kept.trainer.reference.policy
    if live is not None:
        assert torch.allclose(sums(live.model), truth, atol=1e-3), "a frozen adapter, though the policy's has moved"
        assert not torch.allclose(sums(model), truth, atol=1e-2)


@pytest.mark.parametrize("name", ["tdpo2", "tr_dpo"])
def test_policy_and_live_reference_hold_one_base_in_memory(folder: str, name: str, tmp_path: Path) -> None:
    model = policy(folder)
    live = tiny.make(load(name), DATA, tmp_path, model).reference.policy.model
    mine, theirs = dict(model.named_parameters()), dict(live.named_parameters())
    assert mine.keys() == theirs.keys()
    for weight in mine:
        assert (mine[weight] is theirs[weight]) == ("lora" not in weight), weight
    assert set(own_weights(live, model)) == {n for n in mine if "lora" in n}
    full = tiny.model(dtype=torch.float32)
    assert not {id(p) for p in full.parameters()} & {id(p) for p in twin(full).parameters()}


def test_the_base_below_an_adapter_shares_its_weights_and_stays(folder: str, tmp_path: Path) -> None:
    model = policy(folder)
    truth = sums(load_model(ModelConfig(path=folder)))
    tiny.run(load("sft"), DATA, tmp_path, model, max_steps=3)
    below = base_twin(model)
    assert torch.allclose(sums(below), truth, atol=1e-5)
    assert not torch.allclose(sums(model), truth, atol=1e-2), "taking the base out must leave the policy adapted"
    ids = {id(p) for p in model.parameters()}
    assert all(id(p) in ids for p in below.parameters())


@pytest.mark.parametrize("which", ["base", "adapter"])
def test_a_named_reference_on_the_same_base_shares_it(folder: str, which: str, tmp_path: Path) -> None:
    tuned = sft(folder, tmp_path / "sft")
    truth = sums(load_model(ModelConfig(path=folder)) if which == "base" else tuned)
    config = ModelConfig(path=folder, reference=folder if which == "base" else str(tmp_path / "sft"))
    model = load_policy(config, PeftConfig(method="lora", r=8, alpha=8), seed=0)
    reference = load_reference(config, model)
    assert torch.allclose(sums(reference), truth, atol=1e-4)
    ids = {id(p) for p in model.parameters()}
    assert all(id(p) in ids for n, p in reference.named_parameters() if "lora" not in n)
    tiny.run(load("dpo"), DATA, tmp_path, model, reference=reference, max_steps=2)
    assert torch.allclose(sums(reference), truth, atol=1e-4)


def test_a_moving_reference_averages_the_factors_of_the_update(folder: str, tmp_path: Path) -> None:
    """Not their product: the average of the updates would have alpha (1 - alpha) (B - B') (A - A') more."""
    model = policy(folder)
    kept = tiny.run(load("tr_dpo", tau=2, alpha=0.6), DATA, tmp_path, model, max_steps=2)
    live = own_weights(kept.trainer.reference.policy.model, model)
    start = dict(policy(folder).named_parameters())
    now = dict(model.named_parameters())
    for name, weight in live.items():
        assert torch.allclose(weight, 0.6 * now[name] + 0.4 * start[name], atol=1e-6)
    a = next(n for n in live if ".lora_A." in n)
    b = a.replace(".lora_A.", ".lora_B.")
    exact = 0.6 * now[b] @ now[a] + 0.4 * start[b] @ start[a]
    more = 0.6 * 0.4 * (now[b] - start[b]) @ (now[a] - start[a])
    assert torch.allclose(live[b] @ live[a], exact - more, atol=1e-6)


# ---- checkpoints


@pytest.mark.parametrize(("method", "name"), [("lora", "dpo"), ("dora", "dpo"), ("lora", "tr_dpo")])
def test_checkpoints_hold_adapters_only_and_resume_exactly(folder: str, method: str, name: str, tmp_path: Path) -> None:
    loss = load(name, tau=1) if name == "tr_dpo" else load(name)
    options: dict[str, Any] = {"batch": BatchConfig(records=8), "max_steps": 4, "save_strategy": "steps",
                               "save_steps": 1}  # fmt: skip
    whole = tiny.run(loss, DATA, tmp_path, policy(folder, method), **options)
    resumed = tiny.run(loss, DATA, tmp_path, policy(folder, method), resume=tmp_path / "checkpoint-2", **options)
    assert resumed.losses == whole.losses
    assert tiny.apart(resumed.weights, whole.weights) == 0.0
    for file in (tmp_path / "checkpoint-4").glob("*.safetensors"):
        assert all("lora" in weight for weight in load_file(file)), file.name
    assert not (tmp_path / "checkpoint-4" / "model.safetensors").exists()


def test_activation_checkpointing_reaches_the_adapter(folder: str, tmp_path: Path) -> None:
    plain, again = (
        tiny.run(load("dpo"), DATA, tmp_path, policy(folder), activation_checkpointing=on) for on in (False, True)
    )
    assert again.losses == pytest.approx(plain.losses, rel=1e-6)
    assert all(g.abs().max() > 0 for n, g in again.gradients[0].items() if "lora_B" in n)


# ---- refusals


def test_a_target_that_matches_nothing_is_refused_by_name(folder: str) -> None:
    for targets in (["q_prjo"], ["q_proj", "q_prjo"]):
        with pytest.raises(UserError, match=r"'q_prjo'; did you mean 'q_proj'.*down_proj.*v_proj"):
            policy(folder, target_modules=targets)
    only = policy(folder, target_modules=["q_proj"])
    assert {n.split(".lora")[0].rsplit(".", 1)[-1] for n, p in only.named_parameters() if p.requires_grad} == {"q_proj"}


def test_a_head_that_is_also_the_embedding_is_refused() -> None:
    tied = tiny.model(tie_word_embeddings=True)
    for target in ("lm_head", "embed_tokens"):
        with pytest.raises(UserError, match="shares its weights"):
            check_targets(tied, [target])
    check_targets(tiny.model(), ["lm_head"])
    assert not any("lm_head" in n for n, p in attach(tied, PeftConfig(method="lora"), seed=0).named_parameters()
                   if p.requires_grad)  # fmt: skip


@pytest.mark.parametrize("how", [{"target_modules": ["q_proj", "lm_head"]}, {"target_modules": "all-linear"},
                                 {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
                                 {"target_modules": ["embed_tokens"]}], ids=str)  # fmt: skip
def test_a_loaded_adapter_on_a_tied_head_is_refused(how: dict[str, Any], tmp_path: Path) -> None:
    """Whoever made it: merged, it would change the input embedding, too."""
    from peft import LoraConfig, get_peft_model

    base = tiny.model(dtype=torch.float32, tie_word_embeddings=True)
    base.save_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, about just this
        made = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **how))
        made.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
        made.save_pretrained(tmp_path / "adapter")
    config, ends = ModelConfig(path=str(tmp_path / "adapter")), str(how)
    loads = [lambda: load_model(config), lambda: load_as_trained(config),
             lambda: load_policy(config, PeftConfig(method="lora", r=4, alpha=8), seed=0)]  # fmt: skip
    for load_it in loads:
        if "lm_head" in ends or "embed_tokens" in ends:
            with pytest.raises(UserError, match=r"(lm_head|embed_tokens), which shares its weights.*without it"):
                load_it()
        else:
            assert load_it() is not None


@pytest.mark.parametrize("change", ["fewer", "more"])
def test_a_loaded_adapter_that_is_not_whole_is_refused(folder: str, change: str, tmp_path: Path) -> None:
    policy(folder).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    if change == "fewer":
        del weights[name]
    else:
        weights[name.replace("layers.0", "layers.7")] = weights[name].clone()
    save_file(weights, file)
    says = "not in its file" if change == "fewer" else "match no layer"
    with pytest.raises(UserError, match=rf"does not fit.*1 of its weights .*lora_A.* {says}"):
        load_model(ModelConfig(path=str(tmp_path)))


def test_dropout_of_a_loaded_adapter_is_switched_off_and_not_saved(
    folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy(folder).save_pretrained(tmp_path / "adapter")
    settings = tmp_path / "adapter" / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"lora_dropout": 0.5}))
    losses = []
    for path in ("adapter", "plain"):
        if path == "plain":
            policy(folder).save_pretrained(tmp_path / path)
        config = ModelConfig(path=str(tmp_path / path))
        model = load_policy(config, PeftConfig(method="lora", r=4, alpha=8), seed=0)
        kept = tiny.run(load("simpo"), DATA, tmp_path / "run" / path, model, max_steps=3)
        kept.trainer.save_model(tmp_path / "final" / path)
        losses.append(kept.losses)
    assert losses[0] == losses[1]
    assert json.loads((tmp_path / "final" / "adapter" / "adapter_config.json").read_text())["lora_dropout"] == 0.0
    assert "switched off in training, because it is random: lora_dropout=0.5" in caplog.text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "lorra"}, "none, lora, dora"),
        ({"method": "lora", "r": 0}, r"peft\.r=0 must be at least 1"),
        ({"method": "lora", "target_modules": []}, "target_modules is empty"),
        ({"method": "lora", "target_modules": ["all-linear", "q_proj"]}, "give it alone"),
    ],
)
def test_values_that_cannot_be_are_refused(folder: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_policy(ModelConfig(path=folder), PeftConfig(**given), seed=0)


def test_a_saved_adapter_of_another_kind_is_refused(folder: str, tmp_path: Path) -> None:
    policy(folder).save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path))
    with pytest.raises(UserError, match=r"with r=4, .* give peft\.r=4, or peft=none"):
        load_policy(config, PeftConfig(method="lora", r=8, alpha=8), seed=0)
    with pytest.raises(UserError, match=r"with method=lora"):
        load_policy(config, PeftConfig(method="dora", r=4, alpha=8), seed=0)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(UserError, match="other formats are not read"):
        load_model(config)


def test_four_bits_are_refused_without_cuda_and_without_an_adapter(folder: str) -> None:
    with pytest.raises(UserError, match="cannot be trained themselves"):
        load_policy(ModelConfig(path=folder, quantization="nf4"), PeftConfig(), seed=0)
    with pytest.raises(UserError, match="is not one of nf4, or null"):
        load_policy(ModelConfig(path=folder, quantization="int2"), PeftConfig(method="lora"), seed=0)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"needs a CUDA device.*peft=lora"):
            load_policy(ModelConfig(path=folder, quantization="nf4"), PeftConfig(method="lora"), seed=0)
