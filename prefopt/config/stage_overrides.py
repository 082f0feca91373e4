"""Divides overrides among stages: runs in a row, each of which starts from the model of the one before."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from prefopt.errors import UserError

PREFIX = "stages."
# Options that are tuned for one stage: an override is for the last stage, unless it starts with `stages.NAME.`.
OF_ONE_STAGE = (
    "loss", "batch.records", "model.reference", "model.value_model", "output_dir", "resume", "stages",
    "tracking.run_name", "trainer.learning_rate", "trainer.lr_scheduler_type", "trainer.lr_scheduler_kwargs",
    "trainer.warmup_steps", "trainer.max_steps", "trainer.num_train_epochs", "trainer.optim", "trainer.optim_args",
    "trainer.optim_target_modules", "trainer.weight_decay", "trainer.adam_beta1", "trainer.adam_beta2",
    "trainer.adam_epsilon", "trainer.max_grad_norm", "hydra",
)  # fmt: skip
SETTINGS = ("trainer", "batch", "evaluation", "tracking")  # groups whose choice leaves their other settings alone
NAME = re.compile(r"[A-Za-z0-9_-]+")  # a stage's name is a part of its folder's
LONGEST = 100  # characters


def key_of(override: str) -> str:
    """The name that an override sets."""
    return override.split("=", 1)[0].lstrip("+~")


def of_stages(overrides: Iterable[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Separate the overrides of the run from those of stages, such as `stages.sft.trainer.max_steps=100`.

    Raises:
        UserError: an override names a stage and no option of it.
    """
    plain: list[str] = []
    own: dict[str, list[str]] = {}
    for override in overrides:
        if not key_of(override).startswith(PREFIX):
            plain.append(override)
            continue
        name, _, rest = override.removeprefix(PREFIX).partition(".")
        if not rest or "=" in name:
            raise UserError(f"{override}: name an option of the stage, as in stages.NAME.trainer.learning_rate=1e-5")
        own.setdefault(name, []).append(rest)
    return plain, own


def for_stage(given: Sequence[str], own: Sequence[str]) -> list[str]:
    """The overrides of an earlier stage.

    Args:
        given: the overrides of the whole run; what is tuned for one stage is left out.
        own: the stage's own overrides, which also replace given ones of the same group: `loss=sft` drops
            `loss.beta=0.1`.
    """
    replaced = [*OF_ONE_STAGE, *map(key_of, own)]

    def is_replaced(key: str) -> bool:
        return any(key == r or (key.startswith(f"{r}.") and r not in SETTINGS) for r in replaced)

    kept = [o for o in given if not is_replaced(key_of(o))]
    last: dict[str, str] = {key_of(o): o for o in own}  # of two that set the same, the later
    return [*kept, *last.values()]


def check_names(names: Iterable[str]) -> None:
    """Raise UserError for the name of a stage that cannot be a part of its folder's name."""
    for name in names:
        if not NAME.fullmatch(str(name)) or len(str(name)) > LONGEST:
            raise UserError(f"stages.{name}: a stage's folder is named after it, so its name has letters, digits, _ "
                            f"and - only, at most {LONGEST}; rename it")  # fmt: skip
