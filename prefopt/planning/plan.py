"""Plans a run on this machine or another device: what it will do, what it takes, and what speaks against it."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field, replace
from typing import Any

import psutil
import torch
from transformers import TrainingArguments

from prefopt.config.run_config import RunConfig
from prefopt.data.token_table import TokenTable
from prefopt.engine.gates import choose_layout
from prefopt.engine.generation import generate
from prefopt.engine.layout import Layout
from prefopt.engine.packing import Cost, EpochPlan
from prefopt.errors import UserError
from prefopt.models.load import load_policy, load_tokenizer
from prefopt.planning import advice
from prefopt.planning.devices import UTILISATION, Device
from prefopt.planning.memory import (
    CONTEXT,
    Memory,
    count_weights,
    head_bytes,
    library_bytes,
    linear_weights,
    optimizer_bytes,
    peak_memory,
)
from prefopt.planning.own_samples import Samples
from prefopt.planning.probe import Probe, probe
from prefopt.planning.schedule import Schedule, schedule, total_work
from prefopt.plugin import Data, Needs
from prefopt.runs.resolve import prepared_data, resolved
from prefopt.train.arguments import precision_advice, training_arguments
from prefopt.train.sources.feed import Feed

NOT_SAMPLED = "the time of sampling on another device is not known: time is that of training alone"
SAMPLED = 64  # texts whose sampling is timed, at most


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of one run.

    Attributes:
        schedule: steps and tokens.
        layout: `tree` or `padded`.
        memory: the peak by part.
        limit_gib: the free memory of the device.
        device: its name.
        measured: whether times come from a probe on the device itself, or from its peak speed.
        seconds: by part: `reference`, `training`, `evaluation`, `generation` of texts to look at, and `sampling` of
            those that a run with source=rollouts learns from, without the time of its reward.
        rejected: rows that cannot be used.
        held_out: records to measure on, beside those to train on.
        warnings: one line each.
        samples: of a run with source=rollouts the number of texts and of their tokens; all else is then what it takes
            if every text has its full length.
    """

    schedule: Schedule
    layout: str
    memory: Memory
    limit_gib: float
    device: str
    measured: bool
    seconds: dict[str, float]
    rejected: int
    warnings: list[str]
    samples: dict[str, int] = field(default_factory=dict)
    held_out: int = 0

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        planned = self.schedule
        return {
            "records": planned.records,
            "rejected": self.rejected,
            "held_out": self.held_out,
            "records_per_step": planned.records_per_step,
            "steps": planned.steps,
            "steps_per_epoch": planned.steps_per_epoch,
            "tokens_per_step": round(planned.tokens_per_step),
            "micro_batches_per_step": round(planned.micro_batches, 2),
            "longest_row_tokens": planned.heaviest_tokens,
            "layout": self.layout,
            "device": self.device,
            "memory_gib": self.memory.gib(),
            "memory_free_gib": round(self.limit_gib, 2),
            "seconds": round(sum(self.seconds.values()), 3),
            "seconds_by_part": {name: round(value, 3) for name, value in self.seconds.items()},
            "seconds_measured": self.measured,
            **self.samples,
            "warnings": self.warnings,
        }


def plan(config: RunConfig, device: Device | None = None, *, tuned: bool = False) -> Plan:
    """Plan what `prefopt train` would do with this configuration.

    Prepares the data and loads the model as the run would, and runs two short rows of its own records forward and back.
    For another device, time is computed, and memory is what these rows keep at the size of its numbers.

    Args:
        config: the configuration of the run.
        device: another device than this machine's.
        tuned: the run starts from what a stage before it makes of the model, so that it is no base model.

    Raises:
        UserError: anything that the run itself would reject.
    """
    if config.source == "samples":
        raise UserError("a plan of source=samples would have to draw them: make a file of them (`prefopt sample`, "
                        "`prefopt pairs`) and plan the training on it, or plan source=rollouts")  # fmt: skip
    run = _Run(resolved(config), on_cuda=device is not None)
    training = run.epoch("train", shuffle=run.samples is None)
    planned = schedule(training, run.arguments)
    if run.samples is not None:
        planned = run.samples.schedule(planned, run.arguments)
    measured = probe(run.model, training, run.feeds["train"], planned.heaviest, run.needs, run.arguments)
    memory = peak_memory(
        run.model, planned, run.arguments, kept=measured.kept_bytes(planned.heaviest_tokens),
        live_reference=run.live_reference, start_copy=run.measures_kl, libraries=run.libraries,
    )  # fmt: skip
    if run.samples is not None:
        memory = run.samples.peak_memory(memory, run.model, run.arguments, values=run.needs.values)
    work = _Work.of(run, planned)
    seconds = _seconds(run, planned, measured, work)
    limit, name = _free_memory(run.arguments.device.type)
    found = Plan(
        schedule=planned, layout=run.layout, memory=memory, limit_gib=limit, device=name, measured=True,
        seconds=seconds, rejected=len(run.data.rejections), warnings=[],
        held_out=len(run.data.eval or ()),
        samples={} if run.samples is None else run.samples.plain(planned.steps),
    )  # fmt: skip
    if device is not None:
        found = _on_device(found, device, run, work)
    return replace(found, warnings=_warnings(run, found, tuned=tuned))


