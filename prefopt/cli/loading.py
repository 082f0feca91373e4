"""What the verbs that load a model share: settings, records, prompts, a bar on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from prefopt.errors import UserError

# A loss that is defined on records of a shape, so that they are read in that shape.
READS = {"pairs": "dpo", "lists": "plackett_luce", "unpaired": "kto", "demonstrations": "sft"}


def split(settings: Sequence[str], *own: str) -> tuple[Any, ...]:
    """The values of our own keys (None where one is not given), then the settings that are left for the configuration.

    Raises:
        UserError: something that is no `key=value`.
    """
    found: dict[str, str | None] = dict.fromkeys(own)
    rest = []
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"{setting!r} is no setting: write KEY=VALUE, such as data.path=pairs.jsonl")
        if key in found:
            found[key] = value
        else:
            rest.append(setting)
    return (*found.values(), rest)


def records_of(name: str, overrides: Sequence[str], tokenizer: Any) -> tuple[Any, Any, bool]:
    """(configuration, records in tokens, whether they were held out).

    A run's own held-out records, or those of the data that is named: what is held out of it, else all.

    Raises:
        UserError: no data is named, or it cannot be used.
    """
    from prefopt.runs.run import prepared_data

    config = configuration(name, overrides)
    prepared = prepared_data(config, tokenizer)
    held_out = prepared.eval is not None
    return config, prepared.eval if held_out else prepared.train, held_out


def configuration(name: str, overrides: Sequence[str]) -> Any:
    """The `RunConfig` of a run with overrides, or one made of them for a model that is no run's.

    Raises:
        UserError: no data is named.
    """
    from prefopt.config.compose import compose
    from prefopt.runs.read import RunFolder, is_run

    given = {o.split("=", 1)[0] for o in overrides}
    data_given = given & {"data", "data.path", "data.mixture"}
    if is_run(name) and not data_given:
        return RunFolder.open(name).run_config(*overrides)
    if not data_given:
        raise UserError(f"on which data? {name} is no run's folder, so name some: data.path=FILE (or data=PRESET)")
    chosen = [] if "data" in given else ["data=auto"]
    config = compose(["model=local", "model.path=none", *chosen, *overrides])
    if "loss" in given or config.data.path == "world":
        return config
    return compose(["model=local", "model.path=none", f"loss={_loss_for(config.data)}", *chosen, *overrides])


def _loss_for(data: Any) -> str:
    """A loss defined on what the data has."""
    from prefopt.data.read import read

    records = read(data).records
    kind = records[0].kind.value
    return READS[kind]


@contextmanager
def bar(words: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr that goes when it is done; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as shown:
        task = shown.add_task(words, total=total)
        yield lambda count: shown.update(task, advance=count)
