"""What the machine's matrix product gives at the shapes of a model: the FLOP/s that utilisation is measured against.

Every weight of a layer and the output layer, forward, gradient of the input and gradient of the weight, into buffers
that exist already. The rate is all FLOPs over all seconds, each shape with its share in a step.
"""

from __future__ import annotations

import json
import statistics
import sys
import time


def main() -> None:
    job = json.load(sys.stdin)
    import torch
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
    flops = seconds = 0.0
    for rows, fan_in, fan_out, times in shapes:
        x, w, g = torch.randn(rows, fan_in), torch.randn(fan_out, fan_in), torch.randn(rows, fan_out)
        y, dx, dw = torch.empty(rows, fan_out), torch.empty(rows, fan_in), torch.empty(fan_out, fan_in)
        products = ((x, w.T, y), (g, w, dx), (g.T, x, dw))
        taken = []
        for _ in range(job["repeats"] + 1):
            began = time.perf_counter()
            for a, b, out in products:
                torch.mm(a, b, out=out)
            taken.append(time.perf_counter() - began)
        flops += times * len(products) * 2 * rows * fan_in * fan_out
        seconds += times * statistics.median(taken[1:])
    print(json.dumps({"gflops_per_s": flops / seconds / 1e9}))


if __name__ == "__main__":
    main()
