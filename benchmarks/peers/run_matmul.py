"""Measures the FLOP/s of bare matrix products with a model's shapes, the reference for utilisation.

Times the forward pass and the gradients of input and weight, for every weight of a layer and the output layer. The rate
is all FLOPs divided by all seconds, each shape with its share of a step. Times both float32 products that torch has on
CPUs, its own (`torch.mm`) and oneDNN's; the faster one counts.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def main() -> None:
    job = json.load(sys.stdin)
    import torch

    from prefopt.engine.cpu import keep_large_buffers

    keep_large_buffers()  # the product is measured, not the page faults of its result
    from transformers import AutoConfig

    torch.set_num_threads(job["threads"])
    config = AutoConfig.from_pretrained(job["model"])
    hidden, inner, tokens = config.hidden_size, config.intermediate_size, job["tokens"]
    kv = hidden * config.num_key_value_heads // config.num_attention_heads
    layers = config.num_hidden_layers
    # (tokens, in, out, times in a step)
    shapes = [
        (tokens, hidden, hidden, 2 * layers),  # query, output
        (tokens, hidden, kv, 2 * layers),  # key, value
        (tokens, hidden, inner, 2 * layers),  # gate, up
        (tokens, inner, hidden, layers),  # down
        (job["completion_tokens"], hidden, config.vocab_size, 1),
    ]
    products: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"torch_mm": lambda a, b: torch.mm(a, b.t())}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        products["onednn"] = lambda a, b: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    flops, seconds = 0.0, dict.fromkeys(products, 0.0)
    for rows, fan_in, fan_out, times in shapes:
        x, w, g = torch.randn(rows, fan_in), torch.randn(fan_out, fan_in), torch.randn(rows, fan_out)
        for name, product in products.items():
            taken = []
            for _ in range(job["repeats"] + 1):
                began = time.perf_counter()
                for a, b in ((x, w), (g, w.t()), (g.t(), x.t())):  # forward, gradient of the input, of the weight
                    product(a, b)
                taken.append(time.perf_counter() - began)
            seconds[name] += times * statistics.median(taken[1:])
        flops += times * 3 * 2 * rows * fan_in * fan_out
    rates = {name: flops / s / 1e9 for name, s in seconds.items()}
    print(json.dumps({"gflops_per_s": max(rates.values())} | rates))


if __name__ == "__main__":
    main()
