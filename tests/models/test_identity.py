"""A model's digest: what it is read from counts, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefopt.models.identity import digest_of_weights


def test_weights_have_a_digest(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    first = digest_of_weights(str(tmp_path))
    (tmp_path / "readme.txt").write_text("no matter")
    assert digest_of_weights(str(tmp_path)) == first
    (tmp_path / "model.safetensors").write_bytes(b"abd")
    assert digest_of_weights(str(tmp_path)) != first
    assert digest_of_weights("org/model") == "org/model"


@pytest.mark.parametrize(
    "name", ["weights.gguf", "pytorch_model.bin", "tokenizer.model", "merges.txt", "additional_chat_templates/a.jinja"]
)
def test_whatever_a_model_is_read_from_counts(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    digests = {digest_of_weights(str(tmp_path))}
    for content in ("abc", "abd"):
        (tmp_path / name).write_text(content)
        digests.add(digest_of_weights(str(tmp_path)))
    assert len(digests) == 3


def test_what_is_compared_below_a_model_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    first = digest_of_weights(str(tmp_path))
    for name in ("compare/jobs/k/arrays.safetensors", "run/final/model.safetensors", ".git/config.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "run" / "manifest.json").write_text("{}")
    assert digest_of_weights(str(tmp_path)) == first


def test_an_adapter_counts_with_the_model_below_it(tmp_path: Path) -> None:
    adapter, below = tmp_path / "adapter", tmp_path / "below"
    adapter.mkdir()
    below.mkdir()
    (below / "model.safetensors").write_bytes(b"abc")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(below)}))
    first = digest_of_weights(str(adapter))
    (below / "model.safetensors").write_bytes(b"abd")
    assert digest_of_weights(str(adapter)) != first
