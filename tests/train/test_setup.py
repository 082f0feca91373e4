"""What is checked of options, loss and model before anything is loaded for a run."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import MixtralConfig

from prefopt.errors import UserError
from prefopt.losses import registry
from prefopt.plugin import Data
from prefopt.testing.kit import example
from prefopt.train import BatchConfig
from prefopt.train.arguments import precision_advice, training_arguments
from prefopt.train.metrics import figure_names
from prefopt.train.setup import check_options, check_router_loss
from tests.train import tiny


def check(tmp_path: Path, loss: str = "dpo", **given: Any) -> None:
    check_options(training_arguments(tmp_path, seed=0, records=4, use_cpu=True, **given), registry.load(loss))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rate": -1.0}, "trainer.learning_rate=-1.0 must be at least 0"),
        ({"learning_rate": float("nan")}, "trainer.learning_rate=nan must be"),
        ({"learning_rate": float("inf")}, "trainer.learning_rate=inf must be"),
        ({"adam_beta1": 1.5}, "trainer.adam_beta1=1.5 must be at least 0 and below 1"),
        ({"weight_decay": -1.0}, "trainer.weight_decay=-1.0 must be"),
        ({"max_grad_norm": -1.0}, "trainer.max_grad_norm=-1.0 must be"),
        ({"max_grad_norm": float("nan")}, "trainer.max_grad_norm=nan must be"),
        ({"max_steps": -3}, "trainer.max_steps=-3 must be at least -1"),
        ({"num_train_epochs": float("nan")}, "trainer.num_train_epochs=nan must be"),
        ({"num_train_epochs": -1.0}, "trainer.num_train_epochs=-1.0 must be"),
        ({"data_seed": -1}, "trainer.data_seed=-1 must be at least 0"),
        ({"optim": "lomo"}, "trainer.optim=lomo cannot be used: "),
        ({"optim": "galore_adamw", "optim_target_modules": ["q"]}, "trainer.optim=galore_adamw cannot be used: "),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "trainer.lr_scheduler_type=cosine_with_min_lr cannot be used: "),
        (
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"cycles": 1}},
            "; its arguments are trainer.lr_scheduler_kwargs",
        ),
        ({"metric_for_best_model": "reward/margins"}, "reward/margins is not a figure of the evaluation; did you mean"),
        ({"loss": "sft", "metric_for_best_model": "rewards/margins"}, "rewards/margins is not a figure"),
    ],
)
def test_options_that_cannot_be_used(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        check(tmp_path, **given)


def test_options_that_can(tmp_path: Path) -> None:
    check(tmp_path, learning_rate=0.0, metric_for_best_model="eval_accuracies/logps")
    check(tmp_path, lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": 1e-7}, optim="adafactor")
    check(tmp_path, metric_for_best_model="runtime")


@pytest.mark.parametrize("name", ["dpo", "simpo", "kto", "bco", "sft", "tdpo2", "orpo"])
def test_the_names_of_figures_are_those_of_an_evaluation(name: str, tmp_path: Path) -> None:
    loss = registry.load(name)
    data = tiny.records(loss.needs.data, 8)
    options: dict[str, Any] = {"batch": BatchConfig(records=4), "eval": data[4:]}
    found = tiny.make(loss, data, tmp_path, **options).evaluate()
    names = {name.removeprefix("eval_") for name in found}
    assert names <= figure_names(loss) | {"records", "runtime", "epoch"}


@pytest.mark.parametrize("name", registry.names())
def test_every_loss_has_figures(name: str) -> None:
    loss = example(registry.loss_class(name))
    names = figure_names(loss)
    own = loss.needs.on_policy or loss.needs.opponent
    unknown = own or name in ("tpo", "tpo_l")  # refuse the made-up records: nothing is checked
    always = {"loss", "lengths/chosen"} if loss.needs.reward_model else {"loss", "logps/chosen"}
    assert names == set() if unknown else always <= names


def test_a_router_that_asks_for_its_loss_is_refused() -> None:
    def model(**settings: Any) -> Any:
        config = MixtralConfig(num_hidden_layers=1, num_local_experts=2, **settings)
        return SimpleNamespace(config=config, modules=lambda: iter(()))

    check_router_loss(model(router_aux_loss_coef=0.02), 0.0)  # asked for by none: transformers adds it with the logits
    check_router_loss(model(output_router_logits=True, router_aux_loss_coef=0.0), 0.0)
    asking = model(output_router_logits=True, router_aux_loss_coef=0.02)
    with pytest.raises(
        UserError, match=r"output_router_logits: true, router_aux_loss_coef: 0\.02.*trainer\.router_aux_loss"
    ):
        check_router_loss(asking, 0.0)
    outer = SimpleNamespace(config=SimpleNamespace(text_config=asking.config), modules=lambda: iter(()))
    with pytest.raises(UserError, match="auxiliary loss"):
        check_router_loss(outer, 0.0)
    check_router_loss(asking, 0.02)
    with pytest.raises(UserError, match=r"trainer\.router_aux_loss=-1\.0 must be"):
        check_router_loss(asking, -1.0)
    with pytest.raises(UserError, match="balances experts, and LlamaForCausalLM has none"):
        check_router_loss(tiny.model(), 0.02)


def test_pairs_are_a_kind_of_lists() -> None:
    loss = registry.load("li_po")
    assert loss.needs.data is Data.LISTS
    assert "margins/logps" in figure_names(loss)


def test_float32_on_a_gpu_is_said() -> None:
    assert "trainer.bf16=true" in str(precision_advice("cuda", "float32", {"bf16": False}))
    for device, dtype, options in (
        ("cpu", "float32", {}), ("cuda", "bfloat16", {}), ("cuda", "float32", {"bf16": True}),
        ("cuda", "float32", {"use_cpu": True}),
    ):  # fmt: skip
        assert precision_advice(device, dtype, options) is None
