"""Training with any loss plugin: `train(model, loss, records, ...)`, or `PreferenceTrainer` for full control."""

from prefopt.train.api import Result, build, train
from prefopt.train.batches import BatchConfig
from prefopt.train.loop import PreferenceTrainer
from prefopt.train.sources.feed import Feed

__all__ = ["BatchConfig", "Feed", "PreferenceTrainer", "Result", "build", "train"]
