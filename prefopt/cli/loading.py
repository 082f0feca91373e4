"""Loads the configuration and the records that a verb names by settings, and shows progress on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.progress import Progress

from prefopt.common.escaping_console import Console
from prefopt.config.compose import compose
from prefopt.config.run_config import RunConfig
from prefopt.data.data_config import DataConfig
from prefopt.data.images.image_places import asked_with
from prefopt.data.reader import read
from prefopt.errors import UserError
from prefopt.plugin import Data
from prefopt.runs.resolve import prepared_data
from prefopt.runs.run_folder import RunFolder, open_model
from prefopt.runs.run_path import is_run

# For each kind of record a loss that is defined on it, so that the data is read as that kind.
LOSS_FOR = {Data.PAIRS: "dpo", Data.LISTS: "plackett_luce", Data.UNPAIRED: "kto", Data.DEMONSTRATIONS: "sft"}


def asked(prompts: Sequence[str], images: Sequence[str]) -> list[Any]:
    """The prompts of a command line, each about the same images.

    Raises:
        UserError: an image that cannot be used.
    """
    return [asked_with(text, images) for text in prompts]


def records_of(name: str, overrides: Sequence[str], tokenizer: Any) -> tuple[RunConfig, Any, bool]:
    """Load a run's held-out records, or the named data: what is held out of it, else all of it.

    Returns:
        The configuration, the records in tokens, and whether they were held out.

    Raises:
        UserError: no data is named, or it cannot be used.
    """
    config = configuration(name, overrides)
    prepared = prepared_data(config, tokenizer)
    held_out = prepared.eval is not None
    return config, prepared.eval if held_out else prepared.train, held_out


def configuration(name: str, overrides: Sequence[str]) -> RunConfig:
    """Read the configuration of a run, with overrides, or compose one for a model that no run made.

    Raises:
        UserError: no data is named.
    """
    given = {o.split("=", 1)[0] for o in overrides}
    data_given = given & {"data", "data.path", "data.mixture"}
    if is_run(name) and not data_given:
        own: RunConfig = RunFolder.open(name).run_config(*overrides)
        return own
    if not data_given:
        raise UserError(f"on which data? {name} is not a run folder, so name some: data.path=FILE (or data=PRESET)")
    chosen = _of_other_data(name, given)
    config = compose([*chosen, *overrides])
    if config.data.is_world:
        return config
    if not given & {"data.eval_path", "data.eval_split", "data.eval_records", "data.eval_fraction"}:
        chosen.append("data.eval_records=0")  # all of it, unless the preset has a split of its own
    if "loss" in given:
        return compose([*chosen, *overrides])
    return compose([*chosen, f"loss={_loss_for(config.data)}", *overrides])


def _loss_for(data: DataConfig) -> str:
    kind = read(data).records[0].kind
    if kind is Data.PROMPTS:
        raise UserError("the data has prompts alone, which have no text to score: `prefopt sample` writes texts behind "
                        "them; or give data with completions")  # fmt: skip
    return LOSS_FOR[kind]


def data_of(name: str, overrides: Sequence[str]) -> DataConfig:
    """The data of a run, with overrides, or the named data, of any kind.

    Raises:
        UserError: no data is named.
    """
    given = {o.split("=", 1)[0] for o in overrides}
    if not given & {"data", "data.path", "data.mixture"}:
        return configuration(name, overrides).data
    return compose([*_of_other_data(name, given), *overrides]).data


def format_of(name: str, overrides: Sequence[str] = ()) -> DataConfig:
    """How prompts are written for a model: as in the training of its run, with overrides."""
    return data_of(name, [*overrides, "data.path=prompts"])


def opened(name: str, owner: str, data: DataConfig | None) -> tuple[Any, Any]:
    """Load (model, tokenizer) of a name that is given beside the run or model `owner`, to be used on `data`.

    What the run `owner` started from is of the world that it was trained on; other models of worlds are of `data`'s.

    Raises:
        UserError: no model can be loaded from there.
    """
    if is_run(owner) and name == (run := RunFolder.open(owner)).start:
        return open_model(run.start_folder)
    return open_model(name, data=data)


def _of_other_data(name: str, given: Collection[str]) -> list[str]:
    """The overrides with which other data than a run's own are read, except those in `given`: prompts are written as in
    its training."""
    data = [] if "data" in given else ["data=auto"]
    own = RunFolder.open(name).format_overrides() if is_run(name) else []
    return ["model=local", "model.path=none", *data, *(one for one in own if one.split("=", 1)[0] not in given)]


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr until the block ends; nothing where stderr is not a terminal."""
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.update(task, advance=count)
