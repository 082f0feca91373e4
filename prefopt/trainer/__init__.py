"""Training with any loss plugin: `train(model, loss, records, ...)`, or `PreferenceTrainer` for full control."""

from prefopt.trainer.batches import BatchConfig
from prefopt.trainer.feed import Feed
from prefopt.trainer.fit import Result, build, train
from prefopt.trainer.trainer import PreferenceTrainer

__all__ = ["BatchConfig", "Feed", "PreferenceTrainer", "Result", "build", "train"]
