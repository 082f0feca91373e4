"""Checks that the hub, or its cache here, has a model, before a library asks for it again and again."""

from __future__ import annotations

import contextlib
import functools
import os

from prefopt.errors import UserError

SECONDS = 10.0  # to wait for the hub
FILES = ("config.json", "adapter_config.json", "tokenizer_config.json")  # one of them is in the cache of a used model


def check_on_hub(path: str, *, hint: str = "") -> None:
    """Check that a name that is no folder is that of a model on the hub or in its cache. The hub is asked once.

    Args:
        path: a folder, or a hub id.
        hint: what was probably meant, for the message.

    Raises:
        UserError: there is no model of that name, or none here and the hub cannot be reached.
    """
    if os.path.exists(path):
        return
    from huggingface_hub import constants, errors, try_to_load_from_cache

    try:
        if any(isinstance(try_to_load_from_cache(path, file), str) for file in FILES):
            return
    except errors.HFValidationError:  # no name of the hub
        return
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"there is no folder {path}, and no model of that name in the hub's cache (HF_HUB_OFFLINE is "
                        f"set){hint}")  # fmt: skip
    try:
        ask_hub(path)
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"there is no folder {path}, and the hub has no model of that name that can be read "
                        f"here{hint}") from error  # fmt: skip
    except Exception as error:  # of whatever library makes requests; other answers are left to the download
        if getattr(error, "response", None) is None:
            raise UserError(f"there is no folder {path}, no model of that name in the hub's cache, and the hub cannot "
                            f"be reached{hint}") from error  # fmt: skip


@functools.cache  # what was found is not asked for again by this process
def ask_hub(path: str) -> None:
    """Ask the hub for a model; raises what its client raises, but for a model that needs permission."""
    from huggingface_hub import HfApi, errors

    with contextlib.suppress(errors.GatedRepoError):  # the download says how to get access
        HfApi().model_info(path, timeout=SECONDS)
