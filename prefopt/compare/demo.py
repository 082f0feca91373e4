"""Trains and measures the models of `prefopt demo`: methods side by side in a small world of exactly known reward."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import transformers
from transformers import TrainerCallback

from prefopt import __version__
from prefopt.common.estimate import Estimate
from prefopt.compare.costs import SampleCount
from prefopt.data.data_config import DataConfig
from prefopt.data.prepare import prepare
from prefopt.evaluate.world import Evaluation, best_of_n, evaluate, log_probs, sampled_reward, win_share
from prefopt.losses import registry
from prefopt.models.load import load_model, load_tokenizer
from prefopt.models.model_config import ModelConfig
from prefopt.models.peft_config import PeftConfig
from prefopt.models.reward_model import load_reward_model
from prefopt.plugin import Data
from prefopt.rewards.model import ModelReward, Writer
from prefopt.train import BatchConfig, Result, train
from prefopt.train.sources.rollout_config import RolloutConfig
from prefopt.worlds import task_of
from prefopt.worlds.build import BASE_STEPS, MAX_NEW_TOKENS, SFT_STEPS, build
from prefopt.worlds.review import ReviewWorld

BASE, SFT = "Base", "SFT"
BATCH_RECORDS = 128
MAX_TOKENS = 8192
CURVE_POINTS = 4  # measured during training, after the one before it
BEST_OF = (1, 2, 4, 8, 16, 32, 64)

Progress = Callable[[str, int | None], AbstractContextManager[Callable[[], None]]]
"""Shows a task of so many steps while the context is open; the function that it gives is called after each step."""


@dataclass(frozen=True)
class DemoMethod:
    """A method of the demo, with hyper-parameters and a learning rate that suit this world.

    `rollout` makes it learn from its own samples, which a reward model scores that is trained on the pairs before.
    """

    title: str
    loss: str
    hyperparameters: Mapping[str, float]
    learning_rate: float
    rollout: RolloutConfig | None = None

    @property
    def batch(self) -> BatchConfig:
        """Pairs of a step; or as many prompts as give `BATCH_RECORDS` samples."""
        each = 1 if self.rollout is None else self.rollout.num_generations
        return BatchConfig(records=BATCH_RECORDS // each, max_tokens=MAX_TOKENS)

    @property
    def setting(self) -> str:
        """The overrides for `prefopt train`."""
        hyperparameters = [f"loss.{name}={value:g}" for name, value in self.hyperparameters.items()]
        samples = []
        if self.rollout is not None:
            samples = ["source=rollouts", "reward=RUN", f"batch.records={self.batch.records}",
                       f"rollout.num_generations={self.rollout.num_generations}",
                       f"rollout.max_new_tokens={self.rollout.max_new_tokens}"]  # fmt: skip
        rate = f"trainer.learning_rate={self.learning_rate:g}"
        return " ".join([f"loss={self.loss}", *hyperparameters, *samples, rate])


METHODS = (
    DemoMethod("DPO", "dpo", {"beta": 0.6}, 1e-3),
    DemoMethod("IPO", "ipo", {"tau": 0.5}, 1e-3),
    DemoMethod("KTO", "kto", {"beta": 0.3}, 1e-3),
    DemoMethod("ORPO", "orpo", {"lam": 3.0}, 1e-3),
    DemoMethod("SimPO", "simpo", {"beta": 2.5, "gamma_beta_ratio": 0.5}, 1e-3),
    DemoMethod("RLHF", "rloo", {"beta": 0.5}, 2e-3, RolloutConfig(num_generations=8, max_new_tokens=MAX_NEW_TOKENS)),
)
REWARD_MODEL = DemoMethod("RLHF: reward model", "bradley_terry", {}, 1e-3)


@dataclass(frozen=True, kw_only=True)
class DemoSize:
    """How much work the demo does."""

    steps: int = 124  # two epochs of the world's pairs
    prompts: int = 512
    samples_per_prompt: int = 4

    @property
    def curve_prompts(self) -> int:
        """Prompts of a point of the learning curves, with one sample each."""
        return self.prompts // 2


@dataclass(frozen=True)
class CurvePoint:
    """One evaluation during training: the true reward of samples; on held-out pairs, the accuracy by log-ratio to the
    reference and the mean log-ratio of each side in nats."""

    step: int
    true_reward: float
    accuracy: float
    chosen_change: float
    rejected_change: float


@dataclass(frozen=True, eq=False, kw_only=True)
class DemoRow:
    """One model of the demo. The first two rows are `Base` and `SFT`; methods have a setting, a paper and a curve."""

    name: str
    evaluation: Evaluation
    seconds: float  # training time
    setting: str = ""
    paper: str = ""
    curve: Sequence[CurvePoint] = ()
    samples: SampleCount | None = None  # of a method that learns from its own

    @property
    def is_method(self) -> bool:
        """Whether it was tuned on preferences."""
        return self.name not in (BASE, SFT)

    @property
    def is_reference(self) -> bool:
        """Whether changes are measured from this model."""
        return self.name == SFT


@dataclass(frozen=True, kw_only=True)
class DemoFacts:
    """What the page of the demo states about the run."""

    world: ReviewWorld
    seed: int
    steps: int
    batch: int
    parameters: int
    samples_per_prompt: int
    curve_prompts: int
    heldout: int
    ceiling: float  # share of held-out labels that the exact reward agrees with
    best_of_n: Sequence[tuple[int, float, Estimate]]
    total_seconds: float
    machine: str
    versions: str


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread: a model this small gains nothing from a second, and loses if another program runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Demo:
    """The world, its pairs in tokens and the reference, which all methods share.

    Args:
        progress: shows what is being done.
        seed: seeds the world, the order of records and the samples.
        size: how much work to do.
        world: another world than the one of the seed. Its base and SFT models are built first.
    """

    def __init__(
        self, progress: Progress, *, seed: int = 0, size: DemoSize | None = None, world: ReviewWorld | None = None
    ) -> None:
        self.progress, self.seed, self.size = progress, seed, size or DemoSize()
        self.world = world = world or ReviewWorld(seed=seed)
        self._start = time.perf_counter()
        with progress("World, base and SFT model", BASE_STEPS + SFT_STEPS) as advance:
            self.files = build(world, callbacks=[_Advance(advance)])
        model = ModelConfig(path=str(self.files.model))
        self.reference = load_model(model)
        data = DataConfig(path=str(self.files.train), eval_path=str(self.files.validation))
        self.data_config, self.tokenizer = data, load_tokenizer(model)
        prepared = prepare(data, self.tokenizer, Data.PAIRS)
        assert prepared.eval is not None
        self.data, self.pairs = prepared.train, prepared.eval
        self._reference_log_probs = log_probs(self.reference, self.pairs)
        self._curve_prompts = task_of(world).prompts(self.size.curve_prompts, seed, "validation")

    def rows(self) -> list[DemoRow]:
        """Measure the base and the SFT model, then train and measure every method from the same weights on the same
        pairs in the same order."""
        return [self._untuned(BASE), self._untuned(SFT), *map(self._tuned, METHODS)]

    @cached_property
    def start(self) -> CurvePoint:
        """The first point of every learning curve: the reference."""
        return self.point(0, self.reference)

    def point(self, step: int, policy: Any) -> CurvePoint:
        """Measure a policy for its learning curve."""
        ratio = log_probs(policy, self.pairs) - self._reference_log_probs
        reward = sampled_reward(self.world, policy, self._curve_prompts, seed=self.seed)
        chosen, rejected = ratio.mean(0).tolist()
        return CurvePoint(step, reward.value, win_share(ratio).value, chosen, rejected)

    def facts(self) -> DemoFacts:
        """Measure best-of-n sampling from SFT, and collect what the page states about the run."""
        with self.progress("Best of n samples", None):
            yardstick = best_of_n(self.world, self.reference, BEST_OF, prompts=self.size.prompts // 4, seed=self.seed)
        labels = [record.scores for record in self.pairs]
        return DemoFacts(
            world=self.world,
            seed=self.seed,
            steps=self.size.steps,
            batch=BATCH_RECORDS,
            parameters=self.reference.num_parameters(),
            samples_per_prompt=self.size.samples_per_prompt,
            curve_prompts=self.size.curve_prompts,
            heldout=len(labels),
            ceiling=sum((s[0] > s[1]) + 0.5 * (s[0] == s[1]) for s in labels if s is not None) / len(labels),
            best_of_n=yardstick,
            total_seconds=time.perf_counter() - self._start,
            machine=f"{os.cpu_count()} cores ({platform.machine()})",
            versions=f"prefopt {__version__}, torch {torch.__version__}, transformers {transformers.__version__}",
        )

    def _untuned(self, name: str) -> DemoRow:
        folder = self.files.base if name == BASE else self.files.model
        with self.progress(f"{name}: evaluation", None):
            evaluation = self._evaluate(load_model(ModelConfig(path=str(folder))))
        return DemoRow(name=name, evaluation=evaluation, seconds=self.files.seconds[name.lower()])

    def _tuned(self, method: DemoMethod) -> DemoRow:
        policy = load_model(ModelConfig(path=str(self.files.model)))
        loss = registry.load(method.loss, **method.hyperparameters)
        curve, count = _LearningCurve(self, policy, [self.start]), SampleCount()
        own: dict[str, Any] = {}
        seconds = 0.0
        with tempfile.TemporaryDirectory() as scratch:
            if method.rollout is not None:
                reward, seconds = self._reward_model(scratch)
                own = {"reward": reward, "rollout": method.rollout, "look": count.add, "tokenizer": self.tokenizer}
            result = self._train(method, policy, scratch, curve, **own)
        return DemoRow(
            name=method.title,
            evaluation=self._evaluate(policy),
            seconds=seconds + result.seconds - curve.seconds,
            setting=method.setting,
            paper=loss.paper,
            curve=curve.points,
            samples=count if own else None,
        )

    def _train(self, method: DemoMethod, model: Any, scratch: str, *callbacks: Any, **own: Any) -> Result:
        with self.progress(method.title, self.size.steps) as advance:
            return train(
                model,
                registry.load(method.loss, **method.hyperparameters),
                self.data,
                output_dir=scratch,
                batch=method.batch,
                seed=self.seed,
                callbacks=[*callbacks, _Advance(advance)],
                learning_rate=method.learning_rate,
                max_steps=self.size.steps,
                logging_strategy="no",
                **own,
            )

    def _reward_model(self, folder: str) -> tuple[ModelReward, float]:
        """Train a reward model on the pairs; the reward that it gives, and the seconds of its training."""
        start = ModelConfig(path=str(self.files.model))
        model = load_reward_model(start, PeftConfig(), tokenizer=self.tokenizer, seed=self.seed)
        result = self._train(REWARD_MODEL, model, folder)
        result.trainer.save_model(folder)
        self.tokenizer.save_pretrained(folder)
        writer = Writer(tokenizer=self.tokenizer, data=self.data_config, prompts=dict)
        return ModelReward(path=folder, writer=lambda: writer), result.seconds

    def _evaluate(self, policy: Any) -> Evaluation:
        size = {"prompts": self.size.prompts, "samples_per_prompt": self.size.samples_per_prompt}
        return evaluate(self.world, policy, self.reference, self.pairs, seed=self.seed, **size)


@dataclass(eq=False)
class _Advance(TrainerCallback):
    """Calls a function after each step."""

    advance: Callable[[], None]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.advance()


@dataclass(eq=False)
class _LearningCurve(TrainerCallback):
    """Measures the policy `CURVE_POINTS` times during training; before it, it is the reference."""

    demo: Demo
    policy: Any
    points: list[CurvePoint]
    seconds: float = 0.0  # that measuring took

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step, steps = state.global_step, self.demo.size.steps
        if step * CURVE_POINTS // steps > (step - 1) * CURVE_POINTS // steps:
            self._measure(step)

    def _measure(self, step: int) -> None:
        start = time.perf_counter()
        self.points.append(self.demo.point(step, self.policy))
        self.seconds += time.perf_counter() - start
