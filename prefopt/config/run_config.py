"""Defines the configuration of a run: everything that it depends on."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from prefopt.common.option_limits import Limits, at_least, check_limits, one_of
from prefopt.config.tracking import TrackingConfig
from prefopt.data.data_config import DataConfig
from prefopt.errors import UserError
from prefopt.models.model_config import ModelConfig
from prefopt.models.peft_config import PeftConfig
from prefopt.plugin import Loss
from prefopt.train.batch_config import BatchConfig
from prefopt.train.sentinels import SentinelConfig
from prefopt.train.sources.rollout_config import RolloutConfig

SOURCES = ("offline", "samples", "rollouts")
PROGRESS = ("auto", "rich", "plain", "quiet", "json")  # `prefopt.runs.progress`


@dataclass(kw_only=True)
class EvaluationConfig:
    """What the model writes on held-out prompts before and after training. The defaults of the group `evaluation`."""

    LIMITS: ClassVar[Limits] = {"texts": at_least(0), "kl_prompts": at_least(0), "max_new_tokens": at_least(1)}

    texts: int = 3  # prompts continued greedily before and after, for reading
    kl_prompts: int = 32  # prompts continued at temperature 1, to measure KL(policy || reference)
    max_new_tokens: int = 128


@dataclass(kw_only=True)
class RunConfig:
    """Everything that a run depends on."""

    LIMITS: ClassVar[Limits] = {
        "source": one_of(*SOURCES), "rounds": at_least(1), "progress": one_of(*PROGRESS), "seed": at_least(0),
    }  # fmt: skip

    loss: Loss
    loss_name: str
    output_dir: Path
    model: ModelConfig
    data: DataConfig
    peft: PeftConfig = field(default_factory=PeftConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    trainer: dict[str, Any] = field(default_factory=dict)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    sentinels: SentinelConfig = field(default_factory=SentinelConfig)
    # offline: the records of the data; samples: texts of the model that the run starts from, behind their prompts;
    # rollouts: the policy's own, drawn anew at every step
    source: str = "offline"
    rounds: int = 1  # with source=samples: runs in a row, each on samples of the model of the one before
    reward: Any = None  # of samples: world, a reward model, a function, or a table of several (`prefopt.rewards`)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reference_folder: str | None = None  # None: in prefopt's cache
    resume: str = "auto"  # auto | never | a checkpoint folder
    progress: str = "auto"  # auto | rich | plain | quiet | json (`prefopt.runs.progress`)
    seed: int = 0
    stages: dict[str, RunConfig] = field(default_factory=dict)  # runs before this one (`prefopt.runs.stages`)
    stages_folder: Path = Path("runs/stages")

    def __post_init__(self) -> None:
        if self.source != "offline" and self.reward is None and self.data.is_world:
            self.reward = "world"  # its exact rule

    def check_source(self) -> None:
        """Raise UserError where source, reward and loss do not fit together."""
        check_limits(self.LIMITS, self)
        if self.source != "rollouts" and self.loss.needs.only_own_samples:
            raise UserError(f"loss={self.loss_name} learns from the policy's own samples: add source=rollouts and "
                            "reward=world, a reward model or a function (docs/own_samples.md)")  # fmt: skip
        if self.source != "offline" and self.reward is None:
            raise UserError(f"source={self.source} needs a reward for the samples: reward=world, "
                            "the folder of a reward model, or reward=module:function")  # fmt: skip
        if self.source == "offline" and self.reward is not None:
            raise UserError(f"reward={self.reward} scores samples, and source=offline has none: add source=rollouts, "
                            "or leave it out")  # fmt: skip
        if self.rounds > 1 and self.source != "samples":
            raise UserError(f"rounds={self.rounds}: rounds are of source=samples, where each draws samples of the "
                            "model that the one before has left")  # fmt: skip
        if self.loss.needs.reward_model and self.model.reference is not None:
            raise UserError(f"model.reference={self.model.reference}: loss={self.loss_name} trains a reward model, "
                            "which has no reference; leave it out")  # fmt: skip
        if self.model.value_model is not None and not self.loss.needs.values:
            raise UserError(f"model.value_model={self.model.value_model}: loss={self.loss_name} has no value model, as "
                            "ppo has; leave it out")  # fmt: skip
        if self.source == "rollouts":
            self.rollout.check(self.loss)
        if self.source == "samples":
            self.rollout.check_samples(self.loss)

    def plain(self) -> dict[str, Any]:
        """The configuration as JSON values."""
        known = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        groups = ("model", "peft", "data", "batch", "tracking", "evaluation", "sentinels", "rollout")
        nested = {k: dataclasses.asdict(known[k]) for k in groups}
        loss = {"name": self.loss_name, **dataclasses.asdict(self.loss)}  # type: ignore[call-overload]
        stages = {name: stage.plain() for name, stage in self.stages.items()}
        plain: dict[str, Any] = json.loads(json.dumps(known | nested | {"loss": loss, "stages": stages}, default=str))
        del plain["loss_name"]
        return plain
