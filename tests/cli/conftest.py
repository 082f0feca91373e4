"""What a user brings, a folder with a tiny model and a small file of pairs; and finished runs on them."""

from __future__ import annotations

import json
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from matplotlib.figure import Figure
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt import worlds
from prefopt.cli import main
from prefopt.worlds.build import WorldFiles
from tests.data.tiny import tokenizer


@pytest.fixture(autouse=True)
def sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not rendered, which takes a third of a tiny run; tests/report renders them."""

    def sketch(figure: Figure, file: Path | StringIO, **options: Any) -> None:
        file.write("<svg></svg>") if isinstance(file, StringIO) else file.write_bytes(b"")

    monkeypatch.setattr(Figure, "savefig", sketch)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    made = tokenizer()
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(made),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            eos_token_id=made.eos_token_id,
            bos_token_id=None,
        )
    ).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [
        {"prompt": f"Is {i} even?", "chosen": f"{i % 2 == 0}.", "rejected": f"I do not know {i}."} for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Run:
    """`prefopt train` on the small file, in this process."""

    def __init__(self, model: Path, data: Path, out: Path) -> None:
        self.given = [
            "model=local", f"model.path={model}", "data=auto", f"data.path={data}", f"output_dir={out}",
            "data.eval_records=8", "batch.records=8", "trainer.max_steps=4", "trainer.learning_rate=1e-3",
            "evaluation.max_new_tokens=4", "evaluation.kl_prompts=4", "trainer.warmup_steps=0",
        ]  # fmt: skip
        self.out = out

    def __call__(self, *overrides: str) -> int:
        names = {o.split("=")[0] for o in overrides}
        return main(["train", *(g for g in self.given if g.split("=")[0] not in names), *overrides])


def tmp_run(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(model, data, tmp_path_factory.mktemp("run") / "out")


@pytest.fixture(scope="session")
def finished(model_folder: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, for tests that only read it."""
    run = tmp_run(model_folder, pairs_file, tmp_path_factory)
    assert run() == 0
    return run.out


@pytest.fixture(scope="session")
def tuned(model_folder: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run that has visibly changed the model, for tests that only read it."""
    run = tmp_run(model_folder, pairs_file, tmp_path_factory)
    assert run("trainer.learning_rate=1e-2", "trainer.max_steps=8") == 0
    return run.out


@pytest.fixture
def world_run(
    tuned: Path, model_folder: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The folder of a run on a world with another seed; to name the default world's model fails."""
    files = WorldFiles(base=model_folder, model=model_folder, train=pairs_file, validation=pairs_file,
                       test=pairs_file, seconds={})  # fmt: skip

    def found(knobs: object = None, path: str = "world") -> WorldFiles:
        assert knobs == {"seed": 3}, f"the world of {knobs} was asked for"
        return files

    monkeypatch.setattr(worlds, "resolve", found)
    folder = tmp_path / "world_run"
    shutil.copytree(tuned, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"]["path"] = "world"
    config["data"] |= {"path": "world", "world": {"seed": 3}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def run(model_folder: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    return Run(model_folder, pairs_file, tmp_path / "out")
