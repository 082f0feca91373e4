"""What a run does not read of its options is refused: reads are recorded while tiny runs train."""

from __future__ import annotations

import fnmatch
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
from transformers import TrainingArguments

from prefopt.cli import main
from prefopt.config.compose import compose
from prefopt.config.options import CLASSES, group_options, root_keys
from prefopt.config.read_options import RULES, check_read
from prefopt.config.run_config import EvaluationConfig
from prefopt.config.tracking import TrackingConfig
from prefopt.data.data_config import DataConfig
from prefopt.errors import UserError
from prefopt.models.model_config import ModelConfig
from prefopt.models.peft_config import PeftConfig
from prefopt.train.batch_config import BatchConfig
from prefopt.train.sentinels import SentinelConfig
from prefopt.train.sources.rollout_config import RolloutConfig
from tests.cli.conftest import Run

GROUPS: dict[str, type[Any]] = {
    "model": ModelConfig, "peft": PeftConfig, "data": DataConfig, "batch": BatchConfig, "trainer": TrainingArguments,
    "evaluation": EvaluationConfig, "sentinels": SentinelConfig, "rollout": RolloutConfig, "tracking": TrackingConfig,
}  # fmt: skip
COPIED = ("dataclasses", "copy", "transformers.training_args", "transformers.utils.generic")  # no use of a value
# Not recorded though a run reads them, or refused by the configuration's own checks.
OTHERWISE = {
    "data.eval_fraction": "excludes data.eval_records, which these runs give",
    "data.num_proc": "of tokens that are not in the cache",
    "data.world": "refused with a path",
    "rollout.allow_argmax": "decides about a check",
    "rollout.correction": "refused with the own sampler",
    "rollout.max_stale": "refused with the own sampler",
    "rollout.sampler": "decides what is checked and built",
    "rollout.url": "refused with the own sampler",
    "tracking.report_to": "of no tracker",
    "trainer.ddp_backend": "of several processes",
    "trainer.ddp_timeout": "of several processes",
    "trainer.early_stopping_patience": "no field of transformers' arguments",
    "trainer.log_level": "read by transformers' arguments themselves",
    "trainer.num_train_epochs": "trainer.max_steps, which these runs give, comes first",
    "trainer.router_aux_loss": "no field of transformers' arguments",
    "trainer.save_total_limit": "of the checkpoint that a signal leaves, too",
    "trainer.torch_compile_backend": "turns trainer.torch_compile on",
    "trainer.torch_compile_mode": "turns trainer.torch_compile on",
    "trainer.use_cpu": "read by transformers' arguments themselves",
}
# Computed or handed over, whether or not what takes them uses them.
PASSED_ON = {"model.revision", "trainer.eval_steps", "trainer.optim_target_modules", "trainer.save_steps"}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The options whose values are used: not those that are only checked, copied or written down."""
    seen: set[str] = set()

    def recording(group: str, names: set[str]) -> Callable[[Any, str], Any]:
        def get(self: Any, name: str) -> Any:
            if name in names:
                frame = sys._getframe(1)
                caller = frame.f_code.co_name
                if frame.f_globals.get("__name__") not in COPIED and not caller.lstrip("_").startswith(
                    ("check", "repr")
                ):
                    seen.add(f"{group}.{name}")
            return object.__getattribute__(self, name)

        return get

    for group, cls in GROUPS.items():
        names = {option.name.partition(".")[2] for option in group_options(group)}
        monkeypatch.setattr(cls, "__getattribute__", recording(group, names), raising=False)
    return seen


def longer(prompts: list[str], texts: list[str]) -> list[float]:
    return [float(len(text)) for text in texts]


@pytest.mark.parametrize(
    "words",
    [
        [],
        pytest.param(
            ["source=rollouts", f"reward={__name__}:longer", "peft=lora", "trainer.eval_strategy=no"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_option_is_read_or_refused(run: Run, reads: set[str], words: list[str]) -> None:
    assert run(*words) == 0
    read, config = set(reads), compose([*run.given, *words])
    wrong = {}
    for option in (option.name for group in CLASSES for option in group_options(group)):
        try:
            check_read([f"{option}=3"], [config])
        except UserError:
            if option in read - PASSED_ON:
                wrong[option] = "is refused, and read"
        else:
            if option not in read | set(OTHERWISE):
                wrong[option] = "is neither read nor refused"
    assert wrong == {}


@pytest.mark.parametrize(
    ("word", "remedy"),
    [("peft.r=4", "peft=lora"), ("rollout.num_generations=8", "source=rollouts"),
     ("tracking.mode=offline", "tracking=wandb"), ("tracking.project=ours", "tracking=wandb"),
     ("trainer.eval_steps=4", "trainer.eval_strategy=steps"),
     ("trainer.eval_delay=4", "trainer.eval_strategy=steps"), ("trainer.save_steps=4", "trainer.save_strategy=steps"),
     ("trainer.greater_is_better=true", "trainer.eval_strategy=steps"),
     ("trainer.save_only_model=true", "trainer.save_strategy=epoch"),
     ("trainer.early_stopping_threshold=.1", "trainer.early_stopping_patience=3"),
     ("trainer.adam_beta1=.8", "trainer.optim=adamw_torch"),
     ("trainer.activation_checkpointing_kwargs={every_n_layers: 2}", "trainer.activation_checkpointing=true")],
)  # fmt: skip
def test_what_makes_an_option_read_is_named(run: Run, word: str, remedy: str) -> None:
    given = [word for word in run.given if not word.startswith("source")]
    other = ["trainer.optim=sgd"] if "adam" in word else []
    config = compose([*given, *other, word])
    with pytest.raises(
        UserError, match=f"{re.escape(word)}: with these options nothing reads it; .*{remedy.split('=')[0]}"
    ):
        check_read([word], [config])
    online = ["reward=m:f"] if remedy == "source=rollouts" else []
    check_read([word], [config, compose([*given, word, remedy, *online])])  # a stage or another row reads it


def test_a_run_and_a_plan_refuse_what_they_would_ignore(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("peft.r=4") == 2
    assert "peft.r=4: with these options nothing reads it; add peft=lora, or leave it out" in capsys.readouterr().err
    assert main(["plan", *run.given, "rollout.temperature=0.5"]) == 2
    assert "add source=rollouts or source=samples" in capsys.readouterr().err
    assert not (run.out / "config.yaml").exists()


def test_presets_and_null_ask_for_nothing(run: Run) -> None:
    check_read(["tracking.mode=null", "peft=none", "rollout=default"], [compose(run.given)])


def test_what_several_runs_decide_is_left_to_them(run: Run) -> None:
    config = compose(run.given)
    check_read(["peft=none,lora", "peft.r=4"], [config], multirun=True)
    with pytest.raises(UserError, match=r"peft\.r=4"):
        check_read(["seed=0,1", "peft.r=4"], [config], multirun=True)


def test_a_rule_is_of_options_that_there_are() -> None:
    known = [*root_keys(), *(option.name for group in CLASSES for option in group_options(group))]
    for rule in RULES:
        assert all(fnmatch.filter(known, pattern) for pattern in rule.options), rule.options
