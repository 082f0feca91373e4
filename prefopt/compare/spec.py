"""Describes a comparison: the methods, what they share, the search budget, and how models are measured."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from prefopt.common.option_limits import Limits, above, at_least, check_limits
from prefopt.common.smallest_effects import DEVIATIONS, SHARE, WORLD_REWARD
from prefopt.errors import UserError
from prefopt.losses import registry
from prefopt.plugin import Data, Needs

Split = Literal["validation", "test"]
RewardChange = Literal["", "negated", "shuffled"]  # of a control on samples: shuffled among the texts of a rollout
BASE, SFT = "base", "sft"  # rows of every comparison: the model before training, and SFT on the chosen side
AGAIN, WRONG_SIGN = "again", "wrong_sign"  # suffix and name of the controls
CHANGES: tuple[RewardChange, ...] = ("negated", "shuffled")
OF_SAMPLES = ("source", "reward", "rollout")  # options that rows without samples leave out
VALUE_MODEL = "model.value_model"  # rows without a value model leave it out, and each may have its own
_NAME = re.compile(r"[\w.+@-]{1,40}")


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of a comparison.

    Attributes:
        name: its name in tables; one loss may have several rows.
        loss: a name of the menu.
        overrides: options of this method alone, as `prefopt train` takes them (`loss.label_smoothing=0.1`).
        sides_swapped: train on records with chosen and rejected exchanged: the wrong-sign control.
        seed_offset: added to the seeds of the final runs, so that a second row of one method uses other seeds.
        reward_change: train on changed rewards: a control of methods on the policy's own samples.
    """

    name: str
    loss: str
    overrides: tuple[str, ...] = ()
    sides_swapped: bool = False
    seed_offset: int = 0
    reward_change: RewardChange = ""

    @property
    def control(self) -> bool:
        """Whether this row tests the comparison instead of competing."""
        return self.sides_swapped or self.seed_offset > 0 or bool(self.reward_change)


@dataclass(kw_only=True)
class Budget:
    """What each method may spend on the search for its setting."""

    LIMITS: ClassVar[Limits] = {"trials": at_least(1), "max_kl": above(0, otherwise="null for no bound")}

    trials: int = 4  # settings (strength and learning rate) tried on validation prompts; 1 takes the first untried
    # A trial that moved further from the start (nats a text, KL) counts as diverged, and the next one has a lower rate;
    # drawing 1,000 texts and keeping the best costs 5.9. None: none does
    max_kl: float | None = 10.0


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """How a trained model is measured; part of the key of a finished job."""

    LIMITS: ClassVar[Limits] = {
        "prompts": at_least(2, otherwise="null for the default, since a KL needs several prompts"),
        "samples_per_prompt": at_least(1, otherwise="null for the default"), "texts": at_least(0),
    }  # fmt: skip

    # that every model continues; None: 512 of a world, else 128 with a judge, else evaluation.kl_prompts
    prompts: int | None = None
    samples_per_prompt: int | None = None  # samples of each prompt at temperature 1; None: 4 in a world, else 1
    seed: int = 0  # seeds prompts and samples, which are the same draws for every model and training seed
    texts: int = 6  # continuations kept for reading side by side
    judge: str | None = None  # the folder of a reward model, or module:function
    tasks: tuple[str, ...] = ()  # names or YAML files of lm-evaluation-harness tasks


