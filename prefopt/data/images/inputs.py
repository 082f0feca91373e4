"""Turns the images of prompts into tokens, and into what a model reads of them, with the model's own processor.

In the token ids of a prompt, each place of an image has a code below 0 that is made of the image's content and the
processor's settings: whatever compares, stores or hashes prompts in tokens tells images apart. `ImageInputs` gives them
back: the placeholder's id for the model, and the pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from prefopt.common.digest import of_json
from prefopt.data.images.image_files import FILES, ImageFile, load
from prefopt.data.record import RowError
from prefopt.data.tokens import Ids
from prefopt.errors import UserError, first_line, of_machine

ATTRIBUTE = "prefopt_image_inputs"  # of a tokenizer or a model that takes images
# Names by which models read which tokens are images; the second is of models that see images as blocks.
TYPES = MEDIA_TYPES, BLOCK_TYPES = "mm_token_type_ids", "token_type_ids"
Sizes = tuple[tuple[int, int], ...]

PROMPTS: dict[bytes, tuple[str, ...]] = {}  # digest of a prompt's codes -> its images


@dataclass(frozen=True)
class Expansion:
    """What stands for an image in the text of a prompt, and how many of its tokens are places of the image."""

    text: str
    places: int


@dataclass(eq=False)
class ImageInputs:
    """What a model's processor makes of images.

    Attributes:
        processor: of transformers, for images and text.
        token_id: the token in whose place the model puts what it sees.
        settings: digest of what the pixels and their places depend on beside the image.
        files: digest -> file.
        prompts: digest of a prompt's codes -> its images.
        held: digest -> image, of those in memory.
    """

    processor: Any
    token_id: int
    settings: str
    files: MutableMapping[str, ImageFile] = field(default_factory=lambda: FILES)
    prompts: MutableMapping[bytes, tuple[str, ...]] = field(default_factory=lambda: PROMPTS)
    held: Mapping[str, Image.Image] = field(default_factory=dict)
    _expansions: dict[Sizes, list[Expansion]] = field(default_factory=dict)

    @classmethod
    def of(cls, processor: Any, token_id: int, own: Mapping[str, Any]) -> ImageInputs:
        """The inputs by a processor of transformers with these settings of its own, for a model whose placeholder has
        this id."""
        used = {name: value for name, value in own.items() if name != "chat_template"}
        facts = [type(processor).__name__, processor.image_processor.to_dict(), processor.image_token, token_id, used]
        return cls(processor, token_id, of_json(facts))

    def __deepcopy__(self, memo: object) -> ImageInputs:
        return self  # copies of a model share it

    def expanded(self, text: str, digests: Sequence[str]) -> tuple[str, list[Expansion]]:
        """A text with what the processor puts in place of each image, and these parts.

        Raises:
            RowError: the text has another number of image tokens than there are images, or the processor rejects one.
        """
        pieces = text.split(self.processor.image_token)
        if len(pieces) - 1 != len(digests):
            raise RowError(
                "image_marks",
                f"the prompt has {len(digests)} images, and as the model reads it {len(pieces) - 1} times the token "
                f"{self.processor.image_token!r}: a text has that token, or the chat template prints no images",
            )
        parts = self.expansions(tuple(self._size(digest) for digest in digests))
        joined = pieces[0] + "".join(part.text + piece for part, piece in zip(parts, pieces[1:], strict=True))
        return joined, parts

    def expansions(self, sizes: Sizes) -> list[Expansion]:
        """What stands for images of these (width, height) in one prompt.

        Raises:
            RowError: the processor rejects one.
            UserError: the processor does not put tokens in place of images as its tokenizer would.
        """
        if sizes not in self._expansions:
            self._expansions[sizes] = self._expand(sizes)
        return self._expansions[sizes]

    def _expand(self, sizes: Sizes) -> list[Expansion]:
        tokenizer, name = self.processor.tokenizer, type(self.processor).__name__
        text = "".join(f"a{self.processor.image_token}" for _ in sizes)
        blank = [Image.new("RGB", size) for size in sizes]
        try:
            made = self.processor(images=[blank], text=[text], add_special_tokens=False,
                                  return_text_replacement_offsets=True)  # fmt: skip
        except Exception as error:  # a processor can raise anything
            if of_machine(error):
                raise
            shown = ", ".join(f"{width}x{height}" for width, height in sizes)
            raise RowError(
                "image_rejected", f"{name} does not take images of {shown}: {first_line(error)[:200]}"
            ) from error
        parts = [one["replacement"] for one in made["text_replacement_offsets"][0]]
        ids = tokenizer("".join(f"a{part}" for part in parts), add_special_tokens=False)["input_ids"]
        if len(parts) != len(sizes) or list(made["input_ids"][0]) != list(ids):
            raise UserError(f"{name} writes images into texts in a way that prefopt does not know: give a model of "
                            "another family")  # fmt: skip
        own = [tokenizer(part, add_special_tokens=False)["input_ids"].count(self.token_id) for part in parts]
        if ids.count(self.token_id) != sum(own) or not all(own):
            raise UserError(f"{name} gives images no tokens {self.token_id}, which the model looks for: tokenizer and "
                            "model do not belong together")  # fmt: skip
        return [Expansion(part, places) for part, places in zip(parts, own, strict=True)]

    def coded(self, ids: Sequence[int], digests: Sequence[str], parts: Sequence[Expansion]) -> list[int]:
        """The ids of a prompt with the code of each image in its places, which are remembered.

        Raises:
            RowError: there are more or fewer places.
        """
        coded = np.array(ids, np.int32)
        places = np.flatnonzero(coded == self.token_id)
        # A family's mark may be another token, as Gemma 3's is: `expanded` does not see this one in a text.
        if len(places) != sum(part.places for part in parts):
            raise RowError("image_marks", "a text has the token that stands for an image; remove it")
        codes = [self._code(digest, part.places) for digest, part in zip(digests, parts, strict=True)]
        coded[places] = np.concatenate(codes)
        self.prompts[key_of(coded)] = tuple(digests)  # not PROMPTS, of which another process has a copy here
        found: list[int] = coded.tolist()
        return found

    @cached_property
    def reserved(self) -> list[int]:
        """The placeholder tokens of images, videos and sound, which are not text."""
        processor = self.processor
        lists = (processor.image_token_ids, processor.video_token_ids, processor.audio_token_ids)
        found = {self.token_id, *(token for ids in lists for token in ids)}
        return sorted(token for token in found if isinstance(token, int))

    def check_words(self, *texts: Sequence[int]) -> None:
        """Raise RowError for a text with a placeholder token of an image, a video or sound."""
        if any(not set(self.reserved).isdisjoint(ids) for ids in texts):
            raise RowError("image_marks", "a text has the token that stands for an image, a video or sound; remove it")

    def images_of(self, prompt: Ids) -> tuple[str, ...]:
        """The images of a prompt in tokens.

        Raises:
            UserError: this process has not read them.
        """
        if not has_images(prompt):
            return ()
        key = key_of(prompt)
        if key not in self.prompts:
            raise UserError("a prompt has an image that was not read here: prepare its data with this model first")
        return self.prompts[key]

    def ids(self, prompt: NDArray[Any]) -> NDArray[Any]:
        """The ids of a prompt as the model reads them."""
        return np.where(prompt < 0, self.token_id, prompt)

    def types(self, ids: Tensor) -> dict[str, Tensor]:
        """Which tokens (R, L) are of images, under the name by which the model reads it, if it does."""
        name = next((name for name in TYPES if name in self.processor.model_input_names), None)
        if name is None:
            return {}
        made = self.processor.create_mm_token_type_ids(ids.tolist())
        return {name: torch.tensor(made, device=ids.device)}

    def pixels(self, prompts: Sequence[Ids]) -> dict[str, Tensor]:
        """What the model reads of the images of prompts that lie in one batch in this order, each read once.

        Raises:
            UserError: an image is gone, has changed, or is not known.
        """
        digests = [self.images_of(prompt) for prompt in prompts]
        rows = [row for row in digests if row]
        images = {name: self.held.get(name) or load(name, self.files) for name in dict.fromkeys(sum(rows, ()))}
        made = {row: self._processed([row], images) for row in dict.fromkeys(rows)}
        joined = _joined([made[row] for row in rows])
        return joined if joined is not None else self._processed(rows, images)

    def _processed(self, rows: Sequence[Sequence[str]], images: Mapping[str, Image.Image]) -> dict[str, Tensor]:
        """What the processor makes of the images of several prompts."""
        made = self.processor(
            images=[[images[digest] for digest in row] for row in rows],
            text=[self.processor.image_token * len(row) for row in rows], add_special_tokens=False, padding=True,
            return_tensors="pt",
        )  # fmt: skip
        skipped = {"input_ids", "attention_mask", *TYPES}
        return {name: value for name, value in made.items() if name not in skipped}

    def _size(self, digest: str) -> tuple[int, int]:
        if digest in self.held:
            return self.held[digest].size
        if digest not in self.files:
            raise RowError("image_missing", "the image of this prompt is not among those that were read")
        return self.files[digest].width, self.files[digest].height

    def _code(self, digest: str, count: int) -> NDArray[np.int32]:
        """(count,) int32 below 0: 31 bits a place of a digest of image and settings."""
        drawn = hashlib.shake_128(f"{digest} {self.settings}".encode()).digest(4 * count)
        return ~(np.frombuffer(drawn, "<u4") & 0x7FFFFFFF).astype(np.int32)


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor] | None:
    """The inputs of several prompts end to end; None where the processor pads them to one size."""
    names = parts[0].keys()
    if any(part.keys() != names for part in parts):
        return None
    if any(len({part[name].shape[1:] for part in parts}) > 1 for name in names):
        return None
    return {name: torch.cat([part[name] for part in parts]) for name in names}


def remember(prompt: Any, digests: Sequence[str]) -> None:
    """Know the images of a prompt in tokens from now on."""
    PROMPTS[key_of(np.asarray(prompt, np.int32))] = tuple(digests)


def has_images(prompt: Ids) -> bool:
    """Whether a prompt in tokens has an image."""
    return bool((np.asarray(prompt) < 0).any())


def codes_of(prompt: Ids) -> Ids:
    """The codes of the images of a prompt."""
    ids = np.asarray(prompt, np.int32)
    return ids[ids < 0]


def key_of(prompt: Ids) -> bytes:
    """What a prompt's images are known by."""
    return hashlib.blake2b(codes_of(prompt).tobytes(), digest_size=16).digest()


