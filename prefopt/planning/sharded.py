"""Arithmetic for a dense decoder trained on many accelerators: memory, traffic and time of a step, without weights.

Nothing here is measured. N devices hold the model in equal shards (FSDP2 or ZeRO-3, bfloat16 with float32 masters,
Adam); P weights, L layers, H width, V words, T tokens of a micro-batch, S of them scored, M micro-batches a step.

Memory of a device, bytes:

    weights      4 P / N  masters, and  4 P_layer  for two layers gathered in bfloat16
    gradients    4 P / N;  4 P  when M > 1, because they are exchanged with the last micro-batch only
    optimizer    8 P / N
    activations  2 H L T  inputs of the checkpointed layers, and  2 E T  for the one that is made again (E elements
                 of a token: see `Shape.kept_elements`); without checkpointing  2 E L T
    head         2 V H  the output matrix gathered, 4 V H its gradient, 3 blocks of logits, 8 H S hidden states
    reference    0: its log-probs come from the store;  2 P / N  while they are computed, before training
    libraries    0.6e9  context and communication buffers

Traffic of a device and step, bytes sent (ring, so times (N - 1) / N):

    weights gathered  4 P M   bfloat16, once forward and once backward
    gradients         2 P     reduced and scattered in bfloat16, once a step

Time of a step: the longer of compute and traffic, as FSDP overlaps them.

    compute  3 F / (N * peak * utilisation), 4 F with checkpointing (each layer's forward is run again), where
             F = 2 P_linear tokens + 4 L A pairs + 2 H V scored  is the forward of the whole batch
    traffic  bytes / bandwidth between nodes (of one node: of its links)
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from prefopt.engine.head import BLOCK
from prefopt.errors import UserError
from prefopt.planning.devices import UTILISATION, Device
from prefopt.planning.memory import CONTEXT, Memory
from prefopt.planning.shape import Shape

NODE = 8  # devices of a node
# Between nodes, of each device: 400 Gbit/s, as in https://www.nvidia.com/en-us/data-center/dgx-h100.
NETWORK_GBPS = 50.0


@dataclass(frozen=True, kw_only=True)
class Records:
    """What an average record looks like, in tokens: one prompt, and completions behind it."""

    prompt: float
    completions: tuple[float, ...]

    @property
    def fed(self) -> float:
        """Tokens of its tree: a completion's last token is not fed."""
        return self.prompt + sum(c - 1 for c in self.completions)

    @property
    def pairs(self) -> float:
        """Pairs of query and key that see each other."""
        return self.prompt**2 / 2 + sum(self.prompt * (c - 1) + (c - 1) ** 2 / 2 for c in self.completions)

    @property
    def scored(self) -> float:
        return sum(self.completions)


@dataclass(frozen=True, kw_only=True)
class Sharded:
    """A step of `devices` accelerators. Seconds, bytes and tokens of one step; memory and traffic of one device."""

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


def sharded(
    shape: Shape,
    *,
    device: Device,
    devices: int,
    records_per_step: int,
    max_tokens: int,
    record: Records,
    checkpointing: bool = True,
    scoring: bool = True,
) -> Sharded:
    """The arithmetic of this module's head.

    Args:
        shape: of the model.
        device, devices: which accelerators, and how many.
        records_per_step: the global batch.
        max_tokens: of a micro-batch.
        record: an average one.
        checkpointing: keep the layers' inputs only.
        scoring: the loss reads a reference, which is scored once before training.

    Raises:
        UserError: sizes below one, or fewer records than devices.
    """
    if devices < 1 or records_per_step < 1:
        raise UserError("devices and records of a step must be at least 1")
    if records_per_step < devices:
        raise UserError(f"batch.records={records_per_step} leaves some of {devices} devices without a record")
    if record.fed > max_tokens:
        raise UserError(f"an average record of {record.fed:.0f} tokens does not fit batch.max_tokens={max_tokens}")
    share = math.ceil(records_per_step / devices)
    fit = int(max_tokens // record.fed)
    micro = math.ceil(share / fit)
    row = math.ceil(share / micro)
    tokens, scored = row * record.fed, row * record.scored
    p, kept, vocabulary = shape.weights, shape.kept_elements(fused=False), shape.vocab * shape.hidden
    if checkpointing:
        activations = 2 * shape.hidden * shape.layers * tokens + 2 * kept * tokens
    else:
        activations = 2 * kept * shape.layers * tokens
    alone = devices == 1
    memory = Memory(
        weights=4 * p // devices + (2 * p if alone else 4 * shape.layer_weights),
        gradients=4 * p if micro > 1 or alone else 4 * p // devices,
        optimizer=8 * p // devices,
        activations=int(activations),
        head=6 * vocabulary + 3 * min(BLOCK["cuda"], int(scored) * shape.vocab) * 4 + int(8 * shape.hidden * scored),
        reference=0,
        libraries=CONTEXT,
    )
    ring = (devices - 1) / devices
    traffic = {"weights": 4 * p * micro * ring, "gradients": 2 * p * ring}
    bandwidth = (device.link_gbps / 2 if devices <= NODE else NETWORK_GBPS) * 1e9
    one = shape.forward_flops(record.fed, record.pairs, record.scored)
    speed = devices * device.peak_tflops * 1e12 * UTILISATION
    return Sharded(
        weights=p,
        devices=devices,
        device=device,
        micro_batches=micro,
        tokens_per_step=records_per_step * record.fed,
        memory=memory,
        traffic_bytes=traffic,
        compute_seconds=(4 if checkpointing else 3) * one * records_per_step / speed,
        traffic_seconds=sum(traffic.values()) / bandwidth,
        reference_seconds_per_record=one / speed if scoring else 0.0,
    )