@dataclass(frozen=True, eq=False, kw_only=True)
class Measurement:
    """The measured figures of one model.

    Attributes:
        figures: means by name (`METRICS` lists those that tables and pages show).
        arrays: (n,) float64 by figure, one value per prompt or pair. Order and n are the same for every method, so
            that methods can be compared prompt by prompt; `figures[name] == arrays[name].mean()` where both exist.
        texts: continuations of the first prompts: `prompt`, `text`, and `reward` where it is known.
    """

    figures: dict[str, float]
    arrays: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    texts: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Metric:
    """How tables show a figure, and the smallest difference of it that matters.

    Attributes:
        title, unit: as tables show them.
        better: 1 where more is better, -1 where less is, 0 where neither.
        smallest: no method is better or worse than another by less; in the figure's unit.
        deviations: `smallest` is in standard deviations over prompts.
        moved: the figure says nothing of a model whose margins of log-ratios are, on average and without their sign,
            below the smallest that matters: it counts signs, however small the numbers are.
    """

    title: str
    unit: str
    better: int
    smallest: float = 0.0
    deviations: bool = False
    moved: bool = False

    @property
    def in_words(self) -> str:
        """The title inside a sentence."""
        first, _, rest = self.title.partition(" ")
        return f"{first if first.isupper() else first.lower()} {rest}".rstrip()

    def smallest_in_words(self) -> str:
        """State the smallest difference that matters, with its unit; empty where there is none."""
        if not self.smallest:
            return ""
        unit = "standard deviations" if self.deviations else self.unit
        return f"{self.smallest:g}{' ' + unit if unit else ''}"


