"""What a training is given beside a model, a loss and records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from prefopt.data.tokens import TokenRecord
from prefopt.engine.policy import Policy
from prefopt.engine.reference.table import Progress, ReferenceTable
from prefopt.rewards.reward import Reward
from prefopt.train.batch_config import BatchConfig
from prefopt.train.sentinels import Sentinels
from prefopt.train.sources.rollout_config import RolloutConfig
from prefopt.train.sources.rollouts import Rollout
from prefopt.train.sources.source import RecordSource


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The keyword arguments of `train`.

    Attributes:
        output_dir: the folder of checkpoints.
        eval: held-out records, scored before and after training.
        batch: records of a step, tokens of a forward.
        seed: seeds the order of the records.
        reference: another model as reference; None: the model as it is now, adapters included.
        value_model: a reward model that the value model starts as, and that is trained; None: the model as it is now,
            with a head of zeros.
        store: the folder of reference log-probs; None: in prefopt's cache.
        tokenizer: saved with checkpoints.
        callbacks: transformers' callbacks; a `prefopt.train.signals.Signals` among them lets a run end at a signal.
        sentinels: look at every log; None: with the bounds of `SentinelConfig`.
        probe: measures more figures of an evaluation in training, from the policy, such as the KL of its texts.
        weights: the fingerprint of the model as it is given; None: it is computed.
        origin: the options that gave model and records, by their names: they explain why a resume is refused.
        progress: called with the number of records whose reference log-probs are ready since the last call, and with
            that of all that the run reads of a split.
        reward: scores the policy's own samples, behind the prompts of the records: they are what is learnt from.
        rollout: how samples are drawn and labelled.
        log_ratios: score the training records under the reference for every loss that learns from data, so that its
            logs have `ratios/*`.
        look: called with every `prefopt.train.sources.rollouts.Rollout` that is made.
        trainer: `learning_rate`, `max_steps` and the other options of `prefopt.train.arguments`.
    """

    output_dir: str | Path
    eval: Sequence[TokenRecord] | None = None
    batch: BatchConfig | None = None
    seed: int = 0
    reference: Any = None
    value_model: Any = None
    store: Path | None = None
    tokenizer: Any = None
    callbacks: Sequence[Any] = ()
    sentinels: Sentinels | None = None
    probe: Callable[[Policy], dict[str, float]] | None = None
    weights: str | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress = lambda done, total: None
    reward: Reward | None = None
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    log_ratios: bool = False
    look: Callable[[Rollout], None] = lambda rollout: None
    trainer: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, **given: Any) -> Settings:
        """From keyword arguments; those that are no settings are options of the trainer."""
        names = {f.name for f in dataclasses.fields(cls)} - {"trainer"}
        own = {name: value for name, value in given.items() if name in names}
        return cls(**own, trainer={name: value for name, value in given.items() if name not in names})


@dataclass(frozen=True, kw_only=True)
class RunReference:
    """The reference of a run.

    Attributes:
        name: its fingerprint; a resume with another one is refused.
        tables: by split, its log-probs of the records, where they are computed ahead of training.
        policy: a live reference, for losses that read its whole vocabulary or move it.
        is_start: the policy starts as the reference, so the loss of the first batch is known beforehand.
        by_step: it scores the records of each step as they come, instead of having `tables`.
    """

    name: str | None = None
    tables: Mapping[str, ReferenceTable] = field(default_factory=dict)
    policy: Policy | None = None
    is_start: bool = False
    by_step: bool = False


class Parts(NamedTuple):
    """What a trainer is made of that depends on where its records come from.

    Attributes:
        policy: the model, in the layout of its rows.
        max_tokens: positions of a forward.
        sources: by split, the records of each step.
        reference: the reference.
    """

    policy: Policy
    max_tokens: int
    sources: Mapping[str, RecordSource]
    reference: RunReference
