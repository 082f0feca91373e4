"""Hostile model folders: configs, weights, tokenizers, adapters. Nothing of it is run, and what is missing is said."""

from __future__ import annotations

import json
import pickle
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from prefopt.errors import UserError
from prefopt.models.load import load_model, load_policy, load_tokenizer
from prefopt.models.model_config import ModelConfig
from prefopt.models.peft_config import PeftConfig
from prefopt.runs.run_folder import open_model
from tests.data.tiny import tokenizer
from tests.fuzz.hostile import altered_file, attempt, cases, words
from tests.train import tiny

pytestmark = pytest.mark.filterwarnings("ignore")  # what libraries remark about such files


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny.model(dtype=torch.float32).save_pretrained(folder)
    tokenizer(chat_template="{% for m in messages %}{{ m.content }}{% endfor %}").save_pretrained(folder)
    return folder


@pytest.fixture
def model(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


@pytest.fixture
def adapter(model: Path, tmp_path: Path) -> Path:
    made = load_policy(ModelConfig(path=str(model)), PeftConfig(method="lora", r=2, alpha=4), seed=0)
    made.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def use(folder: Path) -> None:
    """Loaded, and asked for a word."""
    config = ModelConfig(path=str(folder))
    words_of = load_tokenizer(config)
    words_of("a word")
    causal = load_model(config)
    with torch.no_grad():
        causal(input_ids=torch.tensor([[1, 2, 3]]))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_tokenizers(name: str, model: Path) -> None:
    original = (model / name).read_bytes()

    @cases(0.003)
    @given(altered_file(original))
    def check(content: bytes) -> None:
        (model / name).write_bytes(content)
        attempt(lambda: load_tokenizer(ModelConfig(path=str(model)))("a word"))

    check()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "generation_config.json"])
def test_models(name: str, model: Path) -> None:
    original = (model / name).read_bytes()

    @cases(0.003)
    @given(altered_file(original))
    def check(content: bytes) -> None:
        (model / name).unlink()  # what is mapped stays as it is
        (model / name).write_bytes(content)
        attempt(lambda: load_model(ModelConfig(path=str(model))))

    check()


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_adapters(name: str, adapter: Path) -> None:
    original = (adapter / name).read_bytes()

    @cases(0.003)
    @given(altered_file(original))
    def check(content: bytes) -> None:
        (adapter / name).unlink()
        (adapter / name).write_bytes(content)
        attempt(lambda: load_model(ModelConfig(path=str(adapter))))
        attempt(lambda: open_model(str(adapter)))

    check()


@cases(0.01)
@given(st.one_of(words, words.map(lambda w: f"package:{w}")))
@example(path="a" * 300)  # too long for a file's name
def test_model_paths(path: str) -> None:
    if path != "world":
        attempt(lambda: load_tokenizer(ModelConfig(path=path)))
        attempt(lambda: load_model(ModelConfig(path=path)))


def changed(folder: Path, name: str, **entries: Any) -> None:
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | entries))


