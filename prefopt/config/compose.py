"""Composes the configuration of a run with Hydra, from defaults in dataclasses, presets and overrides."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from prefopt.common.files import write_text
from prefopt.common.option_limits import check_limits
from prefopt.common.redact import one_line, redact
from prefopt.config.experiments import from_file
from prefopt.config.explain import explain, initialized, not_composed, sections
from prefopt.config.grammar import literal
from prefopt.config.options import OF_PATHS, PRESETS, RATE, implied_preset, rate_of_adapters, with_paths
from prefopt.config.read_options import check_read
from prefopt.config.run_config import EvaluationConfig, RunConfig
from prefopt.config.stage_overrides import for_stage, of_stages
from prefopt.config.tracking import TrackingConfig
from prefopt.data.data_config import DataConfig
from prefopt.errors import Stopped, UserError, nearest
from prefopt.losses import registry
from prefopt.models.model_config import ModelConfig
from prefopt.models.peft_config import PeftConfig
from prefopt.plugin.outside import package
from prefopt.train.batch_config import BatchConfig
from prefopt.train.sentinels import SentinelConfig
from prefopt.train.sources.rollout_config import RolloutConfig
from prefopt.train.trainer_config import TrainerConfig

CONF = "pkg://prefopt.conf"
OBJECTS = ("loss", "model", "peft", "data", "batch", "tracking", "evaluation", "sentinels", "rollout")
KEYS = (*OBJECTS, "trainer", "source", "rounds", "reward", "seed", "output_dir", "reference_folder", "resume",
        "progress", "stages", "stages_folder", "optimized_metric")  # fmt: skip
ENTRY_POINT_GROUP = "prefopt.conf"
GROUPS: dict[str, type[Any]] = {
    "model": ModelConfig,
    "peft": PeftConfig,
    "data": DataConfig,
    "tracking": TrackingConfig,
    "evaluation": EvaluationConfig,
    "sentinels": SentinelConfig,
    "rollout": RolloutConfig,
    "batch": BatchConfig,
    "trainer": TrainerConfig,
}


class OutsidePresets(SearchPathPlugin):
    """Lets installed packages add presets: an entry point in the group `prefopt.conf` names a package of YAML files."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for point in entry_points(group=ENTRY_POINT_GROUP):
            search_path.append(provider=package(point), path=f"pkg://{point.value}")


def register() -> None:
    """Put the schemas of all losses and groups into Hydra's store, unless they are there already."""
    known = {("loss", name): registry.loss_class(name) for name in registry.names()}
    known |= {(group, "_schema"): cls for group, cls in GROUPS.items()}
    store = ConfigStore.instance()
    for (group, name), cls in known.items():
        stored = store.repo.get(group, {}).get(f"{name}.yaml")
        if stored is None or OmegaConf.get_type(stored.node) is not cls:
            store.store(group=group, name=name, node=_node(cls))
    if OutsidePresets not in Plugins.instance().discover(SearchPathPlugin):
        Plugins.instance().register(OutsidePresets)


def schemas(loss: str | None = None) -> dict[str, DictConfig]:
    """The schema of each group, and of the loss with that name."""
    groups = GROUPS if loss is None else {**GROUPS, "loss": registry.loss_class(loss)}
    return {group: _node(cls) for group, cls in groups.items()}


def _node(cls: type[Any]) -> DictConfig:
    """A dataclass as a schema that can be overridden even where the dataclass is frozen."""
    node = OmegaConf.structured(cls)
    OmegaConf.set_readonly(node, False)
    assert isinstance(node, DictConfig)
    for _, child in sections(node):
        if OmegaConf.get_type(child) is dict:
            OmegaConf.set_struct(child, False)  # its keys are the user's to choose
    return node


