"""Computes memory, traffic and time of a step for a dense decoder on many accelerators, without its weights.

Nothing is measured. N devices hold the model in equal shards (FSDP2 or ZeRO-3, bfloat16 with float32 masters,
Adam); P weights, L layers, H width, V words, T tokens of a micro-batch, S of them scored, M micro-batches a step.

Memory of one device, in bytes:

    weights      4 P / N  masters, and  4 P_layer  for two layers gathered in bfloat16
    gradients    4 P / N;  4 P  when M > 1, because they are exchanged after the last micro-batch only
    optimizer    8 P / N
    activations  2 H L T  inputs of the checkpointed layers, and  2 E T  for the one that is recomputed (E elements
                 per token: see `Shape.kept_elements`); without checkpointing  2 E L T
    head         2 V H  the output matrix gathered, 4 V H its gradient, 3 blocks of logits, 8 H S hidden states
    reference    0: its log-probs come from the store (2 P / N while they are computed, before training)
    libraries    0.6e9  context and communication buffers

Traffic of one device and step, in bytes sent (a ring, so times (N - 1) / N):

    weights gathered  4 P M   bfloat16, once forward and once backward
    gradients         2 P     reduced and scattered in bfloat16, once a step

Time of a step: the longer of compute and traffic, since FSDP overlaps them.

    compute  3 F / (N * peak * utilisation), 4 F with checkpointing (each layer's forward runs twice), where
             F = 2 P_linear tokens + 4 L A pairs + 2 H V scored  is the forward of the whole batch
    traffic  bytes / bandwidth between nodes (within one node: of its links)
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from prefopt.config.run_config import RunConfig
from prefopt.engine.head import BLOCK
from prefopt.errors import UserError
from prefopt.planning import advice
from prefopt.planning.devices import UTILISATION, Device
from prefopt.planning.memory import CONTEXT, Memory
from prefopt.planning.shape import Shape

NODE = 8  # devices per node
# Between nodes, for each device: 400 Gbit/s, as in https://www.nvidia.com/en-us/data-center/dgx-h100.
NETWORK_GBPS = 50.0


@dataclass(frozen=True, kw_only=True)
class AverageRecord:
    """The lengths of an average record in tokens: one prompt and its completions."""

    prompt: float
    completions: tuple[float, ...]

    @property
    def fed(self) -> float:
        """Tokens of its tree; the last token of a completion is not fed."""
        return self.prompt + sum(c - 1 for c in self.completions)

    @property
    def pairs(self) -> float:
        """Pairs of a query and a key that it attends to."""
        return self.prompt**2 / 2 + sum(self.prompt * (c - 1) + (c - 1) ** 2 / 2 for c in self.completions)

    @property
    def scored(self) -> float:
        return sum(self.completions)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a step computes.

    Attributes:
        records_per_step: records of the global batch.
        max_tokens: the most tokens of a micro-batch.
        record: an average record.
        checkpointing: whether only the layers' inputs are kept for the backward.
        scoring: whether the loss reads a reference, which is scored once before training.
    """

    records_per_step: int
    max_tokens: int
    record: AverageRecord
    checkpointing: bool = True
    scoring: bool = True


@dataclass(frozen=True, kw_only=True)
class ShardedStep:
    """A step on `devices` accelerators. Seconds and tokens are of the step; memory and traffic of one device."""

    weights: int
    devices: int
    device: Device
    micro_batches: int
    tokens_per_step: float
    memory: Memory
    traffic_bytes: dict[str, float]
    compute_seconds: float
    traffic_seconds: float
    reference_seconds_per_record: float

    @property
    def step_seconds(self) -> float:
        return max(self.compute_seconds, self.traffic_seconds)

    def plain(self) -> dict[str, object]:
        """As JSON values."""
        return {
            "measured": False,
            "weights": self.weights,
            "devices": self.devices,
            "device": asdict(self.device),
            "micro_batches_per_device": self.micro_batches,
            "tokens_per_step": round(self.tokens_per_step),
            "memory_gib": self.memory.gib(),
            "traffic_gib": {name: round(value / 2**30, 3) for name, value in self.traffic_bytes.items()},
            "seconds_per_step": {
                "compute": round(self.compute_seconds, 3),
                "traffic": round(self.traffic_seconds, 3),
                "step": round(self.step_seconds, 3),
            },
        }


