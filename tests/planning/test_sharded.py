"""A step on many devices, by hand."""

from __future__ import annotations

import pytest

from prefopt.planning.devices import DEVICES, UTILISATION, device
from prefopt.planning.shape import SHAPES
from prefopt.planning.sharded import NETWORK_GBPS, AverageRecord, Workload, sharded_step


def test_seventy_billion_by_hand() -> None:
    """64 devices, 128 records of 766 tokens: two a device, in one forward of 1,532 tokens."""
    p, h100 = SHAPES["llama3-70b"].weights, device("h100")
    work = Workload(records_per_step=128, max_tokens=4096, record=AverageRecord(prompt=256, completions=(256, 256)))
    found = sharded_step(SHAPES["llama3-70b"], work, device=h100, devices=64)
    layer = 2 * 8192 * 128 * (64 + 8) + 3 * 8192 * 28_672
    kept = 8 * 8192 + 2 * 8192 + 2 * 1024 + 4 * 28_672
    assert found.micro_batches == 1
    assert found.memory.weights == 4 * p // 64 + 4 * layer
    assert found.memory.gradients == 4 * p // 64
    assert found.memory.optimizer == 8 * p // 64
    assert found.memory.activations == 2 * 8192 * 80 * 1532 + 2 * kept * 1532
    assert found.traffic_bytes == pytest.approx({"weights": 4 * p * 63 / 64, "gradients": 2 * p * 63 / 64})
    assert found.traffic_seconds == pytest.approx(6 * p * 63 / 64 / (NETWORK_GBPS * 1e9))
    flops = SHAPES["llama3-70b"].forward_flops(766, 256**2 / 2 + 2 * (256 * 255 + 255**2 / 2), 512)
    assert found.compute_seconds == pytest.approx(4 * 128 * flops / (64 * 989e12 * UTILISATION))
    assert found.step_seconds == max(found.compute_seconds, found.traffic_seconds)


def test_more_forwards_keep_whole_gradients() -> None:
    record = AverageRecord(prompt=500, completions=(250, 250))
    one, four = (
        sharded_step(
            SHAPES["llama3-8b"],
            Workload(records_per_step=records, max_tokens=1024, record=record),
            device=device("h100"),
            devices=8,
        )
        for records in (8, 32)
    )
    assert (one.micro_batches, four.micro_batches) == (1, 4)
    assert four.memory.gradients == 8 * one.memory.gradients == 4 * SHAPES["llama3-8b"].weights
    assert four.traffic_bytes["weights"] == 4 * one.traffic_bytes["weights"]


def test_devices_say_their_sources() -> None:
    assert all(d.source and d.memory_gb > 0 and d.peak_tflops > 0 and d.link_gbps > 0 for d in DEVICES.values())
