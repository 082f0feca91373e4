"""Parses the options of `prefopt compare`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prefopt.compare.spec import Budget, Comparison, MeasureConfig, Method
from prefopt.config.compose import KEYS
from prefopt.config.grammar import literal
from prefopt.config.options import ONLINE, PRESETS
from prefopt.errors import UserError, first_line, nearest
from prefopt.losses import registry

LAUNCHER_OPTION = "hydra.launcher."
MORE = "`prefopt compare --help` lists the options"


@dataclass(kw_only=True)
class CompareConfig:
    """The options of `prefopt compare` besides those of `prefopt train`."""

    losses: list[str] = field(default_factory=list)
    budget: Budget = field(default_factory=Budget)
    seeds: int = 5
    controls: bool = False
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    judge: str | None = None
    tasks: list[str] = field(default_factory=list)
    workers: int | None = None
    launcher: str | None = None
    only: str | None = None
    output_dir: str = "runs/compare"


def parse(argv: list[str]) -> tuple[CompareConfig, Comparison]:
    """Parse `key=value` words of Hydra's grammar; options of `prefopt train` are passed on as they are.

    Raises:
        UserError: an unknown option, with the nearest name, or a value that it cannot have.
    """
    own, overrides, rows = _sort(literal(argv))
    node = OmegaConf.structured(CompareConfig)
    for part in (node, node.measure):  # frozen dataclasses become read-only nodes
        OmegaConf.set_readonly(part, False)
    for word, override in own:
        node = _merge(node, word, override)
    try:
        config: Any = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        raise UserError(first_line(error)) from error
    if config.workers is not None and config.workers < 0:
        raise UserError(f"workers={config.workers} must be at least 0, which works in this process; without it there "
                        "is one for each core")  # fmt: skip
    if config.launcher is None and (options := [word for word in argv if word.startswith(LAUNCHER_OPTION)]):
        raise UserError(f"{options[0]}: of which launcher? give launcher=NAME")
    return config, comparison(config, overrides, rows)


Rows = dict[str, dict[str, str]]  # options of one method only, by its name


def _sort(argv: Iterable[str]) -> tuple[list[tuple[str, Override]], list[str], Rows]:
    """Sort words into options of `prefopt compare`, overrides of `prefopt train`, and options of one method."""
    parser = OverridesParser.create()
    ours = [f.name for f in dataclasses.fields(CompareConfig)]
    theirs = [*KEYS, *PRESETS]
    own: list[tuple[str, Override]] = []
    overrides: list[str] = []
    rows: Rows = {}
    for word in argv:
        try:
            override = parser.parse_override(word)
        except HydraException as error:
            raise UserError(f"{word}: {first_line(error)}; give key=value, and lists as losses=[dpo,ipo]") from error
        key = _key(override)
        head = key.split(".", 1)[0].split("@", 1)[0].split("/", 1)[0]
        if head == "methods":
            name, option, value = _of_one_method(word)
            rows.setdefault(name, {})[option] = value
        elif key.startswith(LAUNCHER_OPTION):
            pass  # for `compare_jobs.launcher_runner`
        elif head in ours:
            own.append((word, override))
        elif head in theirs:
            overrides.append(word)
        else:
            raise UserError(f"there is no option {key!r}{nearest(head, [*ours, 'methods', *theirs])}; {MORE}")
    return own, overrides, rows


def _key(override: Override) -> str:
    key = str(override.key_or_group)
    return "launcher" if key == "hydra/launcher" else key


def _merge(node: Any, word: str, override: Override) -> Any:
    """Set one of our own options."""
    if override.is_sweep_override():
        raise UserError(f"{word}: a comparison is one run; give lists in brackets: losses=[dpo,ipo]")
    key, value = _key(override), override.value()
    try:
        return OmegaConf.merge(node, _nested(key, value))
    except OmegaConfBaseException as error:
        head, _, tail = key.rpartition(".")
        group = OmegaConf.select(node, head) if head else node
        if isinstance(group, DictConfig) and tail not in group:
            raise UserError(f"there is no option {key!r}{nearest(tail, list(map(str, group)))}; {MORE}") from error
        raise UserError(f"{word}: {first_line(error)}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{word}: {error}") from error


def _of_one_method(word: str) -> tuple[str, str, str]:
    """(name, option, value) of `methods.NAME.OPTION=VALUE`."""
    key, _, value = word.partition("=")
    _, _, tail = key.partition(".")
    name, _, option = tail.partition(".")
    if not name or not option:
        raise UserError(f"{word}: give methods.NAME.loss=LOSS, or methods.NAME.OPTION=VALUE of `prefopt train`")
    return name, option, value


def _nested(key: str, value: Any) -> dict[str, Any]:
    """{a: {b: value}} for the key a.b."""
    head, _, tail = key.partition(".")
    return {head: _nested(tail, value) if tail else value}


def comparison(config: CompareConfig, overrides: list[str], rows: Rows) -> Comparison:
    """The comparison that the options describe.

    Args:
        config: our options.
        overrides: the overrides of all methods.
        rows: those of one method only, by its name; `loss` names its loss if that is not the method's name, which may
            end in `@rollouts`: the loss on the policy's own samples.
    """
    methods = []
    for name in [*config.losses, *(name for name in rows if name not in config.losses)]:
        own = {"source": "rollouts"} if name.endswith(ONLINE) else {}
        own |= rows.get(name, {})
        loss = own.pop("loss", name.removesuffix(ONLINE))
        method = Method(name=name, loss=loss, overrides=tuple(f"{k}={v}" for k, v in own.items()))
        registry.loss_class(method.loss)  # raises for an unknown name, before anything is composed
        methods.append(method)
    measure = dataclasses.replace(
        config.measure,
        judge=config.judge if config.judge is not None else config.measure.judge,
        tasks=tuple(config.tasks) or tuple(config.measure.tasks),
    )
    return Comparison(
        methods=tuple(methods),
        overrides=tuple(overrides),
        budget=config.budget,
        seeds=config.seeds,
        measure=measure,
        controls=config.controls,
    )
