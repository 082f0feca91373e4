"""`prefopt train KEY=VALUE ...`: one run, or with -m one run for each combination of comma-separated values."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prefopt.config.options import CLASSES, Option, choices, group_options, loss_options, values

if TYPE_CHECKING:
    from prefopt.config.run_config import RunConfig

WIDTH = 100
HELP = """usage: prefopt train [-m] KEY=VALUE ...

  prefopt train loss=simpo loss.beta=2.5 model=MODEL data=FILE output_dir=DIR
  prefopt train -m loss=dpo,ipo model=MODEL data=FILE     one run for each combination
  prefopt train experiment=FILE.yaml                      settings from a file, as `prefopt import` writes them
  prefopt train loss=simpo --cfg job                      print all options and their values, and run nothing

MODEL is a folder or hub id, FILE a file, folder or hub name; without them the run is on the small world that is built
in. More words before --help show what they change.
"""
# What most runs set beside the loss's own hyper-parameters; with a text where no class has a comment.
COMMON = {
    "trainer.learning_rate": "",
    "trainer.num_train_epochs": "",
    "trainer.max_steps": "",
    "trainer.warmup_steps": "",
    "trainer.bf16": "",
    "trainer.save_strategy": "",
    "batch.records": "",
    "batch.max_tokens": "",
    "data.max_length": "",
    "data.max_records": "",
    "data.eval_records": "",
    "data.template": "",
    "model.dtype": "",
    "peft": "which weights are trained: none (all), lora, dora, qlora",
    "tracking": "none, wandb, tensorboard, trackio, mlflow",
    "seed": "of the order, the sampling and new weights",
}


def main(argv: list[str]) -> int:
    """Compose the configuration and run it, or print what can be given."""
    if "-h" in argv or "--help" in argv:
        words = [word for word in argv if word not in ("-h", "--help")]
        print("\n".join([HELP, *_common(words), "", *_groups()]))
        return 0
    from prefopt.config.compose import run_hydra

    run_hydra(_run, argv, "prefopt train")
    distributed = sys.modules.get("torch.distributed")  # loaded where processes found each other
    if distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()
    return 0


def _run(config: RunConfig) -> dict[str, Any]:
    # Loads transformers, which printing a configuration does without.
    from prefopt.cli.training import run_and_show

    return run_and_show(config)


def _common(words: list[str]) -> Iterator[str]:
    """The options that most runs set, with the values that these words leave them."""
    given = values(words)
    loss = str(given["loss"])
    options = {option.name: option for group in CLASSES for option in group_options(group)}
    yield f"Common options, as they are for loss={loss} model={given['model']} data={given['data']}:"
    for option in loss_options(loss) or ():
        yield from _line(option.name, given.get(option.name, _value(option)), option.comment)
    for name, about in COMMON.items():
        option = options.get(name, Option(name, "", about))
        yield from _line(name, given.get(name, _value(option)), option.comment)


def _value(option: Option) -> str:
    """The default as it is written on the command line; of an enum its name, of a container that is made nothing."""
    if option.default.startswith("field("):
        return "..."
    text = option.default.strip("'")
    return {"None": "null", "True": "true", "False": "false"}.get(text, re.sub(r"^[A-Z]\w*\.", "", text))


def _line(name: str, value: object, about: str) -> list[str]:
    text = str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
    start = f"  {name}={text}"
    return textwrap.wrap(about, WIDTH, initial_indent=f"{start:<38}  ", subsequent_indent=" " * 40) or [start]


def _groups() -> Iterator[str]:
    yield "Groups, each with the choices for GROUP=CHOICE:"
    for group, names in choices().items():
        yield textwrap.fill(" ".join(names), WIDTH, initial_indent=f"  {group:12}", subsequent_indent=" " * 14,
                            break_on_hyphens=False, break_long_words=False)  # fmt: skip
