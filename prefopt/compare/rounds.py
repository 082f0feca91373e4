"""The course of a comparison: trials, the choice of a setting, seeds, and what can be told from them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from prefopt.compare.execute import data_of
from prefopt.compare.jobs import Job, Result, digest_of_records, digest_of_weights
from prefopt.compare.search import Setting, settings
from prefopt.compare.spec import BASE, PRIMARY, Comparison, Method, Split
from prefopt.errors import UserError

if TYPE_CHECKING:
    from prefopt.config.run_config import RunConfig

TRIAL_SEED = 0
SHARED = ("data", "model", "evaluation", "measure", "judge", "tasks", "experiment")  # not of one row alone
OF_COST = re.compile(r"(trainer\.(max_steps|num_train_epochs)|batch\.records|batch|trainer)=")  # of one row: allowed


@dataclass(frozen=True, eq=False, kw_only=True)
class Row:
    """A method's results.

    Attributes:
        method: None for the base model.
        settings: what was tried, or is taken without a trial.
        trials: one result for each setting, on validation prompts.
        chosen: the setting of the best of them, None where none worked; the only one where there are no trials.
        finals: one result for each seed at the chosen setting, on test prompts.
    """

    name: str
    method: Method | None
    config: RunConfig
    settings: list[Setting] = field(default_factory=list)
    trials: list[Result] = field(default_factory=list)
    chosen: Setting | None = None
    finals: list[Result] = field(default_factory=list)

    @property
    def control(self) -> bool:
        """Whether it is there to test the comparison, not to compete."""
        return self.method is not None and (self.method.sides_swapped or self.method.seed_offset > 0)


class Contest:
    """The jobs of a comparison, in two rounds: trials, each method's next led by its results, then the final runs.

    Args:
        comparison: what is compared.

    Raises:
        UserError: something in it cannot be composed.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.methods = comparison.rows()
        self.configs = {method.name: configuration(comparison, method) for method in self.methods}
        for name in self.configs:
            self.tried(name, ())  # a search that cannot be is refused here
        self._yardsticks = yardsticks(comparison, self.base_config)

    @property
    def base_config(self) -> RunConfig:
        """What the base model is measured with: that of the first method, whose loss plays no part."""
        return self.configs[self.comparison.methods[0].name]

    @property
    def trials_each(self) -> int:
        """Trials of a method: the budget's, or none where a budget of one leaves nothing to choose between."""
        return self.comparison.budget.trials if self.comparison.budget.trials > 1 else 0

    @property
    def trial_count(self) -> int:
        """Jobs of the first round."""
        return 1 + len(self.methods) * self.trials_each if self.trials_each else 0

    @property
    def final_count(self) -> int:
        """Jobs of the second round, if every method has a setting that works."""
        return 1 + len(self.methods) * self.comparison.seeds

    def tried(self, name: str, results: Sequence[Result]) -> list[Setting]:
        """The settings of a method's trials, as far as its results tell."""
        own = [result for result in results if result.method == name]
        metric = primary(own)

        def score(setting: Setting) -> float | None:
            found = next((result for result in own if result.setting == setting.plain()), None)
            if found is None:
                return None
            return found.figures[metric] if found.ok and metric is not None else math.nan

        return settings(self.configs[name], self.comparison.budget.trials, score)

    def trials(self, results: Sequence[Result] = ()) -> list[Job]:
        """The first round on validation prompts, as far as it is known: the base model, and each method's settings.

        Args:
            results: of those trials that have been run.
        """
        if self.base_config.data.path != "world":
            data_of(self.base_config).half("test")  # refused here, not by every job
        if not self.trials_each:
            return []
        jobs = [self._base("validation")]
        for method in self.methods:
            for setting in self.tried(method.name, results):
                jobs.append(self._job(method, setting, TRIAL_SEED, "validation"))
        return jobs

    def finals(self, chosen: dict[str, Setting]) -> list[Job]:
        """The second round: the base model and the chosen settings at fresh seeds, on test prompts."""
        return [self._base("test")] + [
            self._job(method, chosen[method.name], seed + method.seed_offset, "test")
            for method in self.methods
            if method.name in chosen
            for seed in self._seeds()
        ]

    def rows(self, trials: Sequence[Result], finals: Sequence[Result]) -> list[Row]:
        """The results by method, the base model first."""
        at_start = [[r for r in results if r.method == BASE] for results in (trials, finals)]
        rows = [Row(name=BASE, method=None, config=self.base_config, trials=at_start[0], finals=at_start[1])]
        for method in self.methods:
            own = [r for r in trials if r.method == method.name]
            tried = self.tried(method.name, trials)
            rows.append(
                Row(
                    name=method.name,
                    method=method,
                    config=self.configs[method.name],
                    settings=tried,
                    trials=own,
                    chosen=best(tried, own) if self.trials_each else tried[0],
                    finals=[_warned(r, method) for r in finals if r.method == method.name],
                )
            )
        return rows

    def choose(self, trials: Sequence[Result]) -> dict[str, Setting]:
        """The setting of each method whose trial was best on validation prompts."""
        found = {row.name: row.chosen for row in self.rows(trials, []) if row.method is not None}
        return {name: setting for name, setting in found.items() if setting is not None}

    def _seeds(self) -> range:
        return range(TRIAL_SEED + 1, TRIAL_SEED + 1 + self.comparison.seeds)

    def _base(self, split: Split) -> Job:
        config = self.base_config
        return Job(
            method=BASE, label=f"{BASE}, {split}", config=config,
            fingerprints=fingerprints(config) | self._yardsticks,
            measure=self.comparison.measure, split=split, trained=False,
        )  # fmt: skip

    def _job(self, method: Method, setting: Setting, seed: int, split: Split) -> Job:
        config = dataclasses.replace(setting.apply(self.configs[method.name]), seed=seed)
        return Job(
            method=method.name,
            label=f"{method.name} {setting}, seed {config.seed}, {split}",
            config=config,
            fingerprints=fingerprints(config) | self._yardsticks,
            measure=self.comparison.measure,
            split=split,
            sides_swapped=method.sides_swapped,
            setting=setting.plain(),
        )


