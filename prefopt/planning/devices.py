"""Lists accelerators with memory, peak speed and the link between them, from the manufacturers' data sheets.

A gigabyte is 10^9 bytes in some sheets and 2^30 in others; here it is always 10^9, the safe reading. Peak speed is that
of dense 16-bit matrix products with 32-bit sums; figures "with sparsity" are halved.
"""

from __future__ import annotations

from dataclasses import dataclass

from prefopt.errors import UserError, nearest


@dataclass(frozen=True)
class Device:
    """One accelerator.

    Attributes:
        name: as in the data sheet.
        memory_gb: memory in 10^9 bytes.
        peak_tflops: dense bfloat16 (float16 where there is none), 10^12 FLOP/s.
        link_gbps: bandwidth to the other accelerators of its node, both directions together, 10^9 bytes/s.
        source: where the figures are from.
    """

    name: str
    memory_gb: float
    peak_tflops: float
    link_gbps: float
    source: str

    @property
    def memory_gib(self) -> float:
        return self.memory_gb * 1e9 / 2**30


_NVIDIA = "https://www.nvidia.com/en-us/data-center"
DEVICES: dict[str, Device] = {
    "t4": Device("NVIDIA T4", 16, 65, 32, f"{_NVIDIA}/tesla-t4"),
    "v100": Device("NVIDIA V100 SXM2 32 GB", 32, 125, 300, f"{_NVIDIA}/v100"),
    "l4": Device("NVIDIA L4", 24, 121, 64, f"{_NVIDIA}/l4"),
    "l40s": Device("NVIDIA L40S", 48, 362, 64, f"{_NVIDIA}/l40s"),
    "rtx3090": Device("NVIDIA RTX 3090", 24, 71, 64, "NVIDIA Ampere GA102 white paper, appendix A"),
    "rtx4090": Device("NVIDIA RTX 4090", 24, 165, 64, "NVIDIA Ada white paper, appendix A"),
    "a100-40": Device("NVIDIA A100 SXM 40 GB", 40, 312, 600, f"{_NVIDIA}/a100"),
    "a100-80": Device("NVIDIA A100 SXM 80 GB", 80, 312, 600, f"{_NVIDIA}/a100"),
    "h100": Device("NVIDIA H100 SXM", 80, 989, 900, f"{_NVIDIA}/h100"),
    "h200": Device("NVIDIA H200 SXM", 141, 989, 900, f"{_NVIDIA}/h200"),
    "b200": Device("NVIDIA B200 (HGX)", 180, 2250, 1800, f"{_NVIDIA}/hgx"),
    "mi300x": Device("AMD MI300X", 192, 1307, 896, "https://www.amd.com/en/products/accelerators/instinct/mi300"),
}
# The share of peak speed that training reaches: Llama 3 reports 38 to 43 % on H100 (arXiv:2407.21783, Table 4).
UTILISATION = 0.4


def device(name: str) -> Device:
    """Look up a device.

    Raises:
        UserError: an unknown name.
    """
    if name not in DEVICES:
        raise UserError(f"unknown device {name!r}{nearest(name, DEVICES)}; choose from: {', '.join(DEVICES)}")
    return DEVICES[name]
