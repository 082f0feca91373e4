"""Stages: overrides of several runs in a row, each from the model that the one before left."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from prefopt.errors import UserError

PREFIX = "stages."
# What is tuned for one stage; an override of it is for the last stage, unless it says `stages.NAME.` in front.
OF_ONE_STAGE = (
    "loss", "batch.records", "model.reference", "output_dir", "resume", "stages", "tracking.run_name",
    "trainer.learning_rate", "trainer.lr_scheduler_type", "trainer.lr_scheduler_kwargs", "trainer.warmup_steps",
    "trainer.max_steps", "trainer.num_train_epochs", "trainer.optim", "trainer.optim_args",
    "trainer.optim_target_modules", "trainer.weight_decay", "trainer.adam_beta1", "trainer.adam_beta2",
    "trainer.adam_epsilon", "trainer.max_grad_norm", "hydra",
)  # fmt: skip
SETTINGS = ("trainer", "batch", "evaluation", "tracking")  # groups whose choice leaves other settings of theirs alone
NAME = re.compile(r"[A-Za-z0-9_-]+")  # of a stage: part of a folder's name
LONGEST = 100  # characters of it


def key_of(override: str) -> str:
    """The name that an override sets."""
    return override.split("=", 1)[0].lstrip("+~")


def of_stages(overrides: Iterable[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Overrides without, and by stage those with, a stage's name in front: `stages.sft.trainer.max_steps=100`.

    Raises:
        UserError: one that names a stage and nothing of it.
    """
    plain: list[str] = []
    own: dict[str, list[str]] = {}
    for override in overrides:
        if not key_of(override).startswith(PREFIX):
            plain.append(override)
            continue
        name, _, rest = override.removeprefix(PREFIX).partition(".")
        if not rest or "=" in name:
            raise UserError(f"{override}: say what of the stage, as in stages.NAME.trainer.learning_rate=1e-5")
        own.setdefault(name, []).append(rest)
    return plain, own


def for_stage(given: Sequence[str], own: Sequence[str]) -> list[str]:
    """The overrides of an earlier stage.

    Args:
        given: those of the whole run; what is tuned for one stage is left out.
        own: the stage's, which also silence what was given of the same: `loss=sft` silences `loss.beta=0.1`.
    """
    silenced = [*OF_ONE_STAGE, *map(key_of, own)]

    def silent(key: str) -> bool:
        return any(key == s or (key.startswith(f"{s}.") and s not in SETTINGS) for s in silenced)

    kept = [o for o in given if not silent(key_of(o))]
    last: dict[str, str] = {key_of(o): o for o in own}  # of two that set the same, the later
    return [*kept, *last.values()]


def refuse_names(names: Iterable[str]) -> None:
    """Raise UserError for a stage's name that would lead out of the folder of stages, or fits into no file system."""
    for name in names:
        if not NAME.fullmatch(str(name)) or len(str(name)) > LONGEST:
            raise UserError(f"stages.{name}: a stage's folder is named after it, so its name has letters, digits, _ "
                            f"and - only, at most {LONGEST}; rename it")  # fmt: skip
