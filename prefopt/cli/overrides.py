"""Checks the overrides of a command line for common mistakes before any heavy library is imported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import entry_points

from prefopt.errors import UserError, nearest
from prefopt.losses import MENU

VERBS = ("train", "plan", "compare", "eval", "sample", "reference")
# Options of other trainers -> ours.
MEANT = {
    "lr": "trainer.learning_rate",
    "learning_rate": "trainer.learning_rate",
    "trainer.lr": "trainer.learning_rate",
    "epochs": "trainer.num_train_epochs",
    "num_train_epochs": "trainer.num_train_epochs",
    "max_steps": "trainer.max_steps",
    "warmup_steps": "trainer.warmup_steps",
    "weight_decay": "trainer.weight_decay",
    "batch_size": "batch.records",
    "trainer.batch_size": "batch.records",
    "per_device_train_batch_size": "batch.records",
    "trainer.per_device_train_batch_size": "batch.records",
    "beta": "loss.beta",
    "max_length": "data.max_length",
    "model_name_or_path": "model.path",
    "dataset_name": "data.path",
}
# Of Hydra, which parses the words of `prefopt train`.
FLAGS = ("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun",
         "--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun",
         "--info")  # fmt: skip
MORE_LOSSES = ("--config-dir", "-cd", "hydra.searchpath")  # may add presets to the group `loss`


def check_overrides(verb: str, argv: list[str]) -> None:
    """Check names of losses and options that other trainers have; everything else is checked with the configuration.

    Raises:
        UserError: an unknown loss, or an option that has another name here.
    """
    if verb not in VERBS:
        return
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        key = name.removeprefix("--").replace("-", "_") if name.startswith("--") else name
        if key in MEANT:
            shown = value if equals else following
            raise UserError(f"there is no option {name!r}; did you mean {MEANT[key]}={shown}?")
        if verb == "train" and name.startswith("--") and not any(flag.startswith(name) for flag in FLAGS):
            raise UserError(f"there is no option {name}; options are KEY=VALUE, such as loss.beta=0.1, and "
                            "`prefopt train --cfg job` prints all of them")  # fmt: skip
    chosen = list(_losses(argv))
    if not chosen or entry_points(group="prefopt.conf") or any(word.startswith(MORE_LOSSES) for word in argv):
        return
    known = [*sorted(MENU), *(point.name for point in entry_points(group="prefopt.losses"))]
    for loss in chosen:
        if loss not in known:
            raise UserError(f"unknown loss {loss!r}{nearest(loss, known)}; `prefopt losses` prints the menu")


def _losses(argv: list[str]) -> Iterator[str]:
    """The losses named by `loss=A`, `loss=A,B` and `losses=[A,B]`; not those of a sweep's functions, such as glob()."""
    for word in argv:
        if found := re.fullmatch(r"loss=(\w+(?:,\w+)*)|losses=\[([\w ]+(?:,[\w ]+)*)\]", word):
            yield from (name.strip() for name in (found[1] or found[2]).split(","))
