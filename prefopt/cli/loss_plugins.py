"""Describes and checks the plugins of losses, and writes what is generated from them."""

from __future__ import annotations

import dataclasses
import inspect
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from prefopt.cli.loss_menu import flags
from prefopt.common.json_output import print_json
from prefopt.errors import ThresholdError, UserError
from prefopt.losses import registry
from prefopt.plugin import comments, traits
from prefopt.testing import check_loss, example


def describe(name: str) -> dict[str, Any]:
    """A loss as plain values: what it needs and declares, and hyper-parameters with defaults (None: must be given)."""
    cls = registry.loss_class(name)
    loss = _with_needs(cls)
    declared = traits(loss)
    return {
        "name": name,
        "package": registry.package_of(name),
        "needs": loss.needs.flags(),
        "ranking": declared.ranking.value,
        "audit": declared.audit.level.value if declared.audit is not None else None,
        "source": declared.audit.source if declared.audit is not None else None,
        "audit_date": declared.audit.date if declared.audit is not None else None,
        "paper": cls.paper,
        "hyperparameters": {f.name: _plain(_default(f)) for f in dataclasses.fields(cls)},
    }


def describe_all() -> list[dict[str, Any]]:
    """Every loss, those of other packages too."""
    return [describe(name) for name in registry.names()]


def show(names: list[str], *, as_json: bool) -> int:
    """Print what losses are: their docstrings, hyper-parameters, needs and sources.

    Raises:
        UserError: an unknown loss.
    """
    losses = [describe(name) for name in names]
    if as_json:
        print_json(losses, indent=2)
    else:
        print("\n\n".join(map(_described, losses)))
    return 0


def _described(loss: dict[str, Any]) -> str:
    cls = registry.loss_class(loss["name"])
    said = comments(cls)
    settings = [(f"loss.{key}={'?' if value is None else value}", said.get(key, ""))
                for key, value in loss["hyperparameters"].items()]  # fmt: skip
    width = max((len(setting) for setting, _ in settings), default=0)
    lines = [f"{loss['name']}: {inspect.cleandoc(cls.__doc__ or '')}", ""]
    lines += [f"{setting:<{width}}  {meaning}".rstrip() for setting, meaning in settings] + [""] * bool(settings)
    lines += [f"reads    {loss['needs']['data']}; {', '.join(flags(loss)) or 'nothing else'}"]
    lines += [f"paper    {loss['paper']}"]
    lines += [f"checked  {loss['audit']}: {loss['source']}"] if loss["audit"] else []
    return "\n".join(lines)


def _with_needs(cls: type[Any]) -> Any:
    """A plugin class, or an example of it where the needs depend on the instance (`mix`)."""
    return example(cls) if isinstance(cls.needs, property) else cls


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def check(names: list[str], *, everything: bool, as_json: bool) -> int:
    """Run the conformance kit on losses and print what it found.

    Raises:
        UserError: no loss is named, or an unknown one.
        ThresholdError: a loss fails.
    """
    if everything == bool(names):
        raise UserError("name the losses to check, or give --all")
    torch.set_num_threads(1)  # tensors of a few numbers
    classes = {name: registry.loss_class(name) for name in (registry.names() if everything else names)}
    results = {name: check_loss(example(cls)) for name, cls in classes.items()}
    failed = [name for name, checks in results.items() if not all(one.ok for one in checks)]
    if as_json:
        print_json({name: [dataclasses.asdict(c) for c in checks] for name, checks in results.items()}, indent=2)
    else:
        for name, checks in results.items():
            print(f"{name}: {'ok' if name not in failed else 'FAILED'} ({len(checks)} checks)")
            for one in checks:
                if one.detail:
                    print(f"  {one.name}: {one.detail}")
    if failed:
        raise ThresholdError(f"{len(failed)} of {len(results)} losses failed the kit: {', '.join(failed)}")
    return 0


def write_docs(output: Path) -> int:
    """Write the catalogue page and its figures."""
    from prefopt.report.catalogue import write

    for path in write(output):
        print(path)
    return 0
