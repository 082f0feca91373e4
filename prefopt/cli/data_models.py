"""What `prefopt data` needs of models: imported only where one is named, since data alone does without transformers."""

from __future__ import annotations

from functools import partial
from typing import Any

from prefopt.data.doctor.base_model import Scorer
from prefopt.engine.scoring import score
from prefopt.models.load import load_model, load_tokenizer
from prefopt.models.model_config import ModelConfig
from prefopt.runs.resolve import resolve_path


def tokenizer_of(path: str) -> Any:
    """Load the tokenizer of a folder, hub id, `package:NAME` or world."""
    return load_tokenizer(ModelConfig(path=resolve_path(path)))


def scorer_of(path: str) -> Scorer:
    """Load a model, and return what gives log-probs under it."""
    return partial(score, load_model(ModelConfig(path=resolve_path(path))))