def run_hydra(task: Callable[[RunConfig], dict[str, Any]], argv: list[str], program: str) -> None:
    """Compose `conf/train.yaml` with the overrides in `argv` and call `task`, once for each job of a multirun.

    A sweeper is given the figure `optimized_metric` of the summary that `task` returns.

    Raises:
        UserError: an override is wrong; one line, with the nearest valid name.
    """
    register()
    given = argv
    argv, own = of_stages(implied(argv))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors reach us
    saved, sys.argv = sys.argv, [program, *_flags_first(argv)]
    failed: list[Exception] = []
    composed = False

    def job(config: DictConfig) -> Any:
        nonlocal composed
        composed = True
        if any(isinstance(error, Stopped) for error in failed):
            return None  # a signal ends a multirun, not one job of it
        _redact_multirun()
        try:
            made = run_config(config, own)
            check_read(given, [made, *made.stages.values()], multirun=HydraConfig.get().mode is RunMode.MULTIRUN)
            return optimized(task(made), config.optimized_metric)
        except Exception as raised:
            error = explain(raised, argv) if isinstance(raised, OmegaConfBaseException) else raised
            # Raised below, so that the other jobs of a multirun go on, and Hydra does not print the options.
            failed.append(error)
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                print(f"prefopt: {one_line(str(error))}", file=sys.stderr)

    try:
        hydra.main(version_base="1.3", config_path=CONF, config_name="train")(job)()
    except (HydraException, OmegaConfBaseException) as error:
        if not failed:
            raise explain(error, argv) from error
    except Exception as error:
        if not composed and not isinstance(error, OSError):  # Hydra's, for words such as ~loss=1 or experiment=[null]
            raise not_composed(error, argv) from error
        if not failed:  # else the errors of the jobs say more than that of the sweeper
            raise
    finally:
        sys.argv = saved
    if failed:
        raise next((error for error in failed if isinstance(error, Stopped)), failed[0])


def _flags_first(argv: list[str]) -> list[str]:
    """The words of a command with Hydra's flags and their values in front: its parser takes none between overrides."""
    flags: list[str] = []
    rest: list[str] = []
    for before, word in zip(["", *argv], argv, strict=False):
        is_value = before.startswith("-") and "=" not in before + word and not word.startswith(("~", "+"))
        (flags if word.startswith("-") or is_value else rest).append(word)
    return [*flags, *rest]


def _redact_multirun() -> None:
    """Remove secrets from the options of a multirun, which Hydra writes down before the first job."""
    job = HydraConfig.get()
    file = Path(job.sweep.dir or "") / "multirun.yaml"
    if job.mode is RunMode.MULTIRUN and file.is_file():
        text = file.read_text(encoding="utf-8")
        if (safe := redact(text)) != text:
            write_text(file, safe)


def optimized(summary: dict[str, Any], name: str) -> float | None:
    """The figure of a finished run that a sweeper optimizes; None where it is absent and there is no sweeper.

    Raises:
        UserError: a sweeper asks for a figure that the run does not have.
    """
    figures: dict[str, float] = summary["after"]
    if name in figures or HydraConfig.get().runtime.choices["hydra/sweeper"] == "basic":
        return figures.get(name)
    if not figures:
        raise UserError(f"optimized_metric={name} is measured on held-out records: set data.eval_records, "
                        "data.eval_fraction or data.eval_path")  # fmt: skip
    raise UserError(f"optimized_metric={name}: the run has no such figure{nearest(name, list(figures))}; it has "
                    f"{', '.join(sorted(figures))}")  # fmt: skip


def implied(overrides: list[str]) -> list[str]:
    """The overrides, with the groups that the user's own paths imply and experiments from files.

    The world's model brings a learning rate, steps and a batch that would ruin another model.
    """
    overrides = literal(from_file(with_paths(overrides)))
    given = dict(o.split("=", 1) for o in overrides if "=" in o)
    extra = []
    for group in OF_PATHS:
        path = given.get(f"{group}.path")
        preset = implied_preset(group, path) if path and group not in given else None
        if preset is not None and _of_the_world(group, given):
            extra.append(f"{group}={preset}")
    rate = rate_of_adapters(overrides)
    return [*overrides, *extra, *([] if rate is None else [f"{RATE}={rate:g}"])]


def _of_the_world(group: str, given: Mapping[str, str]) -> bool:
    """Whether presets choose an embedded world for a group."""
    chosen = [f"{name}={given[name]}" for name in PRESETS if name in given]
    if not chosen:
        return True
    with initialized():
        try:
            composed = hydra.compose("train", chosen, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException):
            return False  # the error is reported when the whole is composed
    return str(composed.hydra.runtime.choices[group]).startswith("world")


def compose(overrides: list[str], *, refuse_unread: bool = False) -> RunConfig:
    """Compose the configuration that `prefopt train` would run with these overrides.

    Args:
        overrides: options and presets.
        refuse_unread: also raise UserError for an option that the run would not read (`prefopt.config.read_options`).

    Raises:
        UserError: as `run_hydra`.
    """
    register()
    given = overrides
    overrides, own = of_stages(implied(overrides))
    try:
        with hydra.initialize_config_module("prefopt.conf", version_base="1.3"):
            try:
                config = hydra.compose("train", overrides, return_hydra_config=True)
            except (HydraException, OmegaConfBaseException):
                raise
            except Exception as error:  # Hydra's, for words such as ~loss=1 or experiment=[null]
                raise not_composed(error, overrides) from error
            HydraConfig.instance().set_config(config)
            made = run_config(config, own)
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error, overrides) from error
    if refuse_unread:
        check_read(given, [made, *made.stages.values()])
    return made


