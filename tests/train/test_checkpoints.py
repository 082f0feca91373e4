"""Checkpoints are whole or absent, and a resumed run is the run that was never stopped."""

from __future__ import annotations

import json
import os
import re
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prefopt.common.files import write_link
from prefopt.errors import TrainingError, UserError
from prefopt.losses.registry import load
from prefopt.plugin import Data
from prefopt.train import BatchConfig, PreferenceTrainer, saving
from prefopt.train.callbacks import MetricsFile
from prefopt.train.checkpoints import checkpoints, rotate, writing
from tests.train import tiny

DATA = tiny.records(Data.PAIRS, 12)  # an epoch is 3 steps of 4


def loss_and_options(name: str) -> tuple[Any, dict[str, Any]]:
    """A run of 5 steps, over the end of an epoch, saved at each."""
    hyper: dict[str, Any] = {"tr_dpo": {"tau": 2}}.get(name, {})
    options = {
        "batch": BatchConfig(records=4, max_tokens=60),
        "max_steps": 5,
        "save_strategy": "steps",
        "save_steps": 1,
    }
    return load(name, **hyper), options


def _names(folder: Path) -> list[str]:
    return [p.name for p in checkpoints(folder)]


@pytest.mark.parametrize(
    ("name", "step", "workers"),
    [("dpo", 2, 0), ("dpo", 3, 1), ("dpo", 4, 1), ("bco", 2, 0), ("beta_dpo", 3, 0), ("tr_dpo", 3, 0), ("kto", 4, 0)],
)
def test_resumed_run_is_bit_identical(name: str, step: int, workers: int, tmp_path: Path) -> None:
    """From the middle of an epoch, its end, and the next; with running state, with a reference that moves."""
    loss, options = loss_and_options(name)
    options |= {"dataloader_num_workers": workers}
    whole = tiny.run(loss, DATA, tmp_path, **options)
    resumed = tiny.run(loss, DATA, tmp_path, resume=tmp_path / f"checkpoint-{step}", **options)
    assert [log["step"] for log in resumed.logs] == [1, 2, 3, 4, 5]
    assert resumed.losses == whole.losses
    assert [g.keys() for g in resumed.gradients] == [g.keys() for g in whole.gradients[step:]]
    for one, other in zip(resumed.gradients, whole.gradients[step:], strict=True):
        assert tiny.apart(one, other) == 0.0
    assert tiny.apart(resumed.weights, whole.weights) == 0.0


