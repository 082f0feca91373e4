"""Plans the samples of a run on the policy's own texts, as if every text were as long as it may get."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prefopt.config.run_config import RunConfig
from prefopt.data.tokens import TokenRecord
from prefopt.engine.forward import unwrap
from prefopt.engine.layout import Layout
from prefopt.engine.limits import check_length
from prefopt.planning.memory import Memory, count_weights, optimizer_bytes
from prefopt.planning.schedule import PLANNED, Schedule
from prefopt.train.on_policy import most_positions, prompts_of
from prefopt.train.sources.labels import SampledPrompt, labelled
from prefopt.train.sources.rollout_config import RolloutConfig
from prefopt.train.sources.rollouts import Prompt

ROWS = 512  # texts that are sampled at once (`prefopt.engine.generation.sample`)


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples of a run.

    Attributes:
        records: what a loss learns from if all texts have their full length, of at most `PLANNED` steps' prompts.
        prompts: the number of prompts.
        of_prompt: the records that the samples of one prompt become.
        longest: tokens of the longest prompt.
        batch: `batch.records` prompts of a step.
        rollout: the options of sampling.
    """

    records: list[TokenRecord]
    prompts: int
    of_prompt: int
    longest: int
    batch: int
    rollout: RolloutConfig

    @property
    def updates(self) -> int:
        """Steps that learn from the same samples."""
        assert self.rollout.updates is not None  # settled
        return self.rollout.updates

    @property
    def texts(self) -> int:
        """Samples of a rollout."""
        return min(self.batch, self.prompts) * self.rollout.num_generations

    @classmethod
    def of(cls, config: RunConfig, records: Sequence[TokenRecord], vocabulary: int) -> Samples:
        """Make up the samples behind the prompts of some records; no two begin with the same token."""
        rollout, prompts = config.rollout.settled(config.loss), prompts_of(records)
        by_length = sorted(prompts, key=lambda prompt: len(prompt.tokens))
        shown = _spread(by_length, PLANNED * config.batch.records)
        texts = tuple(np.full(rollout.max_new_tokens, k % vocabulary, np.int32) for k in range(rollout.num_generations))
        groups = [
            SampledPrompt(p.id, p.tokens, texts, np.arange(len(texts), dtype=float), np.zeros(len(texts) // 2))
            for p in shown
        ]
        made = labelled(groups, config.loss.needs.data, rollout.label, rollout.label_temperature).records
        return cls(
            records=made,
            prompts=len(prompts),
            of_prompt=len(made) // len(shown),
            longest=len(by_length[-1].tokens),
            batch=config.batch.records,
            rollout=rollout,
        )

    def most_positions(self, model: Any, layout: Layout) -> int:
        """The most positions of one prompt's samples in a forward.

        Raises:
            UserError: the model has fewer positions than a prompt with its sample takes.
        """
        length = self.longest + self.rollout.max_new_tokens
        check_length(unwrap(model), length, f"a prompt of {self.longest} tokens with its samples")
        return most_positions(self.longest, self.rollout, layout)

    def schedule(self, planned: Schedule, arguments: Any) -> Schedule:
        """The schedule of the made-up records, counted in prompts and for all of them."""
        per_epoch = math.ceil(self.prompts / self.batch) * self.updates
        steps = arguments.max_steps if arguments.max_steps > 0 else math.ceil(arguments.num_train_epochs * per_epoch)
        return replace(
            planned, records=self.prompts, records_per_step=min(self.batch, self.prompts), steps=int(steps),
            steps_per_epoch=per_epoch,
        )  # fmt: skip

    def count(self, steps: int) -> int:
        """The texts that a run of so many steps samples."""
        rollouts = math.ceil(steps / self.updates)
        epochs, rest = divmod(rollouts, math.ceil(self.prompts / self.batch))
        return (epochs * self.prompts + min(rest * self.batch, self.prompts)) * self.rollout.num_generations

    def cache_bytes(self, model: Any) -> int:
        """Keys and values of the texts that are sampled at once."""
        text = model.config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        positions = min(ROWS, self.texts) * (self.longest + self.rollout.max_new_tokens)
        width: int = model.dtype.itemsize
        return 2 * int(text.num_hidden_layers) * int(heads) * int(size) * width * positions

    def peak_memory(self, training: Memory, model: Any, arguments: Any, *, values: bool) -> Memory:
        """The peak of a run whose steps take `training`: a value model is trained beside the policy, and sampling keeps
        keys and values instead of activations."""
        held, trainable, _ = count_weights(model)
        kept = training.activations * (2 if values else 1)
        more = replace(training, activations=max(kept, self.cache_bytes(model) - training.head))
        if not values:
            return more
        states = optimizer_bytes(arguments.optim, trainable)
        return replace(
            more, weights=more.weights + held, gradients=more.gradients + trainable, optimizer=more.optimizer + states
        )

    def plain(self, steps: int) -> dict[str, Any]:
        """As JSON values."""
        texts = self.count(steps)
        return {
            "samples": texts,
            "samples_per_rollout": self.texts,
            "tokens_sampled_at_most": texts * self.rollout.max_new_tokens,
        }


def _spread(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """At most `count` prompts, evenly spread over the lengths, the longest among them."""
    if len(prompts) <= count:
        return list(prompts)
    return [prompts[i] for i in np.linspace(0, len(prompts) - 1, count).round().astype(int)]