class _Run:
    """A run that is ready to start: its data, model, layout and batches."""

    def __init__(self, config: RunConfig, *, on_cuda: bool) -> None:
        self.config = config
        self.tokenizer = load_tokenizer(config.model)
        self.libraries = library_bytes()  # before there are data and a model
        self.data = prepared_data(config, self.tokenizer)
        self.needs: Needs = config.loss.needs
        with tempfile.TemporaryDirectory() as unused:
            self.arguments: TrainingArguments = training_arguments(
                unused, seed=config.seed, records=config.batch.records, **config.trainer
            )
        self.model = load_policy(config.model, config.peft, seed=config.seed).to(self.arguments.device)
        self.layout: Layout = choose_layout(self.model, config.batch.layout).layout
        self.kind = kind = "cuda" if on_cuda else self.arguments.device.type
        text = self.model.config.get_text_config()
        self.samples: Samples | None = None
        if config.source == "rollouts":
            self.samples = Samples.of(config, self.data.train, text.vocab_size)
            self.feeds = {"train": Feed(self.samples.records, self.needs, whole=False, seed=config.seed)}
            longest = self.samples.most_positions(self.model, self.layout)
            self.batch = replace(config.batch, records=config.batch.records * self.samples.of_prompt,
                                 max_tokens=config.batch.budget(kind, longest, own_samples=True))  # fmt: skip
        else:
            self.feeds = {"train": Feed(self.data.train, self.needs, whole=False, seed=config.seed)}
            if self.data.eval is not None:
                self.feeds["eval"] = Feed(self.data.eval, self.needs, whole=True, seed=config.seed)
            self.batch = config.batch.settled(kind, self.feeds.values(), self.layout)
        self.cost = Cost.of(hidden_size=text.hidden_size, num_layers=text.num_hidden_layers, vocab_size=text.vocab_size)
        self.live_reference = self.needs.live_reference
        self.live_reference |= self.samples is not None and self.needs.reads_reference
        self.measures_kl = self.data.eval is not None and config.evaluation.kl_prompts > 1

    def epoch(self, split: str, *, shuffle: bool) -> EpochPlan:
        """The batches of a split, as the trainer makes them."""
        return EpochPlan(
            self.feeds[split].lengths(),
            seed=self.config.seed if self.arguments.data_seed is None else self.arguments.data_seed,
            epoch=0,
            records=self.batch.records,
            shuffle=shuffle,
            max_tokens=self.batch.max_tokens,
            cost=self.cost,
            layout=self.layout,
        )


@dataclass(frozen=True, kw_only=True)
class _Work:
    """The work of the parts of a run, in the unit of `prefopt.engine.packing.Cost`.

    Attributes:
        training: of all steps.
        reference, evaluation: forwards only.
        extra_forwards: forwards of every training row without a graph.
    """

    training: float
    reference: float
    evaluation: float
    extra_forwards: int

    @classmethod
    def of(cls, run: _Run, planned: Schedule) -> _Work:
        whole = {split: total_work(run.epoch(split, shuffle=False)) for split in run.feeds}
        twice = (run.needs.coupled or run.needs.state) and planned.several
        scores_reference = run.needs.reference and not run.live_reference
        return cls(
            training=planned.steps * planned.work_per_step * (2 if run.needs.values else 1),
            reference=scores_reference * whole["train"] + whole.get("eval", 0.0),
            evaluation=3 * whole.get("eval", 0.0),  # before, after, and row by row for the page
            extra_forwards=int(twice) + int(run.live_reference),
        )