def configuration(comparison: Comparison, method: Method) -> RunConfig:
    """A method's configuration before the search, as `prefopt train` would compose it.

    Raises:
        UserError: what Hydra or a schema refuses, with the nearest name; what all rows must have in common.
    """
    from prefopt.config.compose import compose
    from prefopt.train.arguments import DEFAULTS

    taken = ("loss", "seed", "output_dir", "-m", "--multirun")
    for override in (*comparison.overrides, *method.overrides):
        if override.split("=", 1)[0] in taken:
            raise UserError(f"{override}: a comparison sets this itself (losses=[...], seeds=N, output_dir=DIR)")
    for override in method.overrides:
        if re.split(r"[.=@/]", override.lstrip("+~"), maxsplit=1)[0] in SHARED:
            raise UserError(
                f"methods.{method.name}.{override}: all rows have the same data, model and measurement, or they could "
                f"not be compared; give {override} to all, or hold another comparison with it"
            )
    config = compose([f"loss={method.loss}", *comparison.overrides, *method.overrides, "output_dir=."])
    if config.stages:
        raise UserError("a comparison starts every method from one model: run the stages before it by themselves, and "
                        "give what they leave as model.path=FOLDER")  # fmt: skip
    config.trainer.setdefault("learning_rate", DEFAULTS["learning_rate"])
    return config


def yardsticks(comparison: Comparison, config: RunConfig) -> dict[str, str]:
    """Fingerprints of judge and tasks, which are refused here, before anything is trained; empty without them.

    What a function says is kept apart from the jobs, which do not depend on it.

    Raises:
        UserError: no such judge or task; a world, whose reward is exact.
    """
    from prefopt.evaluate import judge as judges

    measure = comparison.measure
    if config.data.path == "world" and (measure.judge or measure.tasks):
        raise UserError("judge=... and tasks=[...] are for real data: a world's reward is exact, its words are its own")
    found = {}
    if measure.judge:
        judges.check(measure.judge)
        if measure.prompts is None and config.evaluation.kl_prompts < 2:
            raise UserError(f"judge={measure.judge} needs texts: set measure.prompts=64, say")
        if not judges.is_callable(measure.judge):
            found["judge"] = digest_of_weights(measure.judge)
    if measure.tasks:
        from prefopt.evaluate.tasks import check_tasks, digest_of_tasks

        check_tasks(measure.tasks)
        found["tasks"] = digest_of_tasks(measure.tasks)
    return found


def _warned(result: Result, method: Method) -> Result:
    """The result with a warning where its row has steps or a batch of its own."""
    own = [override for override in method.overrides if OF_COST.match(override.lstrip("+"))]
    if not own:
        return result
    warning = f"{', '.join(own)} of this row alone: the others train with other steps or another batch"
    return dataclasses.replace(result, warnings=[*result.warnings, warning])


def primary(results: Sequence[Result]) -> str | None:
    """The figure by which these results are ranked: the first of `PRIMARY` that all working ones have."""
    working = [r for r in results if r.ok]
    return next((name for name in PRIMARY if working and all(name in r.figures for r in working)), None)


def best(tried: Sequence[Setting], trials: Sequence[Result]) -> Setting | None:
    """The setting with the best primary figure; the earlier one of equals."""
    name = primary(trials)
    if name is None:
        return None
    working = [(r.figures[name], -i) for i, r in enumerate(trials) if r.ok and math.isfinite(r.figures[name])]
    return tried[-max(working)[1]] if working else None


def fingerprints(config: RunConfig) -> dict[str, str]:
    """Of the records and of the weights that a run starts from."""
    from prefopt.models.load import resolve

    data = data_of(config)
    paths = [resolve(path) for path in (config.model.path, config.model.reference) if path]
    return {"data": _digest(data), "weights": " ".join(digest_of_weights(path) for path in paths)}


@cache
def _digest(data: Any) -> str:
    return digest_of_records(data.train, data.eval)
