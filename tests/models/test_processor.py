"""Processors for images load without torchvision and without their authors' code, and survive copies."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RemoteEntryNotFoundError
from safetensors.torch import load_file, save_file

from prefopt.common.digest import of_json
from prefopt.data.images.inputs import inputs_of
from prefopt.errors import PrefoptError, UserError
from prefopt.models import processor
from prefopt.models.export_folder import check, export_model
from prefopt.models.load import load_as_trained, load_model, load_tokenizer
from prefopt.models.model_config import ModelConfig
from prefopt.models.processor import load_image_inputs
from tests.models import pictures

RESPONSE: Any = SimpleNamespace(headers={}, request=None)


@pytest.fixture(scope="module", params=["qwen2_vl", "gemma3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return pictures.save(request.param, tmp_path_factory.mktemp(request.param))


def test_a_processor_loads_with_pillow_alone(folder: str) -> None:
    inputs = load_image_inputs(folder)
    assert inputs is not None
    assert type(inputs.processor.image_processor).__name__.endswith("Pil")
    assert find_spec("torchvision") is None or "torchvision" not in sys.modules
    part = inputs.expansions(((16, 16),))[0]
    assert part.places > 0


def test_copies_of_a_model_and_processes_of_a_loader_keep_it(folder: str) -> None:
    model = load_model(ModelConfig(path=folder))
    inputs = inputs_of(model)
    assert inputs is not None
    assert inputs_of(copy.deepcopy(model)) is inputs
    other = pickle.loads(pickle.dumps(inputs))
    assert other.expansions(((16, 16),)) == inputs.expansions(((16, 16),))
    assert other.settings == inputs.settings
    tokenizer = pickle.loads(pickle.dumps(load_tokenizer(ModelConfig(path=folder))))
    assert inputs_of(tokenizer).processor.tokenizer is tokenizer  # type: ignore[union-attr]


def test_code_of_the_author_is_not_run(folder: str, tmp_path: Path) -> None:
    target = tmp_path / "model"
    load_model(ModelConfig(path=folder)).save_pretrained(target)
    for file in Path(folder).iterdir():
        if not (target / file.name).exists():
            (target / file.name).write_bytes(file.read_bytes())
    settings = json.loads((target / "processor_config.json").read_text())
    settings["auto_map"] = {"AutoProcessor": "evil.Evil", "AutoImageProcessor": "evil.Evil"}
    settings["image_processor"]["auto_map"] = {"AutoImageProcessor": "evil.Evil"}
    (target / "processor_config.json").write_text(json.dumps(settings))
    (target / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    assert inputs_of(load_tokenizer(ModelConfig(path=str(target), trust_remote_code=True))) is not None
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_its_processor_names_the_file(folder: str, tmp_path: Path) -> None:
    model = load_model(ModelConfig(path=folder))
    model.save_pretrained(tmp_path)
    load_tokenizer(ModelConfig(path=folder)).save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").unlink(missing_ok=True)
    if type(model).__name__.startswith("Gemma3"):  # transformers has a class for its texts alone
        assert inputs_of(load_model(ModelConfig(path=str(tmp_path)))) is None
        return
    with pytest.raises(UserError, match=r"processor_config\.json"):
        load_model(ModelConfig(path=str(tmp_path)))


def copied(folder: str, target: Path, **config: Any) -> Path:
    """A copy of a model with these entries in its config."""
    shutil.copytree(folder, target)
    settings = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(settings | config))
    return target


def test_a_model_of_its_authors_code_takes_no_images(folder: str, tmp_path: Path) -> None:
    target = copied(folder, tmp_path / "model", model_type="of_its_author")
    assert load_image_inputs(str(target)) is None
    tokenizer = load_tokenizer(ModelConfig(path=str(target), trust_remote_code=True))
    assert inputs_of(tokenizer) is None


def test_an_adapter_keeps_the_template_of_its_training(folder: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": folder, "peft_type": "LORA"}))
    tokenizer = load_tokenizer(ModelConfig(path=folder))
    tokenizer.chat_template = "{{ 'trained' }}"
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(ModelConfig(path=str(tmp_path)))
    assert inputs_of(loaded) is not None
    assert loaded.chat_template == "{{ 'trained' }}"


def test_settings_of_the_processor_itself_are_part_of_the_digest(tmp_path: Path) -> None:
    """By these LLaVA counts the places of an image, whose pixels stay the same."""
    folder = pictures.save("llava", tmp_path / "llava")

    def digest(**changed: Any) -> str:
        other = shutil.copytree(folder, tmp_path / of_json(changed))
        settings = json.loads((other / "processor_config.json").read_text())
        (other / "processor_config.json").write_text(json.dumps(settings | changed))
        inputs = load_image_inputs(str(other))
        assert inputs is not None
        return inputs.settings

    before = digest()
    assert digest(num_additional_image_tokens=2) != before
    assert digest(chat_template="another") == before


@pytest.mark.parametrize(
    ("problem", "offline", "expected"),
    [
        (RemoteEntryNotFoundError("absent", response=RESPONSE), False, False),
        (LocalEntryNotFoundError("not in the cache"), True, False),
        (LocalEntryNotFoundError("no connection"), False, None),
        (HfHubHTTPError("busy", response=RESPONSE), False, None),
    ],
)
def test_a_hub_that_does_not_answer_is_no_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, problem: Exception, offline: bool, expected: bool | None
) -> None:
    def asked(*_: Any, **__: Any) -> str:
        raise problem

    monkeypatch.setattr(processor, "hf_hub_download", asked)
    monkeypatch.setattr(processor, "is_offline_mode", lambda: offline)
    if expected is None:
        with pytest.raises(OSError, match=r"no connection|busy"):
            processor.has_processor("some/model")
    else:
        assert processor.has_processor("some/model") is expected
    processor.copy_processor("some/model", tmp_path)  # at the end of a run, which stays good
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_export_sees_what_the_model_sees(folder: str, tmp_path: Path) -> None:
    config = ModelConfig(path=folder)
    model, tokenizer, target = load_model(config), load_tokenizer(config), tmp_path / "exported"
    found = export_model(model, load_as_trained(config), tokenizer, target, source=folder)
    assert found.error <= found.tolerance
    assert found.tokens > 72  # 24 + 20 + 16 + 12 of texts, and those of images
    weights = load_file(target / "model.safetensors")
    name = next(name for name in weights if "visual" in name or ("vision_tower" in name and weights[name].ndim > 1))
    weights[name] = torch.from_numpy(np.random.default_rng(0).normal(size=weights[name].shape).astype(np.float32))
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PrefoptError, match="not those of the run"):  # texts alone would not show it
        check(target, load_as_trained(config), tokenizer, torch.float32)
