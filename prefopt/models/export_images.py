"""Makes prompts with random images, by which an exported model for images is checked in a fresh process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from prefopt.data.images.inputs import attached, inputs_of
from prefopt.data.tokens import TokenRecord
from prefopt.engine.forward import is_reward_model, unwrap
from prefopt.engine.image_arguments import image_call
from prefopt.engine.image_probes import image_probes
from prefopt.errors import PrefoptError
from prefopt.models.processor import load_image_inputs
from prefopt.plugin import Data

Given = tuple[list[list[list[int]]], Path | None]  # sequences of (prompt, completion), and the file of their inputs


@contextmanager
def export_images(folder: Path, trained: Any) -> Iterator[tuple[list[TokenRecord], Given]]:
    """Records with random images, which `trained` can score inside the context, and what a fresh process is given of
    them; none for a model that takes no images.

    Raises:
        PrefoptError: the exported processor is not the model's.
    """
    causal = unwrap(trained)
    own = inputs_of(causal)
    if own is None:
        yield [], ([], None)
        return
    exported = load_image_inputs(str(folder))
    if exported is None or exported.settings != own.settings:
        raise PrefoptError("the exported folder has another processor for images than the model; nothing was left")
    inputs, trees = image_probes(own, causal.config, closing=is_reward_model(causal))
    records = [
        TokenRecord(id=f"image {i}", kind=Data.DEMONSTRATIONS, prompt=tree.prompt, completions=tree.branches[:1])
        for i, tree in enumerate(trees)
    ]
    device = next(trained.parameters()).device
    sequences: list[list[list[int]]] = []
    tensors: dict[str, torch.Tensor] = {}
    for i, record in enumerate(records):
        prompt, completion = inputs.ids(record.prompt).tolist(), record.completions[0].tolist()
        sequences.append([prompt, completion])
        ids = torch.tensor([prompt + completion], device=device)
        given = image_call(inputs, [record.prompt], ids, trained)
        tensors |= {f"{i}.{name}": value.contiguous().cpu() for name, value in given.items()}
    with tempfile.TemporaryDirectory() as place, attached(causal, inputs):
        save_file(tensors, file := Path(place) / "images.safetensors")
        yield records, (sequences, file)


def with_pictures(request: Mapping[str, Any], given: Given) -> dict[str, Any]:
    """A request to a fresh process with the sequences that have images, after the others, and the file of these."""
    sequences, file = given
    return {**request, "sequences": [*request["sequences"], *sequences], "images": file and str(file),
            "texts": len(request["sequences"])}  # fmt: skip
