"""Training on pairs about an image: the answer can be learnt from the image, and from nothing else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import TrainingArguments

from prefopt.data.data_config import DataConfig
from prefopt.data.prepare import prepare
from prefopt.data.token_table import TokenTable
from prefopt.data.tokens import TokenRecord
from prefopt.engine.scoring import score
from prefopt.errors import UserError
from prefopt.losses.registry import load
from prefopt.models.load import load_model, load_policy, load_tokenizer
from prefopt.models.model_config import ModelConfig
from prefopt.models.peft_config import PeftConfig
from prefopt.models.reward_model import load_reward_model
from prefopt.plugin import Data
from prefopt.train import BatchConfig, build, train
from prefopt.train.setup import check_images
from tests.models import pictures

TRAINED, HELD_OUT = 32, 16
HOW: dict[str, Any] = {"max_steps": 12, "learning_rate": 3e-3, "lr_scheduler_type": "constant", "seed": 0}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folders = [tmp_path_factory.mktemp(name) for name in ("trained", "held_out")]
    return pictures.write(folders[0], TRAINED), pictures.write(folders[1], HELD_OUT)


def accuracy(model: Any, pairs: TokenTable) -> float:
    return float(np.mean([scored.sum[0] > scored.sum[1] for scored in score(model, pairs)]))


class Setting:
    """A family's model and data, with images or without."""

    def __init__(self, family: str, files: tuple[Path, Path], folder: Path, *, images: bool = True) -> None:
        self.config, self.files, self.folder = ModelConfig(path=pictures.save(family, folder / "m")), files, folder
        self.ignore = [] if images else ["images"]
        self.tokenizer = load_tokenizer(self.config)

    def data(self, which: int, kind: Data) -> TokenTable:
        read = DataConfig(path=str(self.files[which]), ignore=self.ignore, cache_dir=str(self.folder / "cache"))
        return prepare(read, self.tokenizer, kind).train

    def learnt(self, model: Any, name: str, **more: Any) -> float:
        loss = load(name)
        held_out = self.data(1, Data.PAIRS)
        assert accuracy(model, held_out) == pytest.approx(0.5, abs=0.2)
        train(model, loss, self.data(0, loss.needs.data), output_dir=self.folder / "out", tokenizer=self.tokenizer,
              **(HOW | more))  # fmt: skip
        return accuracy(model, held_out)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3", "llava"])
