"""What cannot be loaded is refused with the true reason and the way; adapters find their model from anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    T5Config,
)

from prefopt.errors import UserError
from prefopt.models.adapters import BASE
from prefopt.models.load import load_as_trained, load_model, load_policy, load_tokenizer
from prefopt.models.model_config import ModelConfig
from prefopt.models.peft_config import PeftConfig
from tests.data.tiny import tokenizer

TEXT: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
VISION: dict[str, Any] = {
    **TEXT,
    "model_type": "clip_vision_model",
    "projection_dim": 8,
    "image_size": 28,
    "patch_size": 14,
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**TEXT)).save_pretrained(tmp_path / "m" / "base")
    return tmp_path / "m" / "base"


def refusal(path: Path | str) -> str:
    with pytest.raises(UserError) as found:
        load_model(ModelConfig(path=str(path)))
    assert "config.json, model.safetensors" not in str(found.value), "it has one"
    return str(found.value)


def test_a_model_that_is_not_for_text_alone(tmp_path: Path) -> None:
    config = LlavaConfig(text_config={**TEXT, "model_type": "llama"}, vision_config=VISION, image_token_index=1)
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "seeing")
    assert "LlavaForConditionalGeneration has a language model among other parts" in refusal(tmp_path / "seeing")
    kind = ["T5ForConditionalGeneration"]
    T5Config(architectures=kind, num_layers=1, num_decoder_layers=1).save_pretrained(tmp_path / "t5")
    save_file({"shared.weight": torch.zeros(2, 2)}, tmp_path / "t5" / "model.safetensors")
    assert "T5ForConditionalGeneration is not a causal language model" in refusal(tmp_path / "t5")


def test_what_is_no_folder_of_a_model(base: Path, tmp_path: Path) -> None:
    assert "is a file: give the folder that it is in" in refusal(base / "model.safetensors")
    run = tmp_path / "run"
    (run / "final").mkdir(parents=True)
    (run / "config.yaml").touch()
    assert f"give {run}/final" in refusal(run)
    assert "has no config.json" in refusal(tmp_path / "m")
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    assert "has no model.safetensors; pytorch_model.bin is not read" in refusal(base)
    with pytest.raises(UserError, match="has no tokenizer"):
        load_tokenizer(ModelConfig(path=str(base)))


def test_gguf_files_say_how_they_are_converted(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, way in (("x.gguf", "gguf_file=NAME"), ("y-00001-of-00002.gguf", "llama-gguf-split --merge y-00001"),
                      ("z.gguf.part1", "cat PARTS")):  # fmt: skip
        file = folder / name
        file.write_bytes(b"GGUF")
        for path in (file, folder):
            assert way in refusal(path)
            with pytest.raises(UserError, match="GGUF"):
                load_tokenizer(ModelConfig(path=str(path)))
        file.unlink()


def test_packages_with_several_gguf_files_or_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for package, names, reason in (
        ("chunked_model", ("a.gguf-00", "a.gguf-01"), "in parts .*cat PARTS"),
        ("split_model", ("a-00001-of-00002.gguf", "a-00002-of-00002.gguf"), "in parts .*llama-gguf-split"),
        ("two_models", ("a-q4.gguf", "mmproj.gguf"), r"several GGUF files \(a-q4.gguf, mmproj.gguf\)"),
        ("no_model", (), "no .gguf file"),
    ):
        (tmp_path / package / "data").mkdir(parents=True)
        (tmp_path / package / "__init__.py").touch()
        for name in names:
            (tmp_path / package / "data" / name).write_bytes(b"GGUF")
        with pytest.raises(UserError, match=reason):
            load_model(ModelConfig(path=f"package:{package}"))


def test_an_adapter_finds_its_model_from_anywhere(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    load_policy(ModelConfig(path="m/base"), PeftConfig(method="lora", r=2), seed=0).save_pretrained("made")
    monkeypatch.chdir(tmp_path / "other")
    load_as_trained(ModelConfig(path=str(tmp_path / "made")))
    settings = tmp_path / "made" / "adapter_config.json"
    for start, relative in ((tmp_path / "other", "../m/base"), (tmp_path, "m/base")):  # from the adapter, from here
        monkeypatch.chdir(start)
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {BASE: relative}))
        further = load_policy(ModelConfig(path=str(tmp_path / "made")), PeftConfig(method="lora", r=2), seed=0)
        further.save_pretrained(tmp_path / "further")
        assert json.loads((tmp_path / "further" / settings.name).read_text())[BASE] == str(base)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft reads it under its old name
def test_the_reason_why_a_resized_adapter_does_not_fit(base: Path, tmp_path: Path) -> None:
    resized = LlamaForCausalLM.from_pretrained(base)
    resized.resize_token_embeddings(94)
    adapter = get_peft_model(resized, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"]))
    adapter.save_pretrained(str(tmp_path / "resized"), save_embedding_layers=False)
    said = refusal(tmp_path / "resized")
    assert "size mismatch" in said
    assert "embed_tokens" in said
    assert "[94, 16]" in said
    assert "resized for new tokens" in said


def test_a_tokenizer_is_found_from_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer().save_pretrained("数据")
    assert len(load_tokenizer(ModelConfig(path="数据"))) == len(AutoTokenizer.from_pretrained("数据"))