class Payload:
    """What a pickle would run."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path(__file__).with_name("payload-was-here"),))


EVIL = "open(__file__ + '.ran', 'w'); raise SystemExit\n"


@pytest.mark.parametrize("where", ["model", "tokenizer", "pickle", "both", "kernel"])
def test_code_in_a_model_folder_is_not_run(where: str, model: Path) -> None:
    (model / "evil.py").write_text(EVIL)
    says = "remote_?code|custom code"
    match where:
        case "model":
            auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
            changed(model, "config.json", model_type="evil", auto_map=auto)
        case "tokenizer":
            changed(
                model, "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.T", None]}
            )
        case "pickle":
            (model / "model.safetensors").unlink()
            (model / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
            says = "model.safetensors"
        case "both":  # of a pickle beside safetensors nothing is read
            (model / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
            says = ""
        case _:
            changed(model, "config.json", attn_implementation="somebody/kernel")
            says = "kernel"
    if says:
        with pytest.raises(UserError, match=says):
            use(model)
    else:
        use(model)
    assert not (model / "evil.py.ran").exists()
    assert not Path(__file__).with_name("payload-was-here").exists()


OUTSIDE = ["w.bin", "../other/model.safetensors", "{other}/model.safetensors", "a/../../other/model.safetensors", "", 3]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "own.safetensors.index.json"])
def test_shards_are_safetensors_in_the_folder(index: str, name: Any, model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    (model / "w.bin").write_bytes(pickle.dumps(Payload()))
    if isinstance(name, str):
        name = name.format(other=other)
    (model / index).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, name)}))
    if index.startswith("own"):
        changed(model, "config.json", transformers_weights=index)
    with pytest.raises(UserError, match="weight_map names"):
        load_model(ModelConfig(path=str(model)))
    assert not Path(__file__).with_name("payload-was-here").exists()


def test_a_model_in_several_shards_is_loaded(model: Path) -> None:
    whole = load_model(ModelConfig(path=str(model)))
    (model / "model.safetensors").unlink()
    whole.save_pretrained(model, max_shard_size="20KB")
    assert len(list(model.glob("model-*.safetensors"))) > 1
    again = load_model(ModelConfig(path=str(model)))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("file", "entries"),
    [
        ("config.json", {"transformers_weights": "adapter_model.bin"}),
        ("config.json", {"transformers_weights": "../other/model.safetensors"}),
        ("config.json", {"configuration_files": ["../other/config.4.0.0.json"]}),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["../other/tokenizer.4.0.json"]}),
        ("tokenizer_config.json", {"gguf_file": "/other/model.gguf"}),
        ("tokenizer_config.json", {"merges_file": "/other/merges.txt"}),
    ],
)
def test_configs_name_no_file_outside_the_folder(file: str, entries: dict[str, Any], model: Path) -> None:
    changed(model, file, **entries)
    with pytest.raises(UserError, match=f"{file}: {next(iter(entries))}"):
        use(model)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("name", ["LlamaForCausalLM", "LlamaForCausalLMFast", "AutoTokenizer", "pipeline",
                                  "BasicTokenizer", "HiggsAudioV2TokenizerModel", ["LlamaTokenizer"]])  # fmt: skip
def test_a_tokenizer_class_is_a_tokenizer(name: Any, file: str, model: Path) -> None:
    changed(model, file, tokenizer_class=name)
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UserError, match=r"tokenizer_class=.* is not a tokenizer"):
        load_tokenizer(ModelConfig(path=str(model)))


def replaces(times: int) -> dict[str, Any]:
    one = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
    return {"type": "Sequence", "normalizers": [one] * times}


def splits(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"normalizer": replaces(9)}, "1e\\+09 times as long"),
        ({"decoder": {"type": "Replace", "pattern": {"Regex": "."}, "content": "b" * 100}}, "100 times as long"),
        ({"pre_tokenizer": splits("(a+)+$")}, "regular expression"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [splits(r"(\w|\d)*x")]}}, "regular expression"),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": "(a|aa)+b"}, "content": ""}}, "regular expression"),
        ({"post_processor": {"type": "TemplateProcessing", "pair": [], "special_tokens": {},
                             "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 1000}}, "1e\\+03 times"),
    ],
)  # fmt: skip
def test_a_tokenizer_without_bounds_is_refused(entries: dict[str, Any], says: str, model: Path) -> None:
    changed(model, "tokenizer.json", **entries)
    began = time.process_time()
    with pytest.raises(UserError, match=rf"tokenizer\.json: .*{says}"):
        load_tokenizer(ModelConfig(path=str(model)))
    assert time.process_time() - began < 20


@pytest.mark.parametrize(
    "name", ["PreTrainedTokenizerFast", "TokenizersBackend", "CodeGenTokenizer", "GPT2TokenizerFast", "OursTokenizer"]
)
def test_tokenizer_classes_that_are_read(name: str, model: Path) -> None:
    changed(model, "tokenizer_config.json", tokenizer_class=name)
    assert load_tokenizer(ModelConfig(path=str(model)))("a word").input_ids


def test_weights_that_are_not_there_are_not_made_up(model: Path) -> None:
    """transformers fills them with random numbers, and prints a warning."""
    weights = load_file(model / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 of the weights .*layers\.1\.mlp\.up_proj"):
        load_model(ModelConfig(path=str(model)))


def test_a_config_of_millions_of_layers_is_refused_at_once(model: Path) -> None:
    changed(model, "config.json", num_hidden_layers=10**7)
    with pytest.raises(UserError, match="10000000 layers"):
        load_model(ModelConfig(path=str(model)))


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "megatron"),
        ({"target_modules": "(.+)+_proj$"}, "unlimited time"),
        ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING"),
        ({"base_model_name_or_path": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"base_model_name_or_path": "package:os.path"}, "not installed"),
        ({"base_model_name_or_path": ["a"]}, "does not name the model"),
    ],
)
def test_what_an_adapter_may_not_say(entries: dict[str, Any], says: str, adapter: Path) -> None:
    changed(adapter, "adapter_config.json", **entries)
    with pytest.raises(UserError, match=says):
        load_model(ModelConfig(path=str(adapter)))


def test_an_adapter_on_an_adapter_is_refused(adapter: Path) -> None:
    changed(adapter, "adapter_config.json", base_model_name_or_path=str(adapter))
    with pytest.raises(UserError, match="adapter itself"):
        load_model(ModelConfig(path=str(adapter)))


def test_an_adapter_as_a_pickle_is_refused(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UserError, match=r"adapter_model\.safetensors"):
        load_model(ModelConfig(path=str(adapter)))
