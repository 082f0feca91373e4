"""Keeps what a multimodal checkpoint has beside its tokenizer: the settings of its processor."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers.utils import AUDIO_TOKENIZER_NAME, IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME
from transformers.utils.hub import cached_file

from prefopt.models.adapters import BASE, saved_settings

# Settings of processors for images, sound and video, none of which the tokenizer saves.
FILES = (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME, VIDEO_PROCESSOR_NAME, AUDIO_TOKENIZER_NAME)


def copy_processor(source: str, target: Path, revision: str | None = None) -> None:
    """Copy the settings of a model's processor, and of that below an adapter, so that transformers can load it."""
    saved = saved_settings(source)
    if saved is not None:
        copy_processor(saved[BASE], target)
    for name in FILES:
        try:
            file = cached_file(source, name, revision=revision)
        except OSError:  # most models have none
            continue
        if file is not None:
            shutil.copyfile(file, target / name)
