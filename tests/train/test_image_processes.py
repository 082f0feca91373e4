"""Several processes learn from images what one learns, whatever is sharded, computed again, or without an image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.train import image_processes as runs
from tests.train.test_processes import launch
from tests.train.tiny import apart

# LLaVA does not use the last layer of its image model, which DDP must find out.
DONE = {"llava+again": "DistributedDataParallel", "gemma3+again": "DistributedDataParallel",
        "gemma3+fsdp+mixed": "FSDPPolicy", "qwen2_vl+fsdp+mixed+padded": "FSDPPolicy"}  # fmt: skip


@pytest.mark.slow
def test_two_processes_learn_from_images_what_one_learns(tmp_path: Path) -> None:
    """Losses and weights after six steps of gradient descent, in float32, whose sums differ by about 1e-7."""
    runs.write(tmp_path)
    done = launch(2, "tests.train.image_processes", str(tmp_path), str(tmp_path / "2"), *DONE)
    assert done.returncode == 0, done.stderr[-4000:]
    for run, wrapper in DONE.items():
        alone = run.replace("+fsdp", "").replace("+again", "")
        runs.train(alone, tmp_path, tmp_path / "1")
        one, two = (json.loads((tmp_path / n / f"{name}.json").read_text()) for n, name in (("1", alone), ("2", run)))
        assert (two["processes"], two["wrapper"]) == (2, wrapper)
        assert two["losses"] == pytest.approx(one["losses"], abs=1e-6), run
        first, second = (load_file(tmp_path / n / f"{name}.safetensors") for n, name in (("1", alone), ("2", run)))
        assert apart(first, second) < 1e-6, run
