"""Reports the images of prompts: how many, of which sizes and tokens, and which repeat earlier ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from prefopt.data.doctor.findings import Finding
from prefopt.data.images.image_files import FILES
from prefopt.data.images.image_places import images_of
from prefopt.data.images.inputs import inputs_of
from prefopt.data.make import content_hash
from prefopt.data.record import Record, RowError


class Images:
    """Counts images, and finds records with an image that an earlier record with another prompt has."""

    def __init__(self) -> None:
        self.total = self._with = self._images = 0
        self._sizes: list[tuple[int, int]] = []  # of different ones
        self._first: dict[str, str] = {}  # digest of the pixels -> that of the first prompt with it
        self._again: list[str] = []

    def see(self, record: Record) -> None:
        """Look at one record."""
        self.total += 1
        found = [FILES[digest] for digest in images_of(record.prompt) if digest in FILES]
        if not found:
            return
        self._with += 1
        self._images += len(found)
        prompt = content_hash(record.prompt)
        repeated = False
        for file in found:
            if file.pixels not in self._first:
                self._first[file.pixels] = prompt
                self._sizes.append((file.width, file.height))
            else:
                repeated |= self._first[file.pixels] != prompt
        if repeated:
            self._again.append(record.id)

    def findings(self) -> Iterator[Finding]:
        """The images with their sizes, and the records that repeat one; nothing for texts alone."""
        if not self._with:
            return
        width, height = np.array(self._sizes).T
        middle = f"{np.median(width):.0f}x{np.median(height):.0f}"
        note = (f"{self._images} images, {len(self._sizes)} different ones, of {width.min()}x{height.min()} to "
                f"{width.max()}x{height.max()} pixels (median {middle})")  # fmt: skip
        yield Finding(name="with_images", figure=self._with, total=self.total, note=note)
        yield Finding(name="duplicated_images", figure=len(self._again), total=self._with, ids=tuple(self._again))


def image_line(records: Sequence[Record], tokenizer: Any) -> Iterator[str]:
    """How many tokens an image takes; nothing for texts alone, or for a model that takes no images."""
    inputs = inputs_of(tokenizer)
    if inputs is None:
        return
    files = (FILES[digest] for record in records for digest in images_of(record.prompt) if digest in FILES)
    counts = Counter((file.width, file.height) for file in files)
    tokens: list[int] = []
    for size, count in counts.items():
        try:
            (part,) = inputs.expansions((size,))
        except RowError:
            continue  # such records are rejected, with the reason
        tokens += [len(inputs.processor.tokenizer(part.text, add_special_tokens=False)["input_ids"])] * count
    if tokens:
        yield (f"images: {len(tokens)} in prompts, {min(tokens)} to {max(tokens)} tokens each "
               f"(median {np.median(tokens):.0f}), {sum(tokens)} in all")  # fmt: skip