def test_a_full_disk_is_a_named_error_and_leaves_the_earlier_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real writes that really fail: in step 2 no file may grow beyond 1 kB."""
    save = saving.save_optimizer
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_a_full_disk(*given: Any, **kw: Any) -> None:
        if given[3].name == "tmp-checkpoint-2":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            save(*given, **kw)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(saving, "save_optimizer", on_a_full_disk)
    loss, options = loss_and_options("dpo")
    with pytest.raises(TrainingError, match=r"could not write .*checkpoint-2: .*earlier checkpoints are untouched"):
        tiny.run(loss, DATA, tmp_path, **options)
    assert _names(tmp_path) == ["checkpoint-1"]
    assert (tmp_path / "last").resolve() == tmp_path / "checkpoint-1"
    assert not list(tmp_path.glob("tmp-*"))


def test_a_resume_with_something_else_is_refused_by_name(tmp_path: Path) -> None:
    loss, options = loss_and_options("dpo")
    options |= {"max_steps": 2}
    tiny.run(loss, DATA, tmp_path, **options)
    ipo = load("ipo")
    retokenized = replace(DATA[11], prompt=DATA[11].prompt[::-1] + 1)  # of the same lengths
    other: list[tuple[str, Any, Any, Any]] = [
        (f"another loss ({loss}, now {load('dpo', beta=0.2)})", load("dpo", beta=0.2), DATA, {}),
        ("other records", loss, DATA[:11], {}),
        ("other records", loss, [*DATA[:11], retokenized], {}),
        ("other held-out records", loss, DATA, {"eval": DATA[:2]}),
        ("another batch.records (4, now 6)", loss, DATA, {"batch": BatchConfig(records=6)}),
        ("another seed (0, now 1)", loss, DATA, {"seed": 1}),
        ("other starting weights and another reference", loss, DATA, {"policy": tiny.model(seed=1)}),
        (f"another loss ({loss}, now {ipo}) and other records", ipo, DATA[1:], {}),
        ("another trainer.learning_rate (0.01, now 0.02)", loss, DATA, {"learning_rate": 2e-2}),
        ("another trainer.lr_scheduler_type (cosine, now linear)", loss, DATA, {"lr_scheduler_type": "linear"}),
        ("another trainer.warmup_steps (0, now 1)", loss, DATA, {"warmup_steps": 1}),
        ("another trainer.optim (adamw_torch_fused, now sgd)", loss, DATA, {"optim": "sgd"}),
        ("another trainer.weight_decay (0.0, now 0.1)", loss, DATA, {"weight_decay": 0.1}),
        ("another trainer.max_grad_norm (0.0, now 1.0)", loss, DATA, {"max_grad_norm": 1.0}),
        ("another trainer.data_seed (None, now 7)", loss, DATA, {"data_seed": 7}),
        ("another trainer.max_steps (2, now 3)", loss, DATA, {"max_steps": 3}),
        (
            "another trainer.max_steps (2, now -1) and another trainer.num_train_epochs (None, now 1.0)",
            loss,
            DATA,
            {"max_steps": -1},
        ),
    ]
    for name, other_loss, data, changes in other:
        with pytest.raises(UserError, match=f"it was made with {re.escape(name)};"):
            tiny.run(other_loss, data, tmp_path, resume=tmp_path / "checkpoint-1", **options | changes)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")])
def test_writing_keeps_what_was_there(error: Exception, tmp_path: Path) -> None:
    target = tmp_path / "checkpoint-1"
    with writing(target, writes=True) as folder:
        (folder / "file").write_text("old")

    def fail() -> None:
        with writing(target, writes=True) as folder:
            (folder / "file").write_text("half")
            raise error

    with pytest.raises(TrainingError, match="could not write"):
        fail()
    assert (target / "file").read_text() == "old"
    with writing(target, writes=True) as folder:
        (folder / "file").write_text("new")
    assert (target / "file").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]


def test_a_checkpoint_has_no_code_in_it_and_plain_transformers_loads_it(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    loss, options = loss_and_options("bco")
    kept = tiny.run(loss, DATA, tmp_path, **options)
    folder = tmp_path / "checkpoint-5"
    assert sorted(p.name for p in folder.iterdir()) == [
        "checksums.json", "config.json", "figures.json", "generation_config.json", "loss_state.safetensors",
        "model.safetensors", "optimizer.pt", "rng_state.pth", "run.json", "scheduler.pt", "trainer_state.json",
    ]  # fmt: skip
    torch.load(folder / "optimizer.pt", weights_only=True)
    torch.load(folder / "scheduler.pt", weights_only=True)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    assert tiny.apart(dict(loaded.named_parameters()), kept.weights) == 0.0
    assert "prefopt" not in (folder / "config.json").read_text()
    tokens = torch.from_numpy(DATA[0].completions[0])[None].long()
    assert torch.allclose(loaded(tokens).logits, kept.trainer.model(tokens).logits, atol=1e-6)


def test_rotation_keeps_the_best_and_the_links_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(trainer: PreferenceTrainer, *_: Any, **__: Any) -> dict[str, float]:
        return {"eval_loss": {1: 3.0, 2: 1.0, 3: 2.0, 4: 2.5, 5: 2.2}[trainer.state.global_step]}

    monkeypatch.setattr(PreferenceTrainer, "evaluate", evaluate)
    loss, options = loss_and_options("dpo")
    options |= {
        "eval": DATA, "eval_strategy": "steps", "eval_steps": 1, "save_total_limit": 2,
        "metric_for_best_model": "loss", "greater_is_better": False, "load_best_model_at_end": True,
    }  # fmt: skip
    kept = tiny.run(loss, DATA, tmp_path, **options)
    assert _names(tmp_path) == ["checkpoint-2", "checkpoint-5"]
    assert (tmp_path / "best").resolve() == tmp_path / "checkpoint-2"
    assert (tmp_path / "last").resolve() == tmp_path / "checkpoint-5"
    assert kept.trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    weights = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert tiny.apart({n: w for n, w in kept.weights.items() if n in weights}, weights) == 0.0, "the best was loaded"


def test_rotation_by_steps_not_by_names(tmp_path: Path) -> None:
    for step in (2, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    rotate(tmp_path, 2, None)
    assert _names(tmp_path) == ["checkpoint-10", "checkpoint-100"]
    rotate(tmp_path, 1, str(tmp_path / "checkpoint-10"))
    assert _names(tmp_path) == ["checkpoint-10", "checkpoint-100"], "neither the newest nor the spared"
    (tmp_path / "tmp-old-checkpoint-1").mkdir()  # of a process that was killed here
    rotate(tmp_path, 1, None)
    assert _names(tmp_path) == ["checkpoint-100"]
    assert not list(tmp_path.glob("tmp-*"))
    write_link(tmp_path / "last", tmp_path / "checkpoint-100")
    write_link(tmp_path / "last", tmp_path / "checkpoint-x")
    assert os.readlink(tmp_path / "last") == "checkpoint-x"


def test_metrics_file_after_a_resume_has_each_step_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    loss, options = loss_and_options("dpo")
    tiny.run(loss, DATA, tmp_path, callbacks=[MetricsFile(path)], **options)
    whole = [json.loads(line) for line in path.read_text().splitlines()]
    with path.open("a") as file:
        file.write('{"step": 5, "los')  # a line cut short by a kill
    tiny.run(loss, DATA, tmp_path, resume=tmp_path / "checkpoint-2", callbacks=[MetricsFile(path)], **options)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [line["step"] for line in whole] == [1, 2, 3, 4, 5, 5]
    assert [line.get("loss") for line in lines] == [line.get("loss") for line in whole]