def _seconds(run: _Run, planned: Schedule, measured: Probe, work: _Work) -> dict[str, float]:
    forward, back = measured.forward_seconds, measured.train_seconds
    rows = planned.steps * planned.micro_batches
    return {
        "reference": forward.slope * work.reference,
        "training": back.fixed * rows + back.slope * work.training
        + work.extra_forwards * (forward.fixed * rows + forward.slope * work.training)
        + planned.steps * measured.optimizer_seconds,
        "evaluation": forward.slope * work.evaluation,
        "generation": 0.0 if run.data.eval is None else _generation_seconds(run, run.data.eval),
        **({} if run.samples is None else {"sampling": _sampling_seconds(run, run.samples, planned.steps)}),
    }  # fmt: skip


def _generation_seconds(run: _Run, held_out: TokenTable) -> float:
    """Time a few tokens of eight texts, for all texts before and after training and those that measure the KL.

    An upper bound, since texts that end early cost less.
    """
    asked = run.config.evaluation
    prompts = [held_out[i].prompt.tolist() for i in range(min(8, len(held_out)))]
    texts = 2 * asked.texts + 2 * (asked.kl_prompts if asked.kl_prompts > 1 else 0)  # before and after
    if not texts:
        return 0.0
    return texts * asked.max_new_tokens * _token_seconds(run.model, prompts)


def _sampling_seconds(run: _Run, samples: Samples, steps: int) -> float:
    """Estimate the time of all samples from a few tokens of some: an upper bound, since texts end early."""
    prompts = [record.prompt.tolist() for record in samples.records[: samples.texts]]
    each = _token_seconds(run.model, (prompts * SAMPLED)[: min(SAMPLED, samples.texts)])
    return samples.count(steps) * samples.rollout.max_new_tokens * each


def _token_seconds(model: Any, prompts: list[list[int]]) -> float:
    """Measure the time of one more token of one text, where these prompts are continued at once.

    Where the clock's noise hides it, it is the time of a token with its share of the prompt: more, but not nothing.
    """
    taken = []
    generate(model, prompts, max_new_tokens=1, eos_token_id=[-1], temperature=0)  # the first call tests the cache
    for length in (2, 6):
        start = time.perf_counter()
        generate(model, prompts, max_new_tokens=length, eos_token_id=[-1], temperature=0)
        taken.append(time.perf_counter() - start)
    short, long = taken
    return (long - short) / (4 * len(prompts)) if long > short else long / (6 * len(prompts))


def _free_memory(device: str) -> tuple[float, str]:
    """GiB that are free here, and the name of the place."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] / 2**30, torch.cuda.get_device_name()
    return psutil.virtual_memory().available / 2**30, "this machine"


def _on_device(found: Plan, device: Device, run: _Run, work: _Work) -> Plan:
    """The same run on a named device, computed from its peak speed and the bytes of its numbers."""
    held, trainable, weights = count_weights(run.model)
    flops = 2.0 * linear_weights(run.model)  # of one token's forward through the layers
    speed = device.peak_tflops * 1e12 * UTILISATION
    narrow = run.arguments.bf16 or run.arguments.fp16
    memory = replace(
        found.memory,
        weights=held + (2 * weights if narrow else 0),
        gradients=trainable,
        optimizer=optimizer_bytes(run.arguments.optim, trainable),
        activations=found.memory.activations // (2 if narrow and run.arguments.device.type == "cpu" else 1),
        head=head_bytes(run.model, found.schedule.heaviest_scored, "cuda"),
        reference=held if run.live_reference else 0,
        libraries=CONTEXT,
    )
    seconds = {
        "reference": flops * work.reference / speed,
        "training": flops * work.training * (3 + work.extra_forwards) / speed,
        "evaluation": flops * work.evaluation / speed,
        "generation": 0.0,
    }
    return replace(
        found, memory=memory, limit_gib=device.memory_gib, device=device.name, measured=False, seconds=seconds
    )


def _warnings(run: _Run, found: Plan, *, tuned: bool) -> list[str]:
    config, model, records = run.config, run.model, run.data.train
    adapters, weights = bool(getattr(model, "peft_config", None)), count_weights(model)[2]
    rate = float(run.arguments.learning_rate)
    answered = [] if records.kind is Data.PROMPTS else records
    return [
        *advice.nothing_held_out(run.data.eval),
        *([] if run.samples is not None else advice.few_records(len(records), run.needs.data)),
        *advice.outside_range(config.loss),
        *advice.learning_rate(config.loss, config.loss_name, rate, adapters=adapters, weights=weights),
        *advice.adapters(model),
        *filter(None, [precision_advice(run.kind, config.model.dtype, config.trainer)]),
        *([] if tuned else advice.not_tuned(model, run.tokenizer, answered, run.needs.data)),
        *([] if run.samples is None or found.measured else [NOT_SAMPLED]),
        *advice.memory(found.memory.total / 2**30, found.limit_gib, found.device),
    ]
