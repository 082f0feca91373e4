"""Puts the images of prompts into rows: pixels, the types of tokens, and the positions of models that see in a plane.

Models like Qwen-VL give the tokens of an image positions in three dimensions. In a tree these are computed for the
prompt alone, by the model's own `get_rope_index`, and each branch continues after the largest. Models like Gemma 3 let
all tokens of an image attend to each other: `TreePlan.image`. The gates (`prefopt.engine.gates`) check whether this is
right for a model.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from prefopt.data.images.inputs import BLOCK_TYPES, MEDIA_TYPES, ImageInputs, has_images
from prefopt.data.tokens import Ids
from prefopt.engine.layout import Row, TreePlan
from prefopt.errors import UserError


def with_images(row: Row, inputs: ImageInputs | None) -> Row:
    """The row with the images of its prompts in it.

    Raises:
        UserError: the model takes none, or one of them is gone.
    """
    if row.images is None:
        return row
    if inputs is None:
        raise UserError("the records have images, and the model was loaded without its processor: load it by "
                        "prefopt.models.load.load_model from a folder with its processor's settings")  # fmt: skip
    ids = row.input_ids.masked_fill(row.images.places, inputs.token_id)
    types = inputs.types(ids)
    given = types | inputs.pixels(row.images.prompts)
    tree = row.tree
    if tree is not None and BLOCK_TYPES in types:
        tree = replace(tree, image=_blocks(types[BLOCK_TYPES][0], tree))
    return replace(row, input_ids=ids, tree=tree, images=replace(row.images, inputs=given))


def image_arguments(decoder: Any, row: Row) -> dict[str, Any]:
    """What a decoder is given of a row's images, beside token ids."""
    assert row.images is not None
    if not row.images.inputs:
        raise RuntimeError("the images of this row were not put into it (`with_images`)")
    given: dict[str, Any] = _as_weights(row.images.inputs, decoder)
    if row.tree is not None and hasattr(decoder, "get_rope_index"):
        given["position_ids"] = tree_positions(decoder, row.input_ids, row.tree, given)
    return given


def image_call(inputs: ImageInputs, prompts: Sequence[Ids], ids: Tensor, model: Any) -> dict[str, Tensor]:
    """What a model is given of the images of some prompts, beside the ids (R, L) of these and what follows them."""
    if not any(map(has_images, prompts)):
        return {}
    found = inputs.types(ids) | inputs.pixels(prompts)
    return _as_weights({name: value.to(ids.device) for name, value in found.items()}, model)


def _as_weights(inputs: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """The same with pixels in the precision of the model's weights."""
    dtype = next(model.parameters()).dtype
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}


def tree_positions(decoder: Any, input_ids: Tensor, plan: TreePlan, given: dict[str, Any]) -> Tensor:
    """(D, 1, L) positions in D dimensions: of each prompt as the model has them, of branches one after the other."""
    place = _places(plan)
    inside, at = place >= 0, place.clamp(min=0)
    ids = torch.where(inside, input_ids[0, at], 0)
    if MEDIA_TYPES in given:
        given = given | {MEDIA_TYPES: torch.where(inside, given[MEDIA_TYPES][0, at], 0)}
    positions, deltas = rope_index(decoder, ids, inside.long(), given)
    offset = deltas.flatten()[_rank(plan)]
    found = (plan.position + torch.where(plan.scope > 0, offset, 0)).expand(len(positions), 1, -1).clone()
    found[:, 0, place[inside]] = positions[:, inside]
    return found


def rope_index(decoder: Any, ids: Tensor, mask: Tensor, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """((D, R, L) positions, (R, 1) how much further the next one is than the number of tokens) by the model's own rule.

    Args:
        decoder: has `get_rope_index`.
        ids, mask: (R, L).
        given: what the model is given of the images.
    """
    names = inspect.signature(decoder.get_rope_index).parameters
    call = {name: value for name, value in given.items() if name in names}
    found: tuple[Tensor, Tensor] = decoder.get_rope_index(input_ids=ids, attention_mask=mask, **call)
    return found


def _places(plan: TreePlan) -> Tensor:
    """(G, P) places in a row of trees of the tokens of its prompts, in its order; -1 past the end."""
    inside = (plan.scope == 0).nonzero().squeeze(1)
    rank = _rank(plan)[inside]
    sizes = torch.bincount(rank)
    place = torch.full((len(sizes), int(sizes.max())), -1, device=inside.device)
    place[rank, plan.position[inside]] = inside
    return place


def _rank(plan: TreePlan) -> Tensor:
    """(L,) which tree of the row each position is of, counted in its order."""
    return torch.cat((plan.tree.new_zeros(1), (plan.tree[1:] != plan.tree[:-1]).long())).cumsum(0)


def _blocks(types: Tensor, plan: TreePlan) -> Tensor:
    """(L,) the run of image tokens that each position is in, -1 for none."""
    image = types == 1
    starts = image.clone()
    starts[1:] &= ~image[:-1] | (plan.tree[1:] != plan.tree[:-1])
    return torch.where(image, starts.long().cumsum(0) - 1, -1)
