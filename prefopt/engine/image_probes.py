"""Makes prompts with random images, with which the gates try a model, and which stand beside texts alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prefopt.data.images.inputs import ImageInputs, inputs_of
from prefopt.data.record import RowError
from prefopt.engine.forward import unwrap
from prefopt.engine.layout import Tree
from prefopt.errors import UserError

SIZES = ((40, 24), (24, 56), (24, 24))  # width and height in pixels
# Tokens before each image, and the lengths of the branches.
SHAPES = ((((5, 0),), (4, 7)), (((3, 1),), (6,)), (((2, 2), (4, 0)), (3, 5)))


def special_tokens(inputs: ImageInputs, config: Any) -> frozenset[int]:
    """The ids of special tokens, such as placeholders of images, their first and last tokens, and padding: not text."""
    found = {value for name, value in vars(config).items() if name.endswith(("token_id", "token_index"))}
    found |= {inputs.token_id, config.get_text_config().pad_token_id, *inputs.processor.image_token_ids}
    return frozenset(value for value in found if isinstance(value, int))


def image_probes(inputs: ImageInputs, config: Any, *, closing: bool) -> tuple[ImageInputs, list[Tree]]:
    """The model's inputs with a few random images, and trees with these in prompts, one with two where it takes two.

    Args:
        inputs: of the model.
        config: of the model.
        closing: of reward models.

    Raises:
        UserError: the processor does not take images.
    """
    rng = np.random.default_rng(1)
    held = {
        f"{i:032x}": Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8))
        for i, (width, height) in enumerate(SIZES)
    }
    names, inputs = list(held), replace(inputs, held=held)
    special = special_tokens(inputs, config)
    words = np.array([token for token in range(config.get_text_config().vocab_size) if token not in special], np.int32)
    trees = []
    for shape, branches in SHAPES:
        shown = [names[which] for _, which in shape]
        try:
            parts = inputs.expansions(tuple(held[name].size for name in shown))
        except RowError as error:
            if len(shape) > 1:  # one image a prompt is enough
                continue
            raise UserError(f"the processor of the model takes no images: {error.detail}") from error
        pieces: list[NDArray[np.int32]] = []
        for (before, _), part in zip(shape, parts, strict=True):
            ids = inputs.processor.tokenizer(part.text, add_special_tokens=False)["input_ids"]
            pieces += [rng.choice(words, before), np.array(ids, np.int32)]
        prompt = inputs.coded(np.concatenate([*pieces, rng.choice(words, 3)]).tolist(), shown, parts)
        texts = tuple(rng.choice(words, n).astype(np.int32) for n in branches)
        trees.append(Tree(np.array(prompt, np.int32), texts, closing))
    return inputs, trees


def blank_tree(model: Any, *, closing: bool) -> tuple[ImageInputs, Tree]:
    """A small tree with a random image, and the model's inputs with that image; `closing` for reward models.

    Raises:
        UserError: the processor does not take images.
    """
    causal = unwrap(model)
    own = inputs_of(causal)
    assert own is not None
    inputs, trees = image_probes(own, causal.config, closing=closing)
    return inputs, min(trees, key=lambda tree: tree.num_tokens)
