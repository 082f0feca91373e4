"""One job, from the start to its result; what goes wrong in it becomes a result too."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.compare.jobs import Job, Result, failure, peak_memory_mib, reset_peak_memory
from prefopt.compare.spec import Measured, Split
from prefopt.engine.cpu.allocator import give_back
from prefopt.errors import PrefoptError, TrainingError, UserError
from prefopt.plugin import Data

if TYPE_CHECKING:
    from prefopt.config.run_config import RunConfig

WORLD_PROMPTS, WORLD_SAMPLES = 512, 4
CURVE = (
    "loss", "learning_rate", "grad_norm", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected",
    "accuracies/logps", "accuracies/logps_mean", "lengths/chosen", "lengths/rejected",
)  # fmt: skip


def execute(job: Job) -> Result:
    """Train and measure; never raises for what can go wrong in one run."""
    start = time.perf_counter()
    give_back()  # what the job before left is not this one's memory
    reset_peak_memory()
    try:
        result = _execute(job)
    except TrainingError as error:
        result = failure(job, "diverged", str(error), {"train_seconds": time.perf_counter() - start})
    except Exception as error:  # whatever it is, the other jobs go on
        name = "" if isinstance(error, PrefoptError) else f"{type(error).__name__}: "
        result = failure(job, "failed", name + str(error), {"train_seconds": time.perf_counter() - start})
    # all of it: loading, data, the reference pass, steps, measuring
    return dataclasses.replace(result, cost={**result.cost, "job_seconds": round(time.perf_counter() - start, 3)})


def _execute(job: Job) -> Result:
    from prefopt.models.load import load_model, load_policy

    config = job.config
    data = data_of(config)
    policy = load_policy(config.model, config.peft, seed=config.seed) if job.trained else load_model(config.model)
    cost: dict[str, float] = {}
    curve: list[dict[str, float]] = []
    if job.trained:
        records = data.train if not job.sides_swapped else swapped(data.train)
        cost, curve = _train(config, policy, records)
    start = time.perf_counter()
    policy.eval()
    measured, warnings = _measure(job, policy, data)
    cost |= {"measure_seconds": round(time.perf_counter() - start, 3), "peak_memory_mib": round(peak_memory_mib(), 1)}
    wrong = [name for name, value in measured.figures.items() if math.isinf(value)]
    if wrong or (measured.figures and all(map(math.isnan, measured.figures.values()))):
        return failure(
            job, "diverged", f"figures of the trained model are not finite: {', '.join(wrong) or 'all'}", cost
        )
    return Result(
        key=job.key, method=job.method, label=job.label, status="ok", setting=job.setting, figures=measured.figures,
        arrays=measured.arrays, texts=measured.texts, curve=curve, cost=cost, warnings=warnings,
    )  # fmt: skip


def _train(config: RunConfig, policy: Any, records: Sequence[Any]) -> tuple[dict[str, float], list[dict[str, float]]]:
    from prefopt.models.load import load_reference
    from prefopt.train import train

    with tempfile.TemporaryDirectory(prefix="prefopt-job-") as scratch:
        result = train(
            policy,
            config.loss,
            records,
            output_dir=scratch,
            batch=config.batch,
            seed=config.seed,
            reference=load_reference(config.model, policy) if config.model.reference else None,
            store=Path(config.reference_folder) if config.reference_folder else None,
            **(config.trainer | {"save_strategy": "no", "eval_strategy": "no"}),
        )
    state = result.trainer.state
    weights = sum(p.numel() for p in policy.parameters())
    cost = {
        "train_seconds": round(result.seconds, 3),  # its steps
        "reference_seconds": round(result.reference_seconds, 3),
        "reference_texts": float(result.reference_misses),  # scored now, not found in the store
        # the trainer counts six operations a token and weight
        "tokens": float(round(state.total_flos / (6 * weights))),
        "steps": float(state.global_step),
    }
    curve = [
        {"step": h["step"]} | {name: h[name] for name in CURVE if name in h} for h in state.log_history if "loss" in h
    ]
    return cost, curve


def _measure(job: Job, policy: Any, data: DataOf) -> tuple[Measured, list[str]]:
    config, settings = job.config, job.measure
    if config.data.path == "world":
        return _measure_in_world(job, policy)
    from prefopt.compare.measure_texts import measure

    records = data.half(job.split)
    return measure(config, settings, policy=policy, tokenizer=data.tokenizer, records=records), []


def _measure_in_world(job: Job, policy: Any) -> tuple[Measured, list[str]]:
    from prefopt.compare.measure_world import kl_doubt, measure
    from prefopt.worlds import knobs

    settings = job.measure
    if settings.judge or settings.tasks:
        raise UserError("judge=... and tasks=[...] are for real data: a world's reward is exact, its words are its own")
    each = settings.samples_per_prompt or WORLD_SAMPLES
    measured = measure(
        policy,
        knobs(job.config.data.world),
        split=job.split,
        prompts=settings.prompts or WORLD_PROMPTS,
        samples_per_prompt=each,
        texts=settings.texts,
        seed=settings.seed,
    )
    doubt = kl_doubt(measured, len(measured.arrays["kl"]) * each)
    return measured, [doubt] if doubt else []


@dataclasses.dataclass(frozen=True, eq=False)
class DataOf:
    """The data of a configuration in tokens."""

    tokenizer: Any
    train: Sequence[Any]
    eval: Sequence[Any] | None

    def half(self, split: Split) -> list[Any]:
        """The held-out records of a split: whole prompts, every other one for validation.

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


def data_of(config: RunConfig) -> DataOf:
    """The data of a configuration; kept, so that a worker prepares each set once."""
    needs = config.loss.needs
    text = config.loss.control_text if needs.control_text else None  # type: ignore[attr-defined]
    about = (dataclasses.asdict(config.data), dataclasses.asdict(config.model), needs.data.value, text)
    return _data(_ByContent(json.dumps(about, default=str, sort_keys=True), config))


class _ByContent:
    """A configuration that a cache finds by the part that the data depend on."""

    def __init__(self, name: str, config: RunConfig) -> None:
        self.name, self.config = name, config

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByContent) and self.name == other.name


@lru_cache(maxsize=8)
def _data(wanted: _ByContent) -> DataOf:
    from prefopt.models.load import load_tokenizer
    from prefopt.runs.run import prepared_data

    tokenizer = load_tokenizer(wanted.config.model)
    prepared = prepared_data(wanted.config, tokenizer)
    return DataOf(tokenizer, prepared.train, prepared.eval)


def swapped(records: Sequence[Any]) -> list[Any]:
    """The records with their preference turned round.

    Raises:
        UserError: records without a preference.
    """
    turned = []
    for record in records:
        if record.kind is Data.UNPAIRED:
            turned.append(dataclasses.replace(record, desirable=not record.desirable))
        elif record.kind is Data.PAIRS:
            scores = record.scores[::-1] if record.scores is not None else None
            turned.append(dataclasses.replace(record, completions=record.completions[::-1], scores=scores))
        elif record.kind is Data.LISTS and record.scores is not None:
            turned.append(dataclasses.replace(record, scores=tuple(-score for score in record.scores)))
        else:
            raise UserError(f"{record.kind.value} have no preference to turn round: the wrong-sign control needs pairs")
    return turned
