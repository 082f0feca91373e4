"""Values that are wrong whatever the other options are, are refused before torch is loaded."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import typing
from contextlib import nullcontext
from importlib import import_module

import pytest

from prefopt.config.check_values import OF_A_RUN, OF_COMPARE, OUTSIDE_GROUPS, check_values
from prefopt.errors import UserError
from prefopt.train.trainer_config import TrainerConfig


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("batch.records=0", "batch.records=0 must be at least 1"),
        ("+batch.records=x", "batch.records is a whole number, not 'x'"),
        ("batch.max_tokens=null", None),
        ("stages.sft.batch.records=0", "batch.records=0 must be at least 1"),
        ("batch.records=8,0", "batch.records=0 must"),
        ("model.dtype=fp8", "is not one of float32, bfloat16, float16, float64"),
        ("trainer.learning_rate=nan", "must be at least 0 and finite"),
        ("trainer.adam_beta1=1", "must be at least 0 and below 1"),
        ("trainer.max_steps=-1", None),
        ("trainer.bf16=ture", "trainer.bf16 is true or false, not 'ture'"),
        ("trainer.bf16=YES", None),
        ("trainer.lr_scheduler_type=cosin", "did you mean 'cosine'"),
        ("trainer.lr_scheduler_type=cosine_with_min_lr", None),
        ("trainer.optim=adamww", "trainer.optim=adamww is not one of adamw_torch, "),
        ("rollout.label=bt", "rollout.label=bt is not one of BT, SOFT, ARGMAX"),
        ("rollout.label=LabelRule.SOFT", None),
        ("sentinels.kl=-1", "sentinels.kl=-1.0 must be at least 0"),
        ("source=rollout", "source=rollout is not one of .*; did you mean 'rollouts'"),
        ("seed=${oc.env:SEED}", None),
        ("data.mixture=[{path: a}]", None),
        ("data.world.seed=-1", None),  # the world's own to check
        ("not a setting", None),
    ],
)
def test_a_wrong_value_is_refused(word: str, message: str | None) -> None:
    with pytest.raises(UserError, match=message) if message else nullcontext():
        check_values([word])


def test_options_of_a_comparison() -> None:
    check_values(["seeds=5", "budget.max_kl=null", "losses=[dpo]"], OF_COMPARE)
    for word in ("seeds=0", "budget.trials=0", "budget.max_kl=0", "measure.prompts=1"):
        with pytest.raises(UserError, match=rf"{word}(\.0)? must be"):
            check_values([word], OF_COMPARE)


@pytest.mark.parametrize("place", [*OF_A_RUN.values(), *OF_COMPARE.values()])
def test_limits_are_of_options_and_hold_for_the_defaults(place: str) -> None:
    module, _, name = place.removesuffix(".py").replace("/", ".").partition(".py:")
    cls = getattr(import_module(f"prefopt.{module}"), name)
    limits, fields = getattr(cls, "LIMITS", {}), {field.name: field.default for field in dataclasses.fields(cls)}
    assert limits.keys() <= fields.keys()
    assert name not in ("RunConfig", "Comparison") or limits.keys() <= {*OUTSIDE_GROUPS}
    for option, limit in limits.items():
        if fields[option] not in (None, dataclasses.MISSING):
            limit.check(option, fields[option])


def test_every_number_of_the_trainer_has_a_limit() -> None:
    numbers = {name for name, kind in typing.get_type_hints(TrainerConfig).items()
               if {int, float} & {kind, *typing.get_args(kind)}}  # fmt: skip
    assert numbers <= TrainerConfig.LIMITS.keys()


def test_no_class_of_options_loads_torch() -> None:
    modules = {place.partition(".py:")[0].replace("/", ".") for place in (*OF_A_RUN.values(), *OF_COMPARE.values())}
    code = "\n".join([*(f"import prefopt.{module}" for module in modules),
                      "import sys; print({'torch', 'transformers', 'pyarrow', 'hydra'} & {*sys.modules})"])  # fmt: skip
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
