"""Continues prompts with images: reads the images once, with the prompt, and continues from the cache.

Where the cache does not give the numbers of a plain forward, every token is computed from the whole text.
"""

from __future__ import annotations

import logging
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefopt.data.images.inputs import ImageInputs, attached, inputs_of
from prefopt.engine.decoders import AHEAD, Decoder, Prompts, bounded_logps, each_once
from prefopt.engine.forward import decoder_of, unwrap
from prefopt.engine.gates import rounding
from prefopt.engine.image_arguments import image_call, rope_index
from prefopt.engine.image_probes import image_probes
from prefopt.engine.kv_cache import roomy_cache
from prefopt.engine.layout import Tree
from prefopt.errors import Stopped, UserError, first_line

logger = logging.getLogger(__name__)


class ImageDecoder(Decoder):
    """Rows of one length with images, and a key-value cache."""

    def __init__(self, model: Any, prompts: Prompts) -> None:
        super().__init__(model, prompts)
        unique, rows = each_once(prompts, model.device)
        ids, given = _read(model, unique)
        self.length, self.cache = ids.shape[1], roomy_cache(model.config)
        self.delta: Tensor | None = None  # (B, 1) how much further a token's position is than its place
        self.axes = 1
        below = decoder_of(unwrap(model))
        if hasattr(below, "get_rope_index"):
            positions, self.delta = rope_index(below, ids, torch.ones_like(ids), given)
            self.axes, given["position_ids"] = len(positions), positions
        self._forward(ids, given)
        self.repeat(rows)

    def keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.delta = None if self.delta is None else self.delta[rows]

    def step(self, tokens: Tensor) -> None:
        at = torch.full((len(tokens), 1), self.length, device=tokens.device)
        if self.delta is not None:
            at = (at + self.delta).expand(self.axes, -1, -1)
        self.length += 1
        self._forward(tokens[:, None], {"position_ids": at})

    def _forward(self, ids: Tensor, given: dict[str, Any]) -> None:
        cache = {self.cache_argument: self.cache}
        output = self.model(input_ids=ids, use_cache=True, logits_to_keep=1, **given, **cache)
        self.logits = output.logits[:, -1]


class PlainImageDecoder(Decoder):
    """Rows of one length with images, and each token from a forward over the whole text."""

    def __init__(self, model: Any, prompts: Prompts) -> None:
        super().__init__(model, prompts)
        self.prompts = [np.array(prompt, np.int32) for prompt in prompts]
        self.ids = torch.stack([torch.tensor(_inputs(model).ids(prompt)) for prompt in self.prompts]).to(model.device)
        self._forward()

    def keep(self, rows: Tensor) -> None:
        self.ids, self.prompts = self.ids[rows], [self.prompts[row] for row in rows.tolist()]

    def step(self, tokens: Tensor) -> None:
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
        self._forward()

    def _forward(self) -> None:
        parts = []
        for ids, prompt in zip(self.ids, self.prompts, strict=True):
            given = image_call(_inputs(self.model), [prompt], ids[None], self.model)
            parts.append(self.model(input_ids=ids[None], use_cache=False, **given).logits[:, -1])
        self.logits = torch.cat(parts)


# The decoder of each model that has been tried with images.
IMAGE_DECODERS: weakref.WeakKeyDictionary[Any, type[Decoder]] = weakref.WeakKeyDictionary()


def choose_image_decoder(model: Any) -> type[Decoder]:
    """The decoder for prompts with images, by a trial with random ones.

    Raises:
        UserError: the model takes no images.
    """
    causal = unwrap(model)
    if causal not in IMAGE_DECODERS:
        IMAGE_DECODERS[causal] = ImageDecoder if _reproduces(model) else PlainImageDecoder
        if IMAGE_DECODERS[causal] is PlainImageDecoder:
            logger.warning("%s: its cache does not give the numbers of its plain forward with images, so every token "
                           "is computed from the whole text, which is slow", type(causal).__name__)  # fmt: skip
    return IMAGE_DECODERS[causal]


def _reproduces(model: Any) -> bool:
    """Whether the cache gives the log-probs of plain forwards after prompts with random images."""
    causal, own = unwrap(model), _inputs(model)
    inputs, trees = image_probes(own, causal.config, closing=False)
    try:
        with attached(causal, inputs):
            return all(_follows(model, inputs, tree) for tree in trees)
    except (Stopped, torch.OutOfMemoryError):
        raise
    except Exception as problem:  # a model may do anything with a call it was not written for
        logger.info("%s does not work with a cache and images: %s", type(causal).__name__, first_line(problem))
        return False


def _follows(model: Any, inputs: ImageInputs, tree: Tree) -> bool:
    """Whether the cache gives the log-probs of a plain forward after a prompt, and after the next tokens."""
    ahead = tree.branches[0][:AHEAD]
    ids = torch.from_numpy(np.concatenate((inputs.ids(tree.prompt), ahead)).astype(np.int64))[None].to(model.device)
    plain = model(input_ids=ids, use_cache=False, **image_call(inputs, [tree.prompt], ids, model)).logits[0]
    texts = ImageDecoder(model, [tree.prompt.tolist()] * 2)
    for n in range(AHEAD + 1):
        if n:
            texts.step(ids[0, len(tree.prompt) + n - 1].expand(2))
        off = bounded_logps(texts.logits) - bounded_logps(plain[len(tree.prompt) + n - 1])
        if not float(off.abs().max()) <= rounding(model):
            return False
    return True


def _inputs(model: Any) -> ImageInputs:
    found = inputs_of(unwrap(model))
    if found is None:
        raise UserError("a prompt has an image, and the model was loaded without its processor: it takes no images")
    return found


def _read(model: Any, prompts: Prompts) -> tuple[Tensor, dict[str, Any]]:
    inputs, coded = _inputs(model), np.array(prompts, np.int32)
    ids = torch.from_numpy(inputs.ids(coded).astype(np.int64)).to(model.device)
    return ids, dict(image_call(inputs, list(coded), ids, model))
