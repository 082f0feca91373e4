"""The loop: events in their order, early stopping, records that come from somewhere else than a data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from prefopt.engine.reference.table import ReferenceTable
from prefopt.engine.scoring import score
from prefopt.errors import UserError
from prefopt.losses.registry import load
from prefopt.plugin import Data
from prefopt.train import BatchConfig, Feed, PreferenceTrainer, setup
from prefopt.train.settings import RunReference, Settings
from prefopt.train.sources.source import GlobalBatch, RecordSource
from tests.train import tiny

DATA = tiny.records(Data.PAIRS, 8)
STEPS = {"batch": BatchConfig(records=4), "max_steps": 2}


class Events(TrainerCallback):
    """Every event, by its name and the step before it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)
        return lambda args, state, control, **_: self.seen.append((name, state.global_step))


def test_callbacks_get_the_events_in_their_order(tmp_path: Path) -> None:
    events = Events()
    tiny.run(load("dpo"), DATA, tmp_path, callbacks=[events], eval=DATA, eval_strategy="steps", eval_steps=2,
             save_strategy="steps", save_steps=2, **STEPS)  # fmt: skip
    step = ["on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_log"]
    evaluation = ["on_prediction_step", "on_prediction_step", "on_log", "on_evaluate"]
    names = ["on_init_end", "on_train_begin", "on_epoch_begin", *step, *step, *evaluation, "on_save", "on_epoch_end",
             "on_log", "on_train_end"]  # fmt: skip
    assert [name for name, _ in events.seen] == names
    assert [at for name, at in events.seen if name == "on_step_end"] == [1, 2]


def test_a_callback_stops_training_by_its_control(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step == 3

    kept = tiny.run(load("dpo"), DATA, tmp_path, callbacks=[Stop()], batch=BatchConfig(records=4), max_steps=10)
    assert kept.trainer.state.global_step == 3


# ---- early stopping

STOPPING: dict[str, Any] = {
    "batch": BatchConfig(records=4), "max_steps": 12, "eval": DATA, "eval_strategy": "steps", "eval_steps": 1,
    "early_stopping_patience": 3, "metric_for_best_model": "rewards/margins", "greater_is_better": False,
    "save_strategy": "steps", "save_steps": 1,
}  # fmt: skip


def test_early_stopping_ends_a_run_and_a_resume_of_it(tmp_path: Path) -> None:
    """The margin rises with every step, and is not meant to."""
    kept = tiny.run(load("dpo"), DATA, tmp_path, **STOPPING)
    assert kept.trainer.state.global_step == 4, "the first evaluation was the best, and three were worse"
    again = tiny.run(load("dpo"), DATA, tmp_path, resume=tmp_path / "checkpoint-4", **STOPPING)
    assert again.trainer.state.global_step == 4
    assert again.gradients == [], "nothing is trained again"
    earlier = tiny.run(load("dpo"), DATA, tmp_path, resume=tmp_path / "checkpoint-2", **STOPPING)
    assert earlier.trainer.state.global_step == 4, "evaluations before the resume count"
    lenient = STOPPING | {"early_stopping_threshold": 1e6, "greater_is_better": True}
    assert tiny.run(load("dpo"), DATA, tmp_path / "lenient", **lenient).trainer.state.global_step == 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"early_stopping_patience": 0}, "early_stopping_patience=0 must be at least 1"),
        ({"early_stopping_patience": 2}, "counts evaluations, and there are none: set trainer.eval_strategy=steps"),
        (STOPPING | {"metric_for_best_model": "reward"}, "metric_for_best_model=reward is not a figure"),
    ],
)
def test_early_stopping_that_could_never_stop_is_refused(options: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        tiny.run(load("dpo"), DATA, tmp_path, **options)


# ---- compiled layers


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # dynamo's own
@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_compiled_layers_train_as_plain_ones(layout: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch": BatchConfig(records=4, layout=layout), "max_steps": 1}
    plain = tiny.run(load("dpo"), DATA, tmp_path, **options)
    compiled = tiny.run(load("dpo"), DATA, tmp_path, torch_compile=True, torch_compile_backend="eager", **options)
    assert compiled.losses == plain.losses
    assert tiny.apart(compiled.weights, plain.weights) < 1e-9


@pytest.mark.filterwarnings("ignore")
def test_compiled_layers_with_other_log_probs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "TOLERANCE", {torch.float64: -1.0})
    with pytest.raises(UserError, match="torch_compile changes log-probs by 0 nats a token in the layout tree"):
        tiny.run(load("dpo"), DATA, tmp_path, torch_compile=True, torch_compile_backend="eager", **STEPS)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"torch_compile: the layers of LlamaForCausalLM cannot be compiled .*nowhere"):
        tiny.run(load("dpo"), DATA, tmp_path, torch_compile=True, torch_compile_backend="nowhere", **STEPS)


# ---- another source


class Drawn(RecordSource):
    """Records that are drawn anew for each step, after the step before it; their reference is scored as they come."""

    prefetch = False
    records = 4

    def __init__(self, needs: Any, reference: Any) -> None:
        self.needs, self.reference, self.asked = needs, reference, []

    def __len__(self) -> int:
        return 3

    def step(self, index: int) -> GlobalBatch:
        self.asked.append(index)
        chosen = torch.randint(len(DATA), (self.records,)).tolist()  # as a sampler would use the random generators
        drawn = [replace(DATA[i], id=f"{index}-{n}") for n, i in enumerate(chosen)]
        feed = Feed(drawn, self.needs, whole=False, seed=0)
        return GlobalBatch(feed, np.arange(len(feed)), ReferenceTable.of(score(self.reference, feed, tokens=True)))

    def fingerprint(self) -> str:
        return "drawn"


def drawing(folder: Path, loss: Any, callbacks: Any) -> tuple[PreferenceTrainer, Drawn]:
    made = tiny.make(loss, DATA, folder, save_strategy="steps", save_steps=1, batch=BatchConfig(records=4), max_steps=5)
    source = Drawn(loss.needs, tiny.model())
    settings = Settings(output_dir=folder, callbacks=callbacks)
    reference = RunReference(tables=made.tables, is_start=True)
    return PreferenceTrainer(made.policy, loss, made.args, {"train": source}, made.batcher, reference, settings), source


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_records_may_be_drawn_step_by_step(name: str, tmp_path: Path) -> None:
    """The loss of the first step is the plugin's value, and a resume draws the same records."""
    loss, order = load(name), []

    class Order(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            order.append((state.global_step, list(source.asked)))

    trainer, source = drawing(tmp_path, loss, [Order()])
    trainer.train()
    assert order == [(n, list(range(n + 1))) for n in range(5)], "a step is drawn when the one before it was made"
    logs = [log["loss"] for log in trainer.state.log_history if "learning_rate" in log]
    assert logs[0] == pytest.approx({"dpo": 0.6931, "kto": 0.5}[name], abs=1e-4)
    for checkpoint in ("checkpoint-2", "checkpoint-3"):  # the middle of an epoch, and its end
        resumed, _ = drawing(tmp_path, loss, [])
        resumed.train(tmp_path / checkpoint)
        assert [log["loss"] for log in resumed.state.log_history if "learning_rate" in log] == logs
        assert tiny.apart(dict(resumed.model.named_parameters()), dict(trainer.model.named_parameters())) == 0.0
