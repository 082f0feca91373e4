"""Lists the jobs of a comparison in two rounds: trials that choose a setting, then final runs at fresh seeds."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache

from prefopt.common import digest
from prefopt.compare.execute import PreparedRecords, data_of
from prefopt.compare.jobs import Job, JobResult
from prefopt.compare.search import Setting, settings
from prefopt.compare.spec import BASE, PRIMARY, VALUE_MODEL, Comparison, Method, Split, group_of, option_of
from prefopt.config.compose import compose
from prefopt.config.read_options import check_read
from prefopt.config.run_config import RunConfig
from prefopt.errors import UserError
from prefopt.evaluate import judge as judges
from prefopt.evaluate.tasks import check_tasks, digest_of_tasks
from prefopt.models.identity import digest_of_weights
from prefopt.models.reward_model import check_value_model
from prefopt.runs.resolve import resolve_path
from prefopt.runs.resolve_reward import digest_of_reward
from prefopt.runs.run_folder import model_path
from prefopt.train.trainer_config import DEFAULTS

TRIAL_SEED = 0
SHARED = ("data", "model", "world", "evaluation", "measure", "judge", "tasks", "experiment")  # the same for all rows
COMPARED_SOURCES = ("offline", "rollouts")
# Of the options of `prefopt train`; a comparison keeps no checkpoints and measures its models once, at the end.
NOT_READ = (
    "sentinels", "sentinels.*", "progress", "resume", "stages_folder", "optimized_metric", "rounds", "evaluation.texts",
    "trainer.save_*", "trainer.eval_*", "trainer.early_stopping_*", "trainer.load_best_model_at_end",
    "trainer.metric_for_best_model", "trainer.greater_is_better",
)  # fmt: skip
OF_OUTPUT = ("tracking", "tracking.*", "reference_folder")  # of the whole comparison
COST = re.compile(r"(trainer\.(max_steps|num_train_epochs)|batch\.records|batch|trainer)=")  # may differ: a caveat


@dataclass(frozen=True, eq=False, kw_only=True)
class MethodRuns:
    """The runs of one row.

    Attributes:
        name: the name of the row.
        method: its method; None for the base model.
        config: its configuration before the search.
        settings: the settings tried, or the one taken without a trial.
        trials: one result for each setting, on validation prompts.
        chosen: the best setting; None where none worked.
        finals: one result for each seed at the chosen setting, on test prompts.
    """

    name: str
    method: Method | None
    config: RunConfig
    settings: list[Setting] = field(default_factory=list)
    trials: list[JobResult] = field(default_factory=list)
    chosen: Setting | None = None
    finals: list[JobResult] = field(default_factory=list)

    @property
    def control(self) -> bool:
        """Whether this row tests the comparison instead of competing."""
        return self.method is not None and self.method.control


class Rounds:
    """The jobs of a comparison in two rounds: trials, where results decide what is tried next, then final runs.

    Args:
        comparison: what is compared.

    Raises:
        UserError: its options do not compose, or it names no such judge or task.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.methods = comparison.rows()
        self.configs = {method.name: configuration(comparison, method) for method in self.methods}
        check_read(comparison.overrides, list(self.configs.values()))
        for method in self.methods:
            check_read(method.overrides, [self.configs[method.name]])
            self.tried(method.name, ())  # checks the search space
        _check_value_models(comparison, list(self.configs.values()))
        self._measured_by = judge_and_tasks(comparison, self.base_config)

    @property
    def base_config(self) -> RunConfig:
        """The configuration that the base model is measured with: the first method's, whose loss and value model play
        no part."""
        config = self.configs[self.comparison.methods[0].name]
        return dataclasses.replace(config, model=dataclasses.replace(config.model, value_model=None))

    @property
    def trials_each(self) -> int:
        """Trials per method; none for a budget of one, which leaves nothing to choose."""
        return self.comparison.budget.trials if self.comparison.budget.trials > 1 else 0

    @property
    def trial_count(self) -> int:
        """The number of jobs of the first round."""
        return 1 + len(self.methods) * self.trials_each if self.trials_each else 0

    @property
    def final_count(self) -> int:
        """The number of jobs of the second round, if every method has a setting that works."""
        return 1 + len(self.methods) * self.comparison.seeds

    def tried(self, name: str, results: Sequence[JobResult]) -> list[Setting]:
        """Return the settings of a method's trials, as far as its results determine them."""
        own = self._judged([result for result in results if result.method == name])
        metric = primary(own)

        def score(setting: Setting) -> float | None:
            found = next((result for result in own if result.setting == setting.plain()), None)
            if found is None:
                return None
            return found.figures[metric] if found.ok and metric is not None else math.nan

        return settings(self.configs[name], self.comparison.budget.trials, score)

    def trials(self, results: Sequence[JobResult] = ()) -> list[Job]:
        """Return the first round, on validation prompts, as far as it is known: the base model and each setting.

        Args:
            results: of the trials run so far.
        """
        if not self.base_config.data.is_world:
            data_of(self.base_config).half("test")  # checks that records are held out
        if not self.trials_each:
            return []
        jobs = [self._base("validation")]
        for method in self.methods:
            for setting in self.tried(method.name, results):
                jobs.append(self._job(method, setting, TRIAL_SEED, "validation"))
        return jobs

    def finals(self, chosen: dict[str, Setting]) -> list[Job]:
        """Return the second round, on test prompts: the base model and the chosen settings at fresh seeds."""
        return [self._base("test")] + [
            self._job(method, chosen[method.name], seed + method.seed_offset, "test")
            for method in self.methods
            if method.name in chosen
            for seed in self._seeds()
        ]

    def by_method(self, trials: Sequence[JobResult], finals: Sequence[JobResult]) -> list[MethodRuns]:
        """Group the results by method, the base model first."""
        at_start = [[r for r in results if r.method == BASE] for results in (trials, finals)]
        rows = [MethodRuns(name=BASE, method=None, config=self.base_config, trials=at_start[0], finals=at_start[1])]
        for method in self.methods:
            own = self._judged([r for r in trials if r.method == method.name])
            tried = self.tried(method.name, trials)
            rows.append(
                MethodRuns(
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

    def choose(self, trials: Sequence[JobResult]) -> dict[str, Setting]:
        """Return the setting of each method that did best on validation prompts."""
        found = {row.name: row.chosen for row in self.by_method(trials, []) if row.method is not None}
        return {name: setting for name, setting in found.items() if setting is not None}

    def _judged(self, trials: Sequence[JobResult]) -> list[JobResult]:
        """Return the trials, those that moved too far as diverged; their files stay, for another bound."""
        bound = self.comparison.budget.max_kl
        return [
            dataclasses.replace(r, status="diverged", reason=f"KL {kl:.3g} is past budget.max_kl={bound:g}")
            if bound is not None and r.ok and not (kl := r.figures.get("kl", 0.0)) <= bound else r  # nan is past it
            for r in trials
        ]  # fmt: skip

    def _seeds(self) -> range:
        return range(TRIAL_SEED + 1, TRIAL_SEED + 1 + self.comparison.seeds)

    def _base(self, split: Split) -> Job:
        config = self.base_config
        return Job(
            method=BASE, label=f"{BASE}, {split}", config=config,
            fingerprints=fingerprints(dataclasses.replace(config, reward=None)) | self._measured_by,
            measure=self.comparison.measure, split=split, trained=False,
        )  # fmt: skip

    def _job(self, method: Method, setting: Setting, seed: int, split: Split) -> Job:
        config = dataclasses.replace(setting.apply(self.configs[method.name]), seed=seed)
        return Job(
            method=method.name,
            label=f"{method.name} {setting}, seed {config.seed}, {split}",
            config=config,
            fingerprints=fingerprints(config) | self._measured_by,
            measure=self.comparison.measure,
            split=split,
            sides_swapped=method.sides_swapped,
            reward_change=method.reward_change,
            setting=setting.plain(),
        )


def configuration(comparison: Comparison, method: Method) -> RunConfig:
    """Compose a method's configuration before the search, as `prefopt train` would.

    Raises:
        UserError: an unknown option, with the nearest name; an option of one row that all rows must share.
    """
    taken = ("loss", "seed", "output_dir", "-m", "--multirun")
    for override in (*comparison.overrides, *method.overrides):
        if override.split("=", 1)[0] in taken:
            raise UserError(f"{override}: a comparison sets this itself (losses=[...], seeds=N, output_dir=DIR)")
        if group_of(override) == "source" and override.partition("=")[2] not in COMPARED_SOURCES:
            raise UserError(f"{override}: a comparison trains on the data (source=offline) or on the policy's own "
                            "samples (source=rollouts)")  # fmt: skip
        if any(fnmatchcase(option_of(override), pattern) for pattern in NOT_READ):
            raise UserError(f"{override}: `prefopt compare` does not read it; leave it out")
    for override in method.overrides:
        if any(fnmatchcase(option_of(override), pattern) for pattern in OF_OUTPUT):
            raise UserError(f"methods.{method.name}.{override}: it is of the whole comparison; give {override}")
        if group_of(override) in SHARED and option_of(override) != VALUE_MODEL:
            raise UserError(
                f"methods.{method.name}.{override}: all rows need the same data, model and measurement to be "
                f"comparable; give {override} to all, or run another comparison with it"
            )
    config = compose([*comparison.words(method), "output_dir=."])
    if config.stages:
        raise UserError("a comparison starts every method from one model: run the earlier stages with `prefopt train`, "
                        "and give their model as model.path=FOLDER")  # fmt: skip
    config.trainer.setdefault("learning_rate", DEFAULTS["learning_rate"])
    return config if config.source == "offline" or _own_batch(method) else with_as_many_texts(config)


def _check_value_models(comparison: Comparison, configs: Sequence[RunConfig]) -> None:
    """Raise UserError where a value model is no reward model, or no row has one."""
    paths = {config.model.value_model for config in configs} - {None}
    for path in paths:
        check_value_model(str(path))
    given = next((override for override in comparison.overrides if option_of(override) == VALUE_MODEL), None)
    if given is not None and not paths:
        raise UserError(f"{given}: no row has a value model; add one whose loss has, such as ppo, or leave it out")


def with_as_many_texts(config: RunConfig) -> RunConfig:
    """Return the configuration with so many prompts a step that their samples are as many texts as those of pairs."""
    records = max(1, round(2 * config.batch.records / config.rollout.num_generations))
    return dataclasses.replace(config, batch=dataclasses.replace(config.batch, records=records))


def _own_batch(method: Method) -> bool:
    return any(group_of(override) == "batch" for override in method.overrides)


def judge_and_tasks(comparison: Comparison, config: RunConfig) -> dict[str, str]:
    """Check the judge and the tasks before anything is trained, and return their fingerprints; empty without them.

    A judge that is a function has none: its answers are kept apart from the jobs, which do not depend on it.

    Raises:
        UserError: no such judge or task; a judge or tasks for a world, whose reward is exact.
    """
    measure = comparison.measure
    if config.data.is_world and (measure.judge or measure.tasks):
        raise UserError("judge=... and tasks=[...] are for real data: a world has an exact reward and its own words")
    found = {}
    if measure.judge:
        model = measure.judge if judges.is_callable(measure.judge) else model_path(measure.judge)
        judges.check(model)
        if measure.prompts is None and config.evaluation.kl_prompts < 2:
            raise UserError(f"judge={measure.judge} needs texts: set measure.prompts=64, for example")
        if not judges.is_callable(measure.judge):
            found["judge"] = digest_of_weights(model)
    if measure.tasks:
        check_tasks(measure.tasks)
        found["tasks"] = digest_of_tasks(measure.tasks)
    return found


def _warned(result: JobResult, method: Method) -> JobResult:
    """Add a warning to the result where its row has steps or a batch of its own."""
    own = [override for override in method.overrides if COST.match(override.lstrip("+"))]
    if not own:
        return result
    warning = f"{', '.join(own)} applies to this row alone: the others train with other steps or another batch"
    return dataclasses.replace(result, warnings=[*result.warnings, warning])


def primary(results: Sequence[JobResult]) -> str | None:
    """Return the figure that ranks these results: the first of `PRIMARY` that all working ones have."""
    working = [r for r in results if r.ok]
    return next((name for name in PRIMARY if working and all(name in r.figures for r in working)), None)


def best(tried: Sequence[Setting], trials: Sequence[JobResult]) -> Setting | None:
    """Return the setting with the best primary figure; the earlier one of equals."""
    name = primary(trials)
    if name is None:
        return None
    working = [(r.figures[name], -i) for i, r in enumerate(trials) if r.ok and math.isfinite(r.figures[name])]
    return tried[-max(working)[1]] if working else None


def fingerprints(config: RunConfig) -> dict[str, str]:
    """Return the digests of the records, of the weights that a run starts from, and of a reward that is a function."""
    model = config.model
    paths = [resolve_path(path, config.data) for path in (model.path, model.reference, model.value_model) if path]
    reward = digest_of_reward(config)
    found = {"data": _digest(data_of(config)), "weights": " ".join(digest_of_weights(path) for path in paths)}
    return found if reward is None else {**found, "reward": reward}


@cache
def _digest(data: PreparedRecords) -> str:
    return digest.of_records(data.train, data.eval)