METRICS: dict[str, Metric] = {
    "true_reward": Metric("True reward", "", 1, WORLD_REWARD),
    "judge": Metric("Judge's score", "", 1, DEVIATIONS, deviations=True),
    "win_rate": Metric("Win rate against SFT", "", 1, SHARE),
    "accuracy": Metric("Held-out accuracy, by log-ratio", "", 1, SHARE, moved=True),
    "accuracy_sum": Metric("Held-out accuracy, by log-prob", "", 1),
    "accuracy_mean": Metric("Held-out accuracy, by log-prob per token", "", 1),
    "ties": Metric("Held-out ties, by log-ratio", "", 0),
    "margin": Metric("Held-out margin of log-ratios", "nats", 0),
    "kl": Metric("KL to the start", "nats", 0),
    "chosen_change": Metric("Change of chosen log-prob", "nats", 0),
    "rejected_change": Metric("Change of rejected log-prob", "nats", 0),
    "chosen_logp": Metric("Chosen log-prob", "nats", 0),
    "valid": Metric("Valid texts", "", 1),
    "length": Metric("Length", "tokens", 0),
    "entropy": Metric("Entropy per token", "nats", 0),
    "distinct_2": Metric("Distinct bigrams", "", 0),
}
PRIMARY = ("true_reward", "judge", "win_rate", "accuracy")  # the first that was measured ranks settings and methods


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A whole comparison.

    Attributes:
        methods: the rows; base and SFT are added.
        overrides: data, model, batch and trainer options of all methods, as `prefopt train` takes them.
        budget: trials of each method, all at seed 0 and on validation prompts.
        seeds: final runs of the chosen setting, at seeds 1, 2, ..., measured on test prompts. They are fresh seeds
            because the trial that was chosen was lucky. `benchmarks/verdicts.py` says what fewer can tell.
        measure: how models are measured.
        controls: add the first method under a second name, at other seeds, and DPO with its sides swapped; for the
            first method on the policy's own samples a second name, too, and runs on changed rewards.
    """

    LIMITS: ClassVar[Limits] = {"seeds": at_least(1)}

    methods: tuple[Method, ...]
    overrides: tuple[str, ...] = ()
    budget: Budget = field(default_factory=Budget)
    seeds: int = 5
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    controls: bool = False

    def rows(self) -> tuple[Method, ...]:
        """Return every trained row, SFT first and controls last.

        Raises:
            UserError: no methods, duplicate or invalid names, too few seeds or prompts.
        """
        if not self.methods:
            raise UserError("there is nothing to compare: give losses=[dpo,ipo,simpo]; `prefopt losses` is the menu")
        check_limits(self.LIMITS, self)
        check_limits(Budget.LIMITS, self.budget, "budget")
        check_limits(MeasureConfig.LIMITS, self.measure, "measure")
        for method in self.methods:
            if method.name == BASE or (method.name == SFT and method.loss != SFT):
                meaning = "the model before training" if method.name == BASE else "SFT on the chosen side"
                raise UserError(f"methods.{method.name}.loss={method.loss}: the row {method.name!r} is always "
                                f"{meaning}; choose another name (methods.NAME.loss={method.loss})")  # fmt: skip
        rows = list(self.methods)
        if not any(method.name == SFT for method in rows):
            rows.insert(0, Method(name=SFT, loss=SFT))
        if self.controls:
            rows += self._controls()
        names = [method.name for method in rows]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"two rows have the name {name!r}: rename one of them (methods.NAME.loss=LOSS)")
            if not _NAME.fullmatch(name):
                raise UserError(f"{name!r} is not a valid row name: use letters, digits and . + - _ @, at most 40")
        return tuple(rows)

    def online(self, method: Method) -> bool:
        """Whether a row learns from the policy's own samples: it says so, all rows do, or its loss reads no others."""
        own, shared = _source(method.overrides), _source(self.overrides)
        if own is None and (method.name == SFT or method.sides_swapped):
            return False
        said = own or shared
        needs = _needs(method.loss)
        return said == "rollouts" if said is not None else needs is not None and needs.only_own_samples

    def first_of(self, *, online: bool) -> Method | None:
        """The first method that learns from the policy's own samples, or from the data."""
        return next((method for method in self.methods if self.online(method) is online), None)

    def words(self, method: Method) -> list[str]:
        """The options of a row, as `prefopt train` takes them: those of samples only where it has samples, and a value
        model only where its loss has one."""
        online = self.online(method)
        shared = [o for o in self.overrides if online or group_of(o) not in OF_SAMPLES]
        if not _has_values(method.loss):
            shared = [o for o in shared if option_of(o) != VALUE_MODEL]
        said = ["source=rollouts"] if online and _source((*shared, *method.overrides)) is None else []
        chosen = {option_of(o) for o in (*shared, *method.overrides)}
        if not online and _imitates(method.loss) and not chosen & {"trainer", "experiment"}:
            said.append("trainer=sft")  # its learning rate is far above those of preferences
        return [f"loss={method.loss}", *said, *shared, *method.overrides]

    def _controls(self) -> Iterator[Method]:
        """The controls of the first method on the data, and of the first one on the policy's own samples."""
        offline, online = self.first_of(online=False), self.first_of(online=True)
        for first in (offline, online):
            if first is not None:
                yield replace(first, name=f"{first.name}_{AGAIN}", seed_offset=self.seeds)
        if offline is not None:
            yield Method(name=WRONG_SIGN, loss="dpo", sides_swapped=True)
        if online is not None:
            for change in CHANGES:
                yield replace(online, name=f"{online.name}_{change}", reward_change=change)


def _needs(loss: str) -> Needs | None:
    """The needs of a loss; None where its options decide, as those of `mix`."""
    needs = registry.loss_class(loss).needs
    return needs if isinstance(needs, Needs) else None


def _imitates(loss: str) -> bool:
    needs = _needs(loss)
    return needs is not None and needs.data is Data.DEMONSTRATIONS


def _has_values(loss: str) -> bool:
    needs = _needs(loss)
    return needs is not None and needs.values


def option_of(override: str) -> str:
    """The option that an override sets: `model.dtype` of `++model.dtype=float64`."""
    return override.lstrip("+~").partition("=")[0]


def group_of(override: str) -> str:
    """The group or single option that an override sets: `rollout` of `+rollout.label=BT`."""
    return re.split(r"[.=@/]", override.lstrip("+~"), maxsplit=1)[0]


def _source(overrides: Sequence[str]) -> str | None:
    """The value of `source` among some options; None where they do not set it."""
    return next((o.partition("=")[2] for o in reversed(overrides) if group_of(o) == "source"), None)
