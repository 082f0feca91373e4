"""Puts into rendered texts what a processor writes in place of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prefopt.data.images.image_files import IMAGE_MARK
from prefopt.data.images.inputs import Expansion, ImageInputs
from prefopt.data.templates import Rendered


def expanded(inputs: ImageInputs, made: Rendered, digests: Sequence[str]) -> tuple[Rendered, list[Expansion]]:
    """The texts of a record with what stands for each image of its prompt, and these parts.

    Raises:
        RowError: a text has the processor's image token, or the processor rejects an image.
    """
    mark = inputs.processor.image_token
    text, parts = inputs.expanded(IMAGE_MARK.sub(mark, made.prompt), digests)
    answers = []
    for answer in made.answers:
        longer, _ = inputs.expanded(IMAGE_MARK.sub(mark, answer.text), digests)
        by = len(longer) - len(answer.text)  # images are in prompts, so that all spans come after them
        spans = None if answer.spans is None else tuple((start + by, stop + by) for start, stop in answer.spans)
        answers.append(replace(answer, text=longer, spans=spans))
    return Rendered(text, answers), parts