def run_config(config: DictConfig, own: Mapping[str, Sequence[str]] | None = None) -> RunConfig:
    """Convert what Hydra composed, and check every value against its field.

    Args:
        config: the composed configuration, while Hydra is initialized.
        own: overrides of the stages by their names; None for a stage itself.
    """
    _check_keys(config)
    cls = OmegaConf.get_type(config.loss)
    name = next((n for n in registry.names() if registry.loss_class(n) is cls), None)
    if name is None:
        raise UserError("loss: give the name of a loss, such as loss=dpo; `prefopt losses` prints the menu")
    for group in OBJECTS:
        _check_added(config[group], group)
    try:
        groups: dict[str, Any] = {group: OmegaConf.to_object(config[group]) for group in OBJECTS}
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} has no value: give {error.full_key}=...") from error
    except OmegaConfBaseException:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"loss={name}: {error}") from error
    hydra_config = HydraConfig.get()
    in_sweep = hydra_config.mode is RunMode.MULTIRUN
    made = RunConfig(
        loss_name=name,
        output_dir=Path(hydra_config.runtime.output_dir if in_sweep else config.output_dir),
        source=str(config.source),
        rounds=config.rounds,
        reward=OmegaConf.to_container(config.reward) if OmegaConf.is_config(config.reward) else config.reward,
        trainer=_given(config.trainer),
        reference_folder=config.reference_folder,
        resume=str(config.resume),
        progress=str(config.progress),
        seed=config.seed,
        stages={} if own is None else _stages(config, own),
        stages_folder=Path(config.stages_folder),
        **groups,
    )
    for group, value in groups.items():
        check_limits(getattr(value, "LIMITS", {}), value, group)
    check_limits(TrainerConfig.LIMITS, made.trainer, "trainer")
    made.check_source()
    return made


def _check_keys(config: DictConfig) -> None:
    """Raise UserError for an option that there is not, one that is missing, or a seed or count that is none."""
    for key in config:
        if key not in KEYS and key != "hydra":
            raise UserError(f"there is no option {key!r}{nearest(str(key), list(KEYS))}")
    for key in KEYS:
        if key not in config:
            raise UserError(f"~{key}: every run needs this option; change it with {key}=...")
    for key, least in (("seed", 0), ("rounds", 1)):
        if not isinstance(value := config[key], int) or isinstance(value, bool) or value < least:
            raise UserError(f"{key}={value} must be a whole number, at least {least}")


def _check_added(node: DictConfig, name: str) -> None:
    """Raise UserError for a key that `+name.key=...` added to a section that has fields of its own."""
    cls = OmegaConf.get_type(node)
    if not dataclasses.is_dataclass(cls):
        return
    known = [field.name for field in dataclasses.fields(cls)]
    for key in map(str, node):
        if key not in known:
            raise UserError(f"there is no option {f'{name}.{key}'!r}{nearest(key, known)}")
    for key, child in sections(node):
        _check_added(child, f"{name}.{key}")


def _stages(config: DictConfig, own: Mapping[str, Sequence[str]]) -> dict[str, RunConfig]:
    """Compose the stages before the run, each with the run's overrides and its own."""
    planned: Any = OmegaConf.to_container(config.stages, resolve=True)
    for name in own:
        if name not in planned:
            known = f"; its stages: {', '.join(planned)}" if planned else " (experiment=sft_then_dpo has stages)"
            raise UserError(f"stages.{name}: the run has no such stage{nearest(name, planned)}{known}")
    made: dict[str, RunConfig] = {}
    for name, listed in planned.items():
        if not isinstance(listed, list) or not all(isinstance(o, str) for o in listed):
            raise UserError(f"stages.{name} must be a list of overrides, such as [loss=sft, trainer.max_steps=100]")
        overrides = for_stage(HydraConfig.get().overrides.task, [*listed, *own.get(name, [])])
        if (rate := rate_of_adapters(overrides)) is not None:
            overrides.append(f"{RATE}={rate:g}")
        try:
            made[name] = run_config(hydra.compose("train", overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(f"stage {name}: {explain(error, overrides)}") from error
    return made


def _given(trainer: DictConfig) -> dict[str, Any]:
    resolved: Any = OmegaConf.to_container(trainer, resolve=True)
    return dict(resolved)
