"""Training with any loss plugin: `train(model, loss, records, ...)`, or `PreferenceTrainer` for full control."""

from prefopt.train.fit import Result, build, train
from prefopt.train.sources.feed import Feed
from prefopt.train.sources.offline import BatchConfig
from prefopt.train.trainer import PreferenceTrainer

__all__ = ["BatchConfig", "Feed", "PreferenceTrainer", "Result", "build", "train"]