@dataclass(frozen=True, kw_only=True)
class ShardedPlan:
    """A whole run: its steps, one of them in detail, the time for the reference, and warnings."""

    step: ShardedStep
    steps: int
    reference_seconds: float
    warnings: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return self.steps * self.step.step_seconds + self.reference_seconds

    def plain(self) -> dict[str, object]:
        """As JSON values."""
        training = self.steps * self.step.step_seconds
        return {
            "steps": self.steps, **self.step.plain(), "seconds": round(self.seconds, 3),
            "seconds_by_part": {"training": round(training, 3), "reference": round(self.reference_seconds, 3)},
            "warnings": list(self.warnings),
        }  # fmt: skip


def plan_sharded(
    config: RunConfig, shape: Shape, *, device: Device, devices: int, records: int, record: AverageRecord
) -> ShardedPlan:
    """Plan a run with a model of this shape on `records` records like the average one.

    Raises:
        UserError: as `sharded_step`.
    """
    trainer = config.trainer
    workload = Workload(
        records_per_step=config.batch.records, max_tokens=config.batch.budget("cuda"), record=record,
        checkpointing=trainer["activation_checkpointing"] or devices > 1, scoring=config.loss.needs.reference,
    )  # fmt: skip
    step = sharded_step(shape, workload, device=device, devices=devices)
    steps = trainer["max_steps"]
    if steps <= 0:
        steps = math.ceil(trainer["num_train_epochs"] * math.ceil(records / config.batch.records))
    return ShardedPlan(
        step=step,
        steps=steps,
        reference_seconds=step.reference_seconds_per_record * records,
        warnings=tuple(advice.memory(step.memory.total / 2**30, device.memory_gib, device.name)),
    )


def sharded_step(shape: Shape, work: Workload, *, device: Device, devices: int) -> ShardedStep:
    """Compute memory, traffic and time of a step by the formulas at the top of this module.

    Raises:
        UserError: a size below one, fewer records than devices, or a record that exceeds `max_tokens`.
    """
    record = work.record
    if devices < 1 or work.records_per_step < 1:
        raise UserError("devices and records of a step must be at least 1")
    if work.records_per_step < devices:
        raise UserError(f"batch.records={work.records_per_step} leaves some of {devices} devices without a record")
    if record.fed > work.max_tokens:
        raise UserError(f"an average record of {record.fed:.0f} tokens exceeds batch.max_tokens={work.max_tokens}")
    share = math.ceil(work.records_per_step / devices)
    micro = math.ceil(share / int(work.max_tokens // record.fed))
    row = math.ceil(share / micro)  # records of a micro-batch
    ring = (devices - 1) / devices
    traffic = {"weights": 4 * shape.weights * micro * ring, "gradients": 2 * shape.weights * ring}
    bandwidth = (device.link_gbps / 2 if devices <= NODE else NETWORK_GBPS) * 1e9
    forward = shape.forward_flops(record.fed, record.pairs, record.scored)
    speed = devices * device.peak_tflops * 1e12 * UTILISATION
    return ShardedStep(
        weights=shape.weights,
        devices=devices,
        device=device,
        micro_batches=micro,
        tokens_per_step=work.records_per_step * record.fed,
        memory=_memory(shape, work, devices, micro=micro, row=row),
        traffic_bytes=traffic,
        compute_seconds=(4 if work.checkpointing else 3) * forward * work.records_per_step / speed,
        traffic_seconds=sum(traffic.values()) / bandwidth,
        reference_seconds_per_record=forward / speed if work.scoring else 0.0,
    )


def _memory(shape: Shape, work: Workload, devices: int, *, micro: int, row: int) -> Memory:
    """The memory of one device, with `micro` micro-batches of `row` records."""
    p, kept, vocabulary = shape.weights, shape.kept_elements(fused=False), shape.vocab * shape.hidden
    tokens, scored = row * work.record.fed, row * work.record.scored
    if work.checkpointing:
        activations = 2 * shape.hidden * shape.layers * tokens + 2 * kept * tokens
    else:
        activations = 2 * kept * shape.layers * tokens
    alone = devices == 1
    return Memory(
        weights=4 * p // devices + (2 * p if alone else 4 * shape.layer_weights),
        gradients=4 * p if micro > 1 or alone else 4 * p // devices,
        optimizer=8 * p // devices,
        activations=int(activations),
        head=6 * vocabulary + 3 * min(BLOCK["cuda"], int(scored) * shape.vocab) * 4 + int(8 * shape.hidden * scored),
        reference=0,
        libraries=CONTEXT,
    )
