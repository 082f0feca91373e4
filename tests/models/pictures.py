"""Tiny random models for images of several families, saved as folders with their processors, and data about colours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    LlavaProcessor,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
)

from prefopt.models.processor import image_processor
from tests.data import tiny

COLOURS = {"r": (220, 20, 20), "b": (20, 20, 220)}  # by their answers, of one token each
TEXT: dict[str, Any] = {
    "vocab_size": 420, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": 1,
    "pad_token_id": 2,
}  # fmt: skip
SIGHT: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As the templates of LLaVA print it: images first, and turns only as parts.
IMAGES_FIRST = (
    "{% for m in messages %}{{ m.role }}: {% for part in m.content | selectattr('type', 'equalto', 'image') %}<image>\n"
    "{% endfor %}{% for part in m.content | selectattr('type', 'equalto', 'text') %}{{ part.text }}{% endfor %}</s>"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


CHATML_QWEN = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")


def _qwen(kind: str) -> tuple[Any, Any]:
    special = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = tiny.tokenizer(CHATML_QWEN, special=special, vocab_size=420)
    ids = dict(zip(("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id"),
                   tokenizer.convert_tokens_to_ids(list(special)), strict=True))  # fmt: skip
    sight = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3}
    if kind == "qwen2_vl":
        sight |= {"embed_dim": 32, "hidden_size": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2}
    else:
        sight |= {"hidden_size": 32, "out_hidden_size": 32, "depth": 2, "num_heads": 4, "intermediate_size": 48,
                  "window_size": 16, "fullatt_block_indexes": [1]}  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = AutoConfig.for_model(kind, text_config={**TEXT, "rope_parameters": rope}, vision_config=sight, **ids)
    images = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=64, max_pixels=1024)
    return config, image_processor(Qwen2VLProcessor, images, tokenizer, {"chat_template": tokenizer.chat_template})


def _qwen3_5() -> tuple[Any, Any]:
    config, processor = _qwen("qwen2_5_vl")
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}
    text = {**TEXT, "rope_parameters": rope, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
            "linear_value_head_dim": 8}  # fmt: skip
    sight = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3, "hidden_size": 32,
             "out_hidden_size": 32, "depth": 2, "num_heads": 4, "intermediate_size": 48,
             "num_position_embeddings": 64}  # fmt: skip
    ids = {name: getattr(config, name) for name in ("vision_start_token_id", "vision_end_token_id", "image_token_id",
                                                    "video_token_id")}  # fmt: skip
    tokenizer = processor.tokenizer
    return (
        AutoConfig.for_model("qwen3_5", text_config=text, vision_config=sight, **ids),
        image_processor(Qwen3VLProcessor, processor.image_processor, tokenizer, {"chat_template": CHATML_QWEN}),
    )


def _gemma() -> tuple[Any, Any]:
    special = ("<start_of_image>", "<image_soft_token>", "<end_of_image>")
    roles = dict(zip(("boi_token", "image_token", "eoi_token"), special, strict=True))
    tokenizer = tiny.tokenizer(CHATML.replace("IMAGE", "<start_of_image>"), special=special, vocab_size=420)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in roles.items()}
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>", pad_token="<pad>",
                                extra_special_tokens=roles, chat_template=tokenizer.chat_template)  # fmt: skip
    text = {**TEXT, "head_dim": 8, "sliding_window": 64, "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention"]}  # fmt: skip
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config={**SIGHT, "image_size": 16, "patch_size": 4}, mm_tokens_per_image=4,
        image_token_id=ids["image_token"], boi_token_id=ids["boi_token"], eoi_token_id=ids["eoi_token"],
    )  # fmt: skip
    images = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    return config, Gemma3Processor(images, tokenizer, chat_template=tokenizer.chat_template, image_seq_length=4)


def _llava() -> tuple[Any, Any]:
    tokenizer = tiny.tokenizer(IMAGES_FIRST, special=("<image>",), vocab_size=420)
    config = AutoConfig.for_model(
        "llava", text_config={**TEXT, "model_type": "llama"}, image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_config={**SIGHT, "model_type": "clip_vision_model", "image_size": 16, "patch_size": 8},
        vision_feature_layer=-2,
    )  # fmt: skip
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return config, LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )  # fmt: skip


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen2_vl": lambda: _qwen("qwen2_vl"),
    "qwen2_5_vl": lambda: _qwen("qwen2_5_vl"),
    "gemma3": _gemma,
    "llava": _llava,
}
PADDED = {"qwen3_5": _qwen3_5}  # layers with a state read no trees


def save(family: str, folder: Path, *, scale: float = 3.0) -> str:
    """Save a random model of a family with its processor; matrices are `scale` times the usual size."""
    config, processor = (FAMILIES | PADDED)[family]()
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("input_projection_weight"):  # Gemma 3's is zero at first: it would see nothing
                weight.normal_()
            elif weight.ndim > 1 and "embed" not in name:
                weight.mul_(scale)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def write(folder: Path, count: int = 8, *, column: str = "images", **extra: Any) -> Path:
    """A file of pairs about the colour of the image in the prompt, with its images beside it."""
    rows = []
    for i in range(count):
        name, other = ("r", "b") if i % 2 else ("b", "r")
        size = (16 + 8 * (i % 3), 16)
        colour = tuple(value - i // 2 % 20 for value in COLOURS[name])
        Image.new("RGB", size, colour).save(folder / f"{i}.png")
        value: Any = [f"{i}.png"] if column == "images" else f"{i}.png"
        rows.append({"prompt": [{"role": "user", "content": "<image>What colour?"}], "chosen": name, "rejected": other,
                     column: value, **extra})  # fmt: skip
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file
