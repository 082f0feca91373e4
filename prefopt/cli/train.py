"""`prefopt train KEY=VALUE ...`: one run, or with -m one run for each combination of comma-separated values."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

from prefopt.config.options import CLASSES, Option, choices, group_options, loss_options, values

WIDTH = 100
HELP = """usage: prefopt train [-m] KEY=VALUE ...

  prefopt train loss=simpo loss.beta=2.5 model=MODEL data=FILE output_dir=DIR
  prefopt train -m loss=dpo,ipo model=MODEL data=FILE     one run for each combination
  prefopt train experiment=FILE.yaml                      settings from a file, as `prefopt import` writes them
  prefopt train loss=simpo --cfg job                      print all options and their values, and run nothing

MODEL is a folder or hub id, FILE a file, folder or hub name; without them the run is on the small world that is built
in. More words before --help show what they change.
"""
# What most runs set beside the loss's own hyper-parameters, where its comment in the source is not enough: the default
# that transformers sets, and what it is.
COMMON = {
    "trainer.learning_rate": ("", "of the optimizer, at its highest"),
    "trainer.num_train_epochs": ("", "passes over the data"),
    "trainer.max_steps": (-1, "optimizer steps; -1: as many as the epochs take"),
    "trainer.warmup_steps": ("", "optimizer steps; below 1 a share of all"),
    "trainer.bf16": (False, "compute in bfloat16, weights stay float32; use it on a GPU"),
    "trainer.save_strategy": ("", "no, steps (each trainer.save_steps) or epoch"),
    "batch.records": ("", ""),
    "batch.max_tokens": ("", ""),
    "data.max_length": ("", ""),
    "data.max_records": ("", ""),
    "data.eval_records": ("", ""),
    "data.template": ("", ""),
    "model.dtype": ("", ""),
    "peft": ("", "which weights are trained: none (all), lora, dora, qlora"),
    "tracking": ("", "none, wandb, tensorboard, trackio, mlflow"),
    "seed": ("", "of the order, the sampling and new weights"),
}


def main(argv: list[str]) -> int:
    """Compose the configuration and run it, or print what can be given."""
    if "-h" in argv or "--help" in argv:
        words = [word for word in argv if word not in ("-h", "--help")]
        print("\n".join([HELP, *_common(words), "", *_groups()]))
        return 0
    from prefopt.cli.training import compose_and_run

    return compose_and_run(argv)


def _common(words: list[str]) -> Iterator[str]:
    """The options that most runs set, with the values that these words leave them."""
    given = values(words)
    loss = str(given["loss"])
    options = {option.name: option for group in CLASSES for option in group_options(group)}
    options |= {option.name: option for option in group_options("trainer")}
    yield f"Common options, as they are for loss={loss} model={given['model']} data={given['data']}:"
    for option in loss_options(loss) or ():
        yield from _line(option.name, given.get(option.name, _value(option)), option.comment)
    for name, (default, about) in COMMON.items():
        option = options.get(name, Option(name, repr(default), about))
        value = given.get(name, _value(option) if option.default else default)
        yield from _line(name, value, about or option.comment)


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
