"""Loads the processor by which a model takes images, and keeps what a checkpoint has beside its tokenizer."""

from __future__ import annotations

import inspect
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    PROCESSOR_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.utils import AUDIO_TOKENIZER_NAME, IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME

from prefopt.data.images.inputs import ImageInputs
from prefopt.models.adapters import BASE, saved_settings

# Settings of processors for images, sound and video, none of which the tokenizer saves.
FILES = (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME, VIDEO_PROCESSOR_NAME, AUDIO_TOKENIZER_NAME)
BACKEND = "pil"  # gives the same pixels with torchvision and without
PARTS = ["image_processor", "tokenizer"]  # of a processor: what images and text need


def copy_processor(source: str, target: Path, revision: str | None = None) -> None:
    """Copy the settings of a model's processor, and of that below an adapter, so that transformers can load it."""
    saved = saved_settings(source)
    if saved is not None:
        copy_processor(saved[BASE], target)
    for name in FILES:
        try:
            file = _file(source, name, revision)
        except OSError:  # what the model was loaded with is here; a run that ends does not fail for the rest
            continue
        if file is not None:
            shutil.copyfile(file, target / name)


def takes_images(config: Any, path: str, revision: str | None = None) -> bool:
    """Whether transformers has a model for images and text, and its processor, for a config and the files beside it."""
    known = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and type(config) in PROCESSOR_MAPPING
    return known and _placeholder(config) is not None and has_processor(path, revision)


def load_image_inputs(path: str, revision: str | None = None, tokenizer: Any = None) -> ImageInputs | None:
    """What turns images into the inputs of the model in a folder or on the hub; None for one that takes no images.

    No code of the model's author is run for it, whatever `model.trust_remote_code` says.

    Args:
        path: a folder, of an adapter too, or a hub id.
        revision: of a hub id.
        tokenizer: the model's, where it is loaded already; it gets the processor's chat template, unless it is that of
            an adapter, which was saved with the one in training.

    Raises:
        OSError: the hub does not answer, or has no such model.
    """
    saved = saved_settings(path)
    if saved is not None:
        template = getattr(tokenizer, "chat_template", None)
        inputs = load_image_inputs(saved[BASE], None, tokenizer)
        if tokenizer is not None:
            tokenizer.chat_template = template
        return inputs
    if PreTrainedConfig.get_config_dict(path, revision=revision)[0].get("model_type") not in CONFIG_MAPPING:
        return None  # a tokenizer alone, or a model of its author's code
    config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    if not takes_images(config, path, revision):
        return None
    how = {"revision": revision, "trust_remote_code": False}
    images = AutoImageProcessor.from_pretrained(path, backend=BACKEND, **how)  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(path, **how) if tokenizer is None else tokenizer
    kind: Any = PROCESSOR_MAPPING[type(config)]
    settings = kind.get_processor_dict(path, revision=revision)[0]
    asked = inspect.signature(kind.__init__).parameters.keys() - {*kind.get_attributes(), "self"}
    own = {name: settings[name] for name in asked if name in settings}
    if own.get("chat_template") is not None:
        tokenizer.chat_template = own["chat_template"]
    return ImageInputs.of(image_processor(kind, images, tokenizer, own), int(_placeholder(config) or 0), own)


def image_processor(kind: Any, images: Any, tokenizer: Any, settings: dict[str, Any]) -> Any:
    """A processor of this class for images and text alone, because those of videos need torchvision."""
    made = kind if sorted(kind.get_attributes()) == PARTS else _for_images(kind)
    return made(image_processor=images, tokenizer=tokenizer, **settings)


@cache
def _for_images(kind: Any) -> Any:
    class ImageProcessor(kind):  # type: ignore[misc]
        def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
            super().__init__(image_processor=image_processor, tokenizer=tokenizer, **kwargs)

        def __reduce__(self) -> Any:  # for other processes; its tokenizer, which holds it, may not be whole yet there
            return _empty, (kind,), vars(self)

    return ImageProcessor


def _empty(kind: Any) -> Any:
    made = _for_images(kind)
    return made.__new__(made)


def _placeholder(config: Any) -> int | None:
    """The id of the token in whose place a model puts an image."""
    found = getattr(config, "image_token_id", None)
    return found if found is not None else getattr(config, "image_token_index", None)


def has_processor(path: str, revision: str | None = None) -> bool:
    """Whether the settings of a processor for images stand beside a model; OSError where the hub does not say."""
    return any(_file(path, name, revision) for name in (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME))


def _file(path: str, name: str, revision: str | None) -> str | None:
    """A file of a model; None if it has none, or if the hub is not to be asked and the cache has none.

    Raises:
        OSError: the hub does not answer, or has no such model.
    """
    if os.path.isdir(path):
        file = os.path.join(path, name)
        return file if os.path.isfile(file) else None
    try:
        return hf_hub_download(path, name, revision=revision)
    except LocalEntryNotFoundError:  # the hub was not asked, or did not answer
        if try_to_load_from_cache(path, name, revision=revision) is None and not is_offline_mode():
            raise
        return None  # an earlier answer, that there is none, is in the cache
    except EntryNotFoundError:
        return None
