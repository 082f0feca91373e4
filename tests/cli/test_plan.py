"""`prefopt plan` refuses wrong options in one line, and plans a shape without weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from prefopt.cli import main
from prefopt.planning.shape import Shape, shape


def test_wrong_options_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "loss=dppo"]) == 2
    assert main(["plan", "--device", "h10"]) == 2
    assert main(["plan", "--devices", "8"]) == 2
    assert main(["plan", "--records", "8"]) == 2
    assert main(["plan", "--model-shape", "llama3-8b", "data.path=pairs.jsonl"]) == 2
    assert main(["plan", "--model-shape", "llama3-70"]) == 2
    assert main(["plan", "--model-shape", "llama3-8b", "--lengths", "x"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 7
    assert "did you mean 'h100'" in errors[1]
    assert "--records is for --model-shape" in errors[3]
    assert "data.path: `prefopt plan --model-shape` does not read it" in errors[4]


@pytest.mark.parametrize("option", ["peft=lora", "model.dtype=bfloat16", "trainer.fp16=true", "trainer.optim=sgd"])
def test_a_shape_is_not_planned_with_what_it_does_not_count(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model-shape", "llama3-8b", option]) == 2
    assert "counts full tuning in bfloat16" in capsys.readouterr().err


def test_a_shape_is_planned_without_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = LlamaConfig(vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4)  # fmt: skip
    config.save_pretrained(tmp_path)
    assert shape(str(tmp_path)) == Shape.of(config)
    argv = ["plan", "--model-shape", str(tmp_path), "--device", "l4", "--records", "1000", "batch.records=10", "--json"]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 100
    assert found["measured"] is False
    assert {"memory_gib", "traffic_gib", "seconds_per_step", "warnings"} <= found.keys()
