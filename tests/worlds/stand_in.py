"""A tiny instruction world: forty instructions, and a model of random weights in place of the real one."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prefopt.worlds import InstructionWorld
from tests.data.tiny import tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def stand_in(folder: Path) -> InstructionWorld:
    """The world, with its model and its instructions in a folder."""
    made = tokenizer(CHATML, special=("<|im_start|>", "<|im_end|>"), eos="<|im_end|>")
    config = LlamaConfig(
        vocab_size=len(made), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        eos_token_id=made.eos_token_id, bos_token_id=None, initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    made.save_pretrained(folder / "model")
    rows = [{"instruction": f"Name number {i}.", "input": "", "output": f"It is {i}."} for i in range(40)]
    (folder / "prompts.json").write_text(json.dumps([*rows, rows[0]]))
    return InstructionWorld(
        model=str(folder / "model"), prompts=str(folder / "prompts.json"), pairs=40, max_new_tokens=12
    )


def overrides(world: InstructionWorld) -> tuple[str, ...]:
    """The options that choose it; its model is that of the world's knobs."""
    knobs = {"model": world.model, "prompts": world.prompts, "pairs": world.pairs, "max_new_tokens": 12}
    return ("world=instructions", *(f"data.world.{name}={value}" for name, value in knobs.items()))
