"""Checkpoints that are whole or absent: written aside, flushed to disk, renamed; `last` and `best` point at them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.common.files import new_folder
from prefopt.errors import PrefoptError, TrainingError, UserError
from prefopt.train.checksums import about, wrong_with

if TYPE_CHECKING:
    from transformers import TrainingArguments

IDENTITY = "run.json"
NAME = re.compile(r"checkpoint-(\d+)")
# Of transformers' arguments, what changes the steps after a resume; most are in the states that it loads, so another
# value would be ignored without a word.
OPTIONS = (
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args",
    "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "bf16", "fp16",
    "tf32",
)  # fmt: skip
# Schedules whose learning rate does not depend on the number of all steps.
ENDLESS = ("constant", "reduce_lr_on_plateau")
ENDLESS_AFTER_WARMUP = ("constant_with_warmup", "inverse_sqrt")
HASHES = ("records", "reference")  # in an identity: no person reads their values


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = [(int(m[1]), p) for p in folder.glob("checkpoint-*") if (m := NAME.fullmatch(p.name)) and p.is_dir()]
    return [p for _, p in sorted(found)]


def last_whole(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint of a run that a resume can start from, or None where the run has no checkpoint.

    What is newer and cannot be used is named, and put aside as `broken-checkpoint-<step>` if it was altered or cut
    short, so that nothing is written over it.

    Args:
        folder: of the run.
        say: called with a line for each checkpoint that is passed over.

    Raises:
        UserError: there are checkpoints, but none can be used.
        TrainingError: one cannot be read now.
    """
    found = checkpoints(folder)
    for checkpoint in reversed(found):
        wrong = wrong_with(checkpoint)
        if wrong is None and about(checkpoint).get("resumable"):
            return checkpoint
        if wrong is None:
            say(f"{checkpoint.name} is passed over: it has weights alone (trainer.save_only_model)")
            continue
        aside = free_name(folder / f"broken-{checkpoint.name}")
        checkpoint.rename(aside)
        say(f"{checkpoint.name} is passed over: {wrong}; it is kept as {aside.name}")
    if found:
        raise UserError(
            f"output_dir={folder} has checkpoints, but none that can be resumed from: choose another folder"
        )
    if broken := sorted(path.name for path in folder.glob("broken-checkpoint-*")):
        raise UserError(f"output_dir={folder} has no checkpoint but broken ones ({', '.join(broken[:3])}): delete them "
                        "to start anew, or choose another folder")  # fmt: skip
    return None


def sweep(folder: Path) -> None:
    """Clear up after a kill: a checkpoint that was being replaced is put back, what was being deleted is deleted."""
    for old in folder.glob("tmp-old-checkpoint-*"):
        target = old.with_name(old.name.removeprefix("tmp-old-"))
        if not target.exists() and wrong_with(old) is None:
            old.rename(target)
        else:
            shutil.rmtree(old, ignore_errors=True)
    for gone in folder.glob("tmp-gone-checkpoint-*"):
        shutil.rmtree(gone, ignore_errors=True)


def free_name(path: Path) -> Path:
    """`path`, or with the first number behind it that is not taken."""
    taken, number = path, 2
    while taken.exists():
        taken, number = path.with_name(f"{path.name}-{number}"), number + 1
    return taken


@contextmanager
def writing(target: Path, *, writes: bool) -> Iterator[Path]:
    """A folder to fill; it becomes `target` when the block ends without an error, and is removed otherwise.

    Args:
        target: the final place.
        writes: whether this process makes the folder and moves it (one of all processes does).

    Raises:
        TrainingError: the disk is full or refuses; what was there before is untouched.
    """
    temporary = target.with_name(f"tmp-{target.name}")  # one name for all processes
    try:
        with new_folder(target, replace=True, temporary=temporary) if writes else nullcontext(temporary) as folder:
            yield folder
    except PrefoptError:
        raise
    except Exception as error:  # each library has its own for a full disk: OSError, RuntimeError, SafetensorError
        raise TrainingError(
            f"could not write {target}: {error}; earlier checkpoints are untouched: free some space and start again"
        ) from error


def rotate(folder: Path, keep: int | None, *spared: str | Path | None) -> None:
    """Delete the oldest checkpoints beyond `keep`, but never the newest or one `spared` (folders' paths)."""
    sweep(folder)
    if not keep:
        return
    found = checkpoints(folder)
    spare = {found[-1].name} if found else set()
    spare |= {Path(path).name for path in spared if path} & {path.name for path in found}
    for old in found:
        if len(checkpoints(folder)) <= max(keep, len(spare)):
            return
        if old.name not in spare:
            # Out of sight first: a deletion that is cut short must not leave half a checkpoint behind.
            gone = old.with_name(f"tmp-gone-{old.name}")
            old.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def facts_of_options(args: TrainingArguments, model: Any) -> dict[str, Any]:
    """The options that the steps after a resume depend on, by their names, as JSON values.

    The length of a run is among them only where the schedule of the learning rate depends on it: a run at a constant
    one may go on for longer than it was begun for.
    """
    if args.lr_scheduler_type in ENDLESS_AFTER_WARMUP:
        endless = args.warmup_steps == 0 or args.warmup_steps >= 1  # below 1 it is a share of all steps
    else:
        endless = args.lr_scheduler_type in ENDLESS
    facts = {f"trainer.{name}": getattr(args, name) for name in OPTIONS}
    if not endless:
        facts["trainer.max_steps"] = args.max_steps
        facts["trainer.num_train_epochs"] = args.num_train_epochs if args.max_steps <= 0 else None  # None: not read
    facts["trainer.data_seed"] = None if args.data_seed == args.seed else args.data_seed  # None: it is `seed`
    facts["model.dtype"] = str(next(model.parameters()).dtype).removeprefix("torch.")
    for adapter in getattr(model, "peft_config", {}).values():
        facts["peft.alpha"] = getattr(adapter, "lora_alpha", None)
    plain: dict[str, Any] = json.loads(json.dumps(facts, default=str))
    return plain


def write_identity(folder: Path, identity: dict[str, Any]) -> None:
    """Put into a checkpoint what a resumed run must share with the run that it continues."""
    (folder / IDENTITY).write_text(json.dumps(identity, indent=1))


def check_identity(folder: Path, identity: dict[str, Any]) -> None:
    """Raise UserError where a checkpoint was made by another run than this one."""
    if not (folder / IDENTITY).exists():
        return
    kept = json.loads((folder / IDENTITY).read_text())
    # A name that only one of the two has is of another version, or of a schedule that is named itself.
    other = [name for name, value in kept.items() if name in identity and identity[name] != value]
    if other:
        said = (
            name if name in HASHES else f"{name} ({kept[name]!s:.200}, now {identity[name]!s:.200})" for name in other
        )
        raise UserError(f"cannot resume from {folder}: it was made with another {' and another '.join(said)}; give "
                        "what it was made with, or start from its weights in another folder")  # fmt: skip
