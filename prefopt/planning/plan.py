"""A plan of one run: what it will do, what it takes, and what speaks against it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from typing import Any

import psutil

from prefopt.config.run_config import RunConfig
from prefopt.planning import advice
from prefopt.planning.devices import UTILISATION, Device
from prefopt.planning.memory import CONTEXT, Memory, head_bytes, libraries, on_this_machine, optimizer_bytes, parameters
from prefopt.planning.schedule import Schedule, schedule, whole_work
from prefopt.plugin import Vocab


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Of one run.

    Attributes:
        schedule: steps and tokens.
        layout: `tree` or `padded`, and why.
        memory: peak by part.
        limit_gib: memory of the device that is free.
        device: its name.
        measured: whether times come from a probe on the device itself, or from its peak speed.
        seconds: by part: `reference`, `training`, `evaluation`, `generation`.
        rejected: rows that cannot be used.
        warnings: one line each.
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

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        planned = self.schedule
        return {
            "records": planned.records,
            "rejected": self.rejected,
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
            "warnings": self.warnings,
        }


def plan(config: RunConfig, device: Device | None = None) -> Plan:
    """What `prefopt train` with this configuration will take.

    Data are prepared and the model is loaded, as the run would; two short rows of its own records are run forward and
    back. For another device the time is arithmetic, and memory what these rows keep, at the size of its numbers.

    Args:
        config: of the run.
        device: another device than this machine's.

    Raises:
        UserError: what the run itself would refuse.
    """
    import datasets  # noqa: F401 - what a run has in memory before it has data and a model

    from prefopt.engine.gates import choose_layout
    from prefopt.engine.packing import Cost
    from prefopt.models.load import load_policy, load_tokenizer
    from prefopt.planning.probe import probe
    from prefopt.runs.resolve import prepared_data, resolved
    from prefopt.train.arguments import training_arguments
    from prefopt.train.sources.feed import Feed
    from prefopt.train.sources.offline import Steps, StepSampler

    config = resolved(config)
    tokenizer = load_tokenizer(config.model)
    loaded = libraries()
    prepared = prepared_data(config, tokenizer)
    needs = config.loss.needs
    with tempfile.TemporaryDirectory() as unused:
        arguments = training_arguments(unused, seed=config.seed, records=config.batch.records, **config.trainer)
    model = load_policy(config.model, config.peft, seed=config.seed).to(arguments.device)
    layout = choose_layout(model, config.batch.layout).layout
    feeds = {"train": Feed(prepared.train, needs, whole=False, seed=config.seed)}
    if prepared.eval is not None:
        feeds["eval"] = Feed(prepared.eval, needs, whole=True, seed=config.seed)
    batch = config.batch.settled("cuda" if device is not None else arguments.device.type, feeds.values(), layout)
    text = model.config.get_text_config()
    cost = Cost.of(hidden_size=text.hidden_size, num_layers=text.num_hidden_layers, vocab_size=text.vocab_size)

    def sampler(split: str, *, shuffle: bool) -> StepSampler:
        seed = config.seed if arguments.data_seed is None else arguments.data_seed
        return StepSampler(feeds[split], needs, batch, layout, cost, seed=seed, process=(0, 1), shuffle=shuffle)

    training = sampler("train", shuffle=True)
    planned = schedule(training, arguments)
    measured = probe(model, training, Steps(feeds["train"], needs, layout, None), planned.heaviest, needs, arguments)
    live = needs.moving_reference or Vocab.KL in needs.vocab
    evaluated = "eval" in feeds
    copy = evaluated and config.evaluation.kl_prompts > 1
    memory = on_this_machine(
        model, planned, arguments, kept=measured.kept_bytes(planned.heaviest_tokens), live=live, copy=copy,
        libraries=loaded,
    )  # fmt: skip

    # Work of the parts, in the planner's unit.
    scores_reference = needs.reference and not needs.moving_reference
    whole = {split: whole_work(sampler(split, shuffle=False)) for split in feeds}
    rows = planned.steps * planned.micro_batches
    twice = (needs.coupled or needs.state) and planned.several
    train_work = planned.steps * planned.work_per_step
    forwards = {
        "reference": scores_reference * whole["train"] + whole.get("eval", 0.0),
        "evaluation": 3 * whole.get("eval", 0.0),  # before, after, and by rows for the run's page
    }
    forward, back = measured.forward_seconds, measured.train_seconds
    extra = (1 if twice else 0) + (1 if live else 0)  # forwards without graph, of every row
    seconds = {
        "reference": forward.slope * forwards["reference"],
        "training": back.fixed * rows + back.slope * train_work
        + extra * (forward.fixed * rows + forward.slope * train_work)
        + planned.steps * measured.optimizer_seconds,
        "evaluation": forward.slope * forwards["evaluation"],
        "generation": 0.0,
    }  # fmt: skip
    if evaluated:
        seconds["generation"] = _generation_seconds(config, model, prepared.eval)
    limit = psutil.virtual_memory().available / 2**30
    name = "this machine"
    if arguments.device.type == "cuda":
        import torch

        limit = torch.cuda.mem_get_info()[0] / 2**30
        name = torch.cuda.get_device_name()
    found = Plan(
        schedule=planned, layout=layout, memory=memory, limit_gib=limit, device=name, measured=True, seconds=seconds,
        rejected=len(prepared.rejections), warnings=[],
    )  # fmt: skip
    if device is not None:
        work = {"training": train_work * (3 + extra) / 3, **{k: v / 3 for k, v in forwards.items()}}
        found = _elsewhere(found, device, model, arguments, work, live=live)
    weights = parameters(model)[2]
    trains_adapters = bool(getattr(model, "peft_config", None))
    rate = float(arguments.learning_rate)
    warnings = [
        *advice.few_records(len(prepared.train), needs.data),
        *advice.outside_range(config.loss),
        *advice.learning_rate(config.loss, config.loss_name, rate, adapters=trains_adapters, weights=weights),
        *advice.adapters(model),
        *advice.not_tuned(model, tokenizer, prepared.train, needs.data),
        *advice.memory(found.memory.total / 2**30, found.limit_gib, found.device),
    ]
    return replace(found, warnings=warnings)


def _generation_seconds(config: RunConfig, model: Any, held_out: Any) -> float:
    """Of writing texts before and after, and those that measure the KL, from a few tokens of eight of them.

    An upper bound: texts that end early cost less.
    """
    import time

    from prefopt.engine import generate

    asked = config.evaluation
    prompts = [held_out[i].prompt.tolist() for i in range(min(8, len(held_out)))]
    texts = 2 * asked.texts + 2 * (asked.kl_prompts if asked.kl_prompts > 1 else 0)  # before and after
    if not texts:
        return 0.0
    took = []
    generate(model, prompts, max_new_tokens=1, eos_token_id=[-1], temperature=0)  # a first call tries the model's cache
    for length in (2, 6):
        start = time.perf_counter()
        generate(model, prompts, max_new_tokens=length, eos_token_id=[-1], temperature=0)
        took.append(time.perf_counter() - start)
    each = max(took[1] - took[0], 0.0) / (4 * len(prompts))
    return texts * asked.max_new_tokens * each


def _elsewhere(found: Plan, device: Device, model: Any, arguments: Any, work: dict[str, float], *, live: bool) -> Plan:
    """The same run on a named device: arithmetic from its peak speed and the bytes of its numbers."""
    held, trainable, weights = parameters(model)
    unit = 2.0 * _linear_weights(model)  # FLOPs of a token's way forward through the layers
    speed = device.peak_tflops * 1e12 * UTILISATION
    narrow = arguments.bf16 or arguments.fp16
    memory = replace(
        found.memory,
        weights=held + (2 * weights if narrow else 0),
        gradients=trainable,
        optimizer=optimizer_bytes(arguments.optim, trainable),
        activations=found.memory.activations // (2 if narrow and arguments.device.type == "cpu" else 1),
        head=head_bytes(model, found.schedule.heaviest_scored, "cuda"),
        reference=held if live else 0,
        libraries=CONTEXT,
    )
    seconds = {name: 3 * unit * value / speed for name, value in work.items()}
    seconds["generation"] = 0.0
    return replace(
        found, memory=memory, limit_gib=device.memory_gib, device=device.name, measured=False, seconds=seconds
    )


def _linear_weights(model: Any) -> int:
    """Weights of the layers' matrix products: all but embeddings, norms and biases."""
    from prefopt.engine.forward import unwrap

    causal = unwrap(model)
    apart = {id(p) for m in (causal.get_input_embeddings(), causal.get_output_embeddings()) for p in m.parameters()}
    return sum(p.numel() for p in causal.parameters() if p.dim() > 1 and id(p) not in apart)
