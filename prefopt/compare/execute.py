"""Runs one job: trains, measures, and turns what goes wrong into a result."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from prefopt.common.memory_usage import peak_memory_gib, reset_peak_memory
from prefopt.compare import measure_texts, measure_world
from prefopt.compare.costs import ChangedReward, SampleCount, offline_costs
from prefopt.compare.jobs import Job, JobResult, failure
from prefopt.compare.spec import Measurement, Split
from prefopt.config.run_config import RunConfig
from prefopt.data.record import reversed_sides
from prefopt.engine.cpu import give_back
from prefopt.engine.reference.store import store_root
from prefopt.errors import PrefoptError, TrainingError, UserError
from prefopt.models.load import load_model, load_policy, load_reference, load_tokenizer
from prefopt.models.reward_model import load_value_model
from prefopt.plugin import Data
from prefopt.rewards.reward import Reward
from prefopt.runs.resolve import prepared_data, resolved
from prefopt.runs.resolve_reward import resolved_reward
from prefopt.train import train
from prefopt.worlds import knobs, task_of

WORLD_PROMPTS, WORLD_SAMPLES = 512, 4
DATA_SETS = 8  # kept prepared in a worker
CURVE = (
    "loss", "learning_rate", "grad_norm", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected",
    "ratios/chosen", "ratios/rejected",
    "accuracies/logps", "accuracies/logps_mean", "lengths/chosen", "lengths/rejected", "reward", "reward_std", "kl",
    "entropy", "completions/mean_length",
)  # fmt: skip


def execute(job: Job) -> JobResult:
    """Train and measure; an error becomes the result of the job, so that the other jobs can run."""
    start = time.perf_counter()
    give_back()  # memory left by the previous job is not counted
    reset_peak_memory()

    def seconds() -> float:
        return round(time.perf_counter() - start, 3)

    try:
        result = _execute(job)
    except TrainingError as error:
        result = failure(job, "diverged", str(error), {"train_seconds": seconds()})
    except Exception as error:
        name = "" if isinstance(error, PrefoptError) else f"{type(error).__name__}: "
        result = failure(job, "failed", name + str(error), {"train_seconds": seconds()})
    # everything: loading, data, the reference pass, steps, measuring
    return dataclasses.replace(result, cost={**result.cost, "job_seconds": seconds()})


def _execute(job: Job) -> JobResult:
    config = resolved(job.config)
    data = data_of(config)
    policy = load_policy(config.model, config.peft, seed=config.seed) if job.trained else load_model(config.model)
    cost: dict[str, float] = {}
    curve: list[dict[str, float]] = []
    if job.trained:
        records = data.train if not job.sides_swapped else swapped(data.train)
        cost, curve = _train(job, config, policy, dataclasses.replace(data, train=records))
    start = time.perf_counter()
    policy.eval()
    measured, warnings = _measure(job, policy, data)
    cost |= {
        "measure_seconds": round(time.perf_counter() - start, 3),
        "peak_memory_mib": round(1024 * peak_memory_gib(), 1),
    }
    wrong = [name for name, value in measured.figures.items() if math.isinf(value)]
    if wrong or (measured.figures and all(map(math.isnan, measured.figures.values()))):
        reason = f"figures of the trained model are not finite: {', '.join(wrong) or 'all'}"
        return failure(job, "diverged", reason, cost)
    return JobResult(
        key=job.key, method=job.method, label=job.label, status="ok", setting=job.setting, figures=measured.figures,
        arrays=measured.arrays, texts=measured.texts, curve=curve, cost=cost, warnings=warnings,
    )  # fmt: skip


def _train(
    job: Job, config: RunConfig, policy: Any, data: PreparedRecords
) -> tuple[dict[str, float], list[dict[str, float]]]:
    count, processor, reward = SampleCount(), time.process_time(), _reward(job)
    reads = config.loss.needs.reads_reference
    with tempfile.TemporaryDirectory(prefix="prefopt-job-") as scratch:
        result = train(
            policy,
            config.loss,
            data.train,
            output_dir=scratch,
            batch=config.batch,
            seed=config.seed,
            reference=load_reference(config.model, policy) if config.model.reference else None,
            value_model=load_value_model(config.model, config.peft, tokenizer=data.tokenizer, seed=config.seed),
            store=store_root(config.reference_folder, figures=not reads),
            tokenizer=data.tokenizer,
            reward=reward,
            rollout=config.rollout,
            look=count.add,
            log_ratios=True,
            **(config.trainer | {"save_strategy": "no", "eval_strategy": "no"}),
        )
    state = result.trainer.state
    weights = sum(p.numel() for p in policy.parameters())
    processor += 0.0 if reads else result.reference_processor_seconds
    # of a loss that reads none, the reference is scored for the figures alone, and is no cost of the method
    scored, unscored = ("reference", "figures") if reads else ("figures", "reference")
    cost = {
        "train_seconds": round(result.seconds, 3),  # the steps alone
        "processor_seconds": round(time.process_time() - processor, 3),  # with the reference pass, of this process
        f"{scored}_seconds": round(result.reference_seconds, 3),
        f"{scored}_texts": float(result.reference_misses),  # scored now, not found in the store
        f"{unscored}_seconds": 0.0,
        f"{unscored}_texts": 0.0,
        # the trainer counts six operations per token and weight
        "tokens": float(round(state.total_flos / (6 * weights))),
        "steps": float(state.global_step),
    }
    if reward is not None:
        cost |= count.costs(config, reward)
    else:
        cost |= offline_costs(config, data.train, state.global_step, cost["tokens"])
    curve = [
        {"step": h["step"]} | {name: h[name] for name in CURVE if name in h} for h in state.log_history if "loss" in h
    ]
    return cost, curve


def _reward(job: Job) -> Reward | None:
    reward = resolved_reward(job.config)
    if reward is None or not job.reward_change:
        return reward
    return ChangedReward(reward, job.reward_change, job.config.seed)


def _measure(job: Job, policy: Any, data: PreparedRecords) -> tuple[Measurement, list[str]]:
    if job.config.data.is_world:
        return _measure_in_world(job, policy)
    records = data.half(job.split)
    config = resolved(job.config)
    return measure_texts.measure(config, job.measure, policy=policy, tokenizer=data.tokenizer, records=records), []


def _measure_in_world(job: Job, policy: Any) -> tuple[Measurement, list[str]]:
    settings = job.measure
    if settings.judge or settings.tasks:
        raise UserError("judge=... and tasks=[...] are for real data: a world has an exact reward and its own words")
    each = settings.samples_per_prompt or WORLD_SAMPLES
    world = knobs(job.config.data.world, str(job.config.data.path))
    measured = measure_world.measure(
        policy,
        world,
        split=job.split,
        prompts=settings.prompts or min(WORLD_PROMPTS, task_of(world).size(job.split)),
        samples_per_prompt=each,
        texts=settings.texts,
        seed=settings.seed,
    )
    warning = measure_world.kl_warning(measured, len(measured.arrays["kl"]) * each)
    return measured, [warning] if warning else []


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedRecords:
    """The data of a configuration in tokens."""

    tokenizer: Any
    train: Sequence[Any]
    eval: Sequence[Any] | None

    def half(self, split: Split) -> list[Any]:
        """Return the held-out records of a split: whole prompts, every other one for validation.

        Raises:
            UserError: nothing is held out, or too little to be halved.
        """
        records = list(self.eval or ())
        prompts = list(dict.fromkeys(tuple(record.prompt.tolist()) for record in records))
        wanted = set(prompts[0 if split == "validation" else 1 :: 2])
        half = [record for record in records if tuple(record.prompt.tolist()) in wanted]
        if len(prompts) < 2 or not half:
            raise UserError("a comparison needs held-out records of at least two prompts, half to choose settings and "
                            "half to report: set data.eval_records, data.eval_fraction or data.eval_path")  # fmt: skip
        return half


_prepared: dict[str, PreparedRecords] = {}


def data_of(config: RunConfig) -> PreparedRecords:
    """Prepare the data of a configuration; the last few are kept, so that a worker prepares each set once."""
    if config.data.ties == "auto":  # every method gets the same records
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, ties="drop"))
    needs = config.loss.needs
    text = config.loss.control_text if needs.control_text else None  # type: ignore[attr-defined]
    kind = needs.data.value if config.source == "offline" else None  # behind prompts of records of any kind
    facts = (dataclasses.asdict(config.data), dataclasses.asdict(config.model), kind, text)
    key = json.dumps(facts, default=str, sort_keys=True)
    if key not in _prepared:
        tokenizer = load_tokenizer(resolved(config).model)
        prepared = prepared_data(config, tokenizer)
        while len(_prepared) >= DATA_SETS:
            del _prepared[next(iter(_prepared))]
        _prepared[key] = PreparedRecords(tokenizer, prepared.train, prepared.eval)
    return _prepared[key]


def swapped(records: Sequence[Any]) -> list[Any]:
    """Return the records with their preference reversed.

    Raises:
        UserError: records without a preference.
    """
    exchanged = []
    for record in records:
        if record.kind is Data.UNPAIRED:
            exchanged.append(dataclasses.replace(record, desirable=not record.desirable))
        elif record.kind is Data.PAIRS:
            exchanged.append(dataclasses.replace(record, **reversed_sides(record)))
        elif record.kind is Data.LISTS and record.scores is not None:
            exchanged.append(dataclasses.replace(record, scores=tuple(-score for score in record.scores)))
        else:
            raise UserError(f"{record.kind.value} have no preference to reverse: the wrong-sign control needs pairs")
    return exchanged