def test_dpo_learns_from_the_image_and_not_without_it(family: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    seeing = Setting(family, files, tmp_path / "seeing")
    assert seeing.learnt(load_model(seeing.config), "dpo") == 1.0
    blind = Setting(family, files, tmp_path / "blind", images=False)
    assert blind.learnt(load_model(blind.config), "dpo") == 0.5  # equal prompts have opposite answers


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sft", "kto", "orpo"])
def test_other_losses_learn_from_the_image(loss: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    seeing = Setting("qwen2_5_vl", files, tmp_path)
    assert seeing.learnt(load_model(seeing.config), loss) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3", "qwen3_5"])
def test_a_reward_model_learns_from_the_image(family: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    for images, expected in ((True, 1.0), (False, 0.5)):
        one = Setting(family, files, tmp_path / str(images), images=images)
        model = load_reward_model(one.config, PeftConfig(), tokenizer=one.tokenizer, seed=0)
        assert one.learnt(model, "bradley_terry") == expected


@pytest.mark.slow
def test_micro_batches_layouts_and_workers_change_no_loss(files: tuple[Path, Path], tmp_path: Path) -> None:
    """The images of a step are where its rows are, however the step is cut."""
    one, losses = Setting("qwen2_vl", files, tmp_path), []
    for n, batch in enumerate([BatchConfig(records=8), BatchConfig(records=8, max_tokens=80),
                               BatchConfig(records=8, layout="padded")]):  # fmt: skip
        result = train(
            load_model(one.config), load("dpo"), one.data(0, Data.PAIRS), output_dir=tmp_path / f"{n}", batch=batch,
            dataloader_num_workers=n % 2, logging_steps=1, **(HOW | {"max_steps": 3}),
        )  # fmt: skip
        losses.append([line["loss"] for line in result.trainer.state.log_history if "loss" in line])
    assert len(losses[0]) == 3
    assert np.allclose(losses[0], losses[1], atol=2e-4)
    assert np.allclose(losses[0], losses[2], atol=2e-4)


@pytest.mark.slow
def test_an_adapter_learns_from_the_image(files: tuple[Path, Path], tmp_path: Path) -> None:
    one = Setting("llava", files, tmp_path)
    model = load_policy(one.config, PeftConfig(method="lora", r=8, alpha=16), seed=0)
    assert one.learnt(model, "dpo", learning_rate=5e-3, max_steps=20) == 1.0


def of_two(**options: Any) -> Any:
    """The arguments of one process of two."""
    known = {"fsdp": False, "activation_checkpointing": False, "activation_checkpointing_kwargs": None,
             "ddp_find_unused_parameters": None}  # fmt: skip
    return SimpleNamespace(world_size=2, **known | options)


def prompt(*ids: int) -> TokenRecord:
    sides = (np.array([7], np.int32), np.array([8], np.int32))
    return TokenRecord(id="x", kind=Data.PAIRS, prompt=np.array(ids, np.int32), completions=sides)


IMAGE, TEXT = [prompt(5, -9)], [prompt(5, 6)]


@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3", "llava"])
def test_processes_do_not_wait_for_each_others_images(family: str, tmp_path: Path) -> None:
    model = load_model(ModelConfig(path=pictures.save(family, tmp_path / "m")))
    sharded, named = of_two(fsdp=True), of_two(ddp_find_unused_parameters=False)
    again = of_two(activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": True})
    for records in (IMAGE, TEXT):
        assert not check_images(model, sharded, {"train": records, "eval": records})
    assert not check_images(model, sharded, {"train": IMAGE, "eval": TEXT})
    mixed = TokenTable.from_records(TEXT + IMAGE)
    for splits in ({"train": IMAGE + TEXT, "eval": None}, {"train": IMAGE, "eval": mixed}):
        assert check_images(model, sharded, splits)
        with pytest.raises(UserError, match=r"apart, or without source=rollouts and trainer\.fsdp together"):
            check_images(model, sharded, splits, sampled=True)
        with pytest.raises(UserError, match=r"apart, or without trainer\.router_aux_loss and trainer\.fsdp together"):
            check_images(model, sharded, splits, router=True)
    for args in (again, named):
        assert not check_images(model, args, {"train": IMAGE, "eval": IMAGE + TEXT})
        with pytest.raises(UserError, match=r"apart, or without trainer\.ddp_find_unused_parameters=false"):
            check_images(model, args, {"train": IMAGE + TEXT, "eval": None})
        with pytest.raises(UserError, match=r"have no images.*without trainer\.ddp_find_unused_parameters=false"):
            check_images(model, args, {"train": TEXT, "eval": None})
    one = SimpleNamespace(**vars(again) | {"world_size": 1})
    for args in (one, of_two(), of_two(activation_checkpointing=True)):  # DDP looks for what has no gradient
        assert not check_images(model, args, {"train": IMAGE + TEXT, "eval": None})
    model.requires_grad_(False).get_output_embeddings().requires_grad_(True)
    assert not check_images(model, again, {"train": IMAGE + TEXT, "eval": None})
    assert check_images(model, sharded, {"train": IMAGE + TEXT, "eval": None})  # shards of frozen weights, too


def test_a_run_of_several_processes_is_refused_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(ModelConfig(path=pictures.save("gemma3", tmp_path / "m")))
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    with pytest.raises(UserError, match="train image and text records apart"):
        build(model, load("dpo"), IMAGE + TEXT, output_dir=tmp_path / "out", ddp_find_unused_parameters=False)
    assert not (tmp_path / "out").exists()