def attach(owner: Any, inputs: ImageInputs) -> Any:
    """Give a tokenizer or a model its processor's inputs; returns the owner."""
    setattr(owner, ATTRIBUTE, inputs)
    return owner


@contextmanager
def attached(owner: Any, inputs: ImageInputs) -> Iterator[None]:
    """Give a model other inputs for a while."""
    before = inputs_of(owner)
    attach(owner, inputs)
    try:
        yield
    finally:
        setattr(owner, ATTRIBUTE, before)


def inputs_of(owner: Any) -> ImageInputs | None:
    """The inputs that belong to a tokenizer or a model; None of one that takes no images."""
    found: ImageInputs | None = getattr(owner, ATTRIBUTE, None)
    return found


def same_images(one: Any, other: Any) -> bool:
    """Whether two tokenizers or models make the same of images, as far as both take any."""
    mine, theirs = inputs_of(one), inputs_of(other)
    return mine is None or theirs is None or mine.settings == theirs.settings


def decode_prompt(tokenizer: Any, prompt: Sequence[int], **options: Any) -> str:
    """The text of a prompt in tokens, with one placeholder for the places of an image."""
    text: str = tokenizer.decode(shown_ids(tokenizer, prompt), **options)
    return text


def shown_ids(owner: Any, prompt: Sequence[int]) -> list[int]:
    """The ids of a prompt that a tokenizer can decode: of an image one placeholder for its places in a row."""
    inputs = inputs_of(owner)
    if inputs is None:
        return list(prompt)
    return [inputs.token_id if token < 0 else token for i, token in enumerate(prompt)
            if token >= 0 or i == 0 or prompt[i - 1] >= 0]  # fmt: skip
