"""Training with any loss plugin: `train(model, loss, records, ...)`, or `PreferenceTrainer` for full control."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefopt.common.lazy_package import load_lazily

if TYPE_CHECKING:
    from prefopt.train.api import Result, build, train
    from prefopt.train.batch_config import BatchConfig
    from prefopt.train.loop import PreferenceTrainer
    from prefopt.train.sources.feed import Feed

__all__ = ["BatchConfig", "Feed", "PreferenceTrainer", "Result", "build", "train"]

load_lazily(
    __name__,
    {
        "BatchConfig": "prefopt.train.batch_config",
        "Feed": "prefopt.train.sources.feed",
        "PreferenceTrainer": "prefopt.train.loop",
        "Result": "prefopt.train.api",
        "build": "prefopt.train.api",
        "train": "prefopt.train.api",
    },
)
