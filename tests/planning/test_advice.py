"""Warnings before a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prefopt.data import DataConfig, prepare
from prefopt.losses import MENU, load_class
from prefopt.losses.registry import load
from prefopt.models.load import load_model, load_tokenizer
from prefopt.models.model_config import ModelConfig
from prefopt.planning import advice
from prefopt.plugin import Data, comments
from prefopt.testing import example


def test_every_useful_range_of_the_menu_is_understood() -> None:
    """A field whose comment says `useful range` is read, unless the range has no upper end."""

    unread = {
        (name, field)
        for name in MENU
        for field, about in comments(load_class(name)).items()
        if "useful range" in about and advice.useful_range(about) is None
    }
    assert unread == {("mix", "terms"), ("mallows_dpo", "vocab_size"), ("rainbow_po", "vocab_size")}


def test_defaults_are_within_their_useful_ranges() -> None:

    assert {name: list(advice.outside_range(example(load_class(name)))) for name in MENU} == {name: [] for name in MENU}


def test_a_beta_outside_its_useful_range() -> None:
    assert list(advice.outside_range(load("simpo", beta=2.5))) == []
    (said,) = advice.outside_range(load("simpo", beta=0.1))
    assert "loss.beta=0.1 is outside its useful range, 2 to 10" in said


@pytest.mark.parametrize(
    ("rate", "adapters", "weights", "warned"),
    [
        (5e-7, False, 7e9, False),
        (1e-4, False, 7e9, True),  # a hundred times the literature's
        (5e-5, True, 7e9, False),  # ten times more with adapters
        (1e-9, False, 7e9, True),
        (1e-5, False, 1.35e8, False),  # small models
    ],
)
def test_learning_rates(rate: float, adapters: bool, weights: float, warned: bool) -> None:
    said = list(advice.learning_rate(load("dpo"), "dpo", rate, adapters=adapters, weights=int(weights)))
    assert bool(said) == warned
    unknown = load("h_dpo")
    assert list(advice.learning_rate(unknown, "h_dpo", rate, adapters=adapters, weights=int(weights))) == []


def test_a_base_model_is_noticed(model_folder: Path, pairs_file: Path) -> None:

    config = ModelConfig(path=str(model_folder))
    tokenizer, model = load_tokenizer(config), load_model(config)
    records = prepare(DataConfig(path=str(pairs_file)), tokenizer, Data.PAIRS).train
    tokenizer.chat_template = None
    (said,) = advice.not_tuned(model, tokenizer, records, Data.PAIRS)
    assert "base model without SFT" in said
    tokenizer.chat_template = "{{ messages }}"
    (said,) = advice.not_tuned(model, tokenizer, records, Data.PAIRS)  # random weights end no turn
    assert "ends an answer of this data with a probability of" in said
    assert list(advice.not_tuned(model, tokenizer, records, Data.DEMONSTRATIONS)) == []  # this is SFT


def test_nothing_to_train() -> None:
    model = torch.nn.Linear(2, 2).requires_grad_(False)
    (said,) = advice.adapters(model)
    assert "no weight is trainable" in said


def test_memory_that_will_not_do() -> None:
    assert list(advice.memory(5.0, 10.0, "this machine")) == []
    assert "too close" in next(advice.memory(9.5, 10.0, "this machine"))
    assert "lower batch.max_tokens" in next(advice.memory(11.0, 10.0, "this machine"))
